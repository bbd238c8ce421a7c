"""`pachon calibrate`: the calibrations of an afternoon, from simulated raws to certified products.

The raws are archived as any are; the rest is batch: the pipeline `pipelines/calibration.yaml`, and, if every check was
passed, a validity range in `<instrument>/calib`, where prompt processing looks.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from backbone.butler import ButlerArchive
from cluster.batch import commands
from cluster.batch.request import BatchRequest, Needs, Priority
from cluster.settings import Settings
from schemas.clock import noon_of
from schemas.identity import DatasetId, exposure_id, image_name
from schemas.image import Observation
from schemas.instrument import Camera, camera
from simulators.camera import calibrations
from simulators.ocs.afternoon import BIASES, DARK_S, DARKS, FIRST, FLAT_S, FLATS
from simulators.ocs.schedule import READOUT_S

PIPELINE = Path(__file__).parents[1] / "pipelines" / "calibration.yaml"
STEPS = ("bias", "crosstalk", "photon_transfer", "dark", "flat", "defects", "verify", "calibration")
MEMORY_MB = 4000

SPOTS, SPOT_S = 4, 1.0
LADDER_S = (0.1, 0.4, 1.0, 1.8, 2.6, 3.4, 4.3, 6.0, 9.0, 16.0)
"""Of pairs of flats: the last fill every amplifier."""


@dataclass(frozen=True)
class Shot:
    """What is taken: a type of exposure, for some seconds, in a filter, once or more under the same light."""

    image_type: str
    seconds: float
    physical_filter: str
    n: int = 1
    snap: int = 0


def shots(filters: Sequence[str]) -> Iterator[Shot]:
    """An afternoon's, in their order. Spots and pairs are taken in the first filter."""
    first = filters[0]
    yield from [Shot("bias", 0.0, first)] * BIASES
    yield from [Shot("dark", DARK_S, first)] * DARKS
    yield from (Shot("spot", SPOT_S, first, snap=snap) for snap in range(SPOTS))
    yield from (Shot("flat", seconds, first, n=2) for seconds in LADDER_S)
    for physical_filter in filters:
        yield from [Shot("flat", FLAT_S, physical_filter)] * FLATS


def afternoon(instrument: Camera, filters: Sequence[str], day_obs: int) -> list[Observation]:
    """The exposures before a night. Raises BadData for a filter that the camera has not."""
    seen: list[Observation] = []
    start = noon_of(day_obs)
    for shot in shots(filters):
        first = FIRST + len(seen)
        for snap in range(shot.n):
            number = first + snap
            seen.append(
                Observation(
                    instrument=instrument.name, group=image_name(day_obs, first), visit=exposure_id(day_obs, first),
                    exposure=exposure_id(day_obs, number), snap=shot.snap + snap, n_snaps=shot.n,
                    image_name=image_name(day_obs, number), physical_filter=shot.physical_filter,
                    band=instrument.band_of(shot.physical_filter), ra=0.0, dec=0.0, rotation=0.0,
                    exposure_time=shot.seconds, started=start, readout_ended=start + shot.seconds + READOUT_S,
                    survey="calibration", image_type=shot.image_type,
                )
            )  # fmt: skip
            start += shot.seconds + READOUT_S
    return seen


def run(settings: Settings, filters: Sequence[str], day_obs: int, seed: int, workers: int, console: Console) -> int:
    """Take, make, verify, certify; the exit code: 1 if any detector's could not be."""
    archive = ButlerArchive.create(settings.butler)
    archive.register_camera(settings.camera)
    seen = afternoon(settings.camera, filters, day_obs)
    taken = take(settings, seen, seed, workers)
    console.print(f"{len(seen)} exposures of {len(settings.detectors)} detectors, {taken} raws taken now")
    made = commands.submit(settings.output / "batch", _request(settings, day_obs, workers), console)
    code = commands.wait(made, console)
    number = archive.certify(made.name_file.read_text(encoding="utf-8"), "calibration", noon_of(day_obs), None)
    wanted = len(settings.detectors) * len(filters)  # without frames of a kind, a detector is not even in the graph
    console.print(f"{number} of {wanted} calibrations hold from {day_obs} on, in {settings.instrument}/calib")
    return code or int(number < wanted)


def take(settings: Settings, seen: Sequence[Observation], seed: int, workers: int) -> int:
    """Simulate and archive what the archive lacks, in processes of their own; how many raws."""
    archive = ButlerArchive.open(settings.butler)
    for each in seen:
        archive.register_exposure(each)
    lacking = [
        (settings.butler, each, detector, seed)
        for detector in settings.detectors
        for each in seen
        if not archive.exists(DatasetId.of_raw(each.instrument, each.exposure, detector))
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_expose, lacking):
            pass
    return len(lacking)


def _expose(given: tuple[Path, Observation, int, int]) -> None:
    folder, seen, detector, seed = given
    _archive(folder).put_raw(calibrations.raw(seed, seen, camera(seen.instrument)[detector]))


@lru_cache(maxsize=1)
def _archive(folder: Path) -> ButlerArchive:
    return ButlerArchive.open(folder)


def query(settings: Settings, day_obs: int) -> str:
    """The Butler's, of the exposures of an afternoon."""
    detectors = ", ".join(str(detector) for detector in settings.detectors)
    taken = f"exposure.day_obs={day_obs} AND exposure.seq_num >= {FIRST}"
    return f"instrument='{settings.instrument}' AND {taken} AND detector IN ({detectors})"


def _request(settings: Settings, day_obs: int, workers: int) -> BatchRequest:
    return BatchRequest(
        butler=settings.butler, pipeline=str(PIPELINE), inputs=(f"{settings.instrument}/raw/all",),
        output=f"{settings.instrument}/calib/{day_obs}", where=query(settings, day_obs),
        priority=Priority.CALIBRATION, needs=dict.fromkeys(STEPS, Needs(memory_mb=MEMORY_MB)), slots=workers,
    )  # fmt: skip
