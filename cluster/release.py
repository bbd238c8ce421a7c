"""`pachon drp`, `pachon templates`: a release of some nights, and templates made of them, step by step.

Each step of the pipeline is a batch run of its own, whose graph is made of what the steps before it made: what failed
in one is left out by the next. Called again, it goes on where it was cut off, and does what lacks.
"""

import math
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from lsst.daf.butler import Butler, DimensionRecord
from lsst.sphgeom import Region
from numpy.typing import NDArray
from rich.console import Console

from backbone.butler import ButlerArchive
from backbone.sky_products import tracts_touched
from cluster.batch import commands
from cluster.batch.graph import NothingToDo
from cluster.batch.joining import of_night
from cluster.batch.request import BatchRequest, Needs, Priority
from cluster.batch.run_folder import CANCELED, CUT_OFF, DONE, Failure, RunFolder, run_folders
from cluster.settings import Settings
from schemas import skymap
from schemas.errors import BadData
from schemas.instrument import camera

PIPELINES = Path(__file__).parents[1] / "pipelines"
MEMORY_MB = 6000
MB_PER_IMAGE, MB_PER_WARP = 180, 32
"""A visit-detector's image with its stars; on each patch, its warp, and its share of what is made of that."""
WHOLE = 100
_PROBES = 9

Patch = tuple[int, int]
"""Tract and patch."""


@dataclass(frozen=True)
class Campaign:
    """What is made of what: nights from `first` to `last` (day_obs) of some detectors, into the chain `output`."""

    butler: Path
    runs: Path
    instrument: str
    detectors: tuple[int, ...]
    first: int
    last: int
    output: str
    slots: int = 0
    night: Path | None = None

    @property
    def visits(self) -> str:
        """The Butler's query of its visits."""
        detectors = ", ".join(map(str, self.detectors))
        nights = f"day_obs >= {self.first} AND day_obs <= {self.last}"
        return f"instrument='{self.instrument}' AND {nights} AND detector IN ({detectors})"

    @property
    def query(self) -> str:
        """That of its visits on the sky."""
        return f"skymap='{skymap.NAME}' AND {self.visits}"


@dataclass
class Outcome:
    """What became of the steps. `failed`: quanta given up, or not reached for those."""

    failed: int = 0
    failures: list[Failure] = field(default_factory=list)


def release(campaign: Campaign, part: int, console: Console) -> Outcome:
    """Make a data release of `part` percent of the sky that was seen; of 100, what earlier parts left.

    Raises BadData where nothing was seen, and as `commands.submit` does.
    """
    seen = patches(campaign)
    chosen = first_part(ranked(seen), part)
    _check_room(campaign, sum(len(seen[patch]) for patch in chosen))
    tracts, on_sky = _tracts(chosen), _patches(chosen)
    console.print(f"{len(chosen)} patches of {len({tract for tract, _ in chosen})} tracts, into {campaign.output}")
    return _steps(campaign, "drp.yaml", (tracts, tracts, on_sky, on_sky, on_sky), console)


def templates(campaign: Campaign, console: Console) -> Outcome:
    """Make templates, and have prompt processing take them. Raises BadData as `release` does."""
    seen = patches(campaign)
    _check_room(campaign, sum(map(len, seen.values())))
    tracts = _tracts([*seen])
    outcome = _steps(campaign, "templates.yaml", (tracts,) * 4, console)
    archive = ButlerArchive.open(campaign.butler)
    console.print(f"{archive.use_templates(f'{campaign.output}/*')} templates, for prompt processing")
    return outcome


def patches(campaign: Campaign) -> dict[Patch, list[Region]]:
    """Patches that the visits touch, and the regions of those visit-detectors."""
    archive = ButlerArchive.create(campaign.butler)
    archive.register_camera(camera(campaign.instrument))
    with Butler.from_config(str(campaign.butler)) as butler:
        regions = {(each.visit, each.detector): each.region for each in _seen(butler, campaign)}
        tracts = {tract for each in regions.values() for tract in tracts_touched(each.getBoundingCircle())}
        archive.register_tracts([skymap.tract(number) for number in tracts])
        dimensions = ("instrument", "visit", "detector", "skymap", "tract", "patch")
        seen: defaultdict[Patch, list[Region]] = defaultdict(list)
        for each in butler.query_data_ids(dimensions, where=campaign.query, limit=None, explain=False):
            seen[int(each["tract"]), int(each["patch"])].append(regions[each["visit"], each["detector"]])
    if not seen:
        raise BadData(f"{campaign.butler}: no visit fits {campaign.query}")
    return dict(seen)


def _check_room(campaign: Campaign, warps: int) -> None:
    """Raises BadData if the disk lacks the space for what is not there yet."""
    with Butler.from_config(str(campaign.butler)) as butler:
        images = len(_seen(butler, campaign))
    files = (campaign.butler / campaign.output).rglob("*.fits")
    had_mb = sum(file.stat().st_size for file in files) // 2**20
    need_mb = images * MB_PER_IMAGE + warps * MB_PER_WARP - had_mb
    free_mb = shutil.disk_usage(campaign.butler).free // 2**20
    if free_mb < need_mb:
        raise BadData(f"{campaign.butler} has {free_mb} MB free; {campaign.output} needs about {need_mb} MB more")


def _seen(butler: Butler, campaign: Campaign) -> list[DimensionRecord]:
    """Regions of the visit-detectors."""
    return butler.query_dimension_records("visit_detector_region", where=campaign.visits, limit=None, explain=False)


def ranked(seen: Mapping[Patch, Sequence[Region]]) -> list[Patch]:
    """Patches of which a part is its tract's own, by how much of the visits' light falls there: the most first."""
    own = {patch: places for patch in seen if len(places := _own(*patch))}
    light = {patch: sum(_places_in(region, own[patch]) for region in seen[patch]) for patch in own}
    return sorted(own, key=lambda patch: (-light[patch], patch))


def _places_in(region: Region, places: NDArray[np.float64]) -> int:
    return int(np.count_nonzero(region.contains(*np.deg2rad(places).T)))


def _own(number: int, patch: int) -> NDArray[np.float64]:
    """Of places all over a patch those in its tract's own area (ra, dec, degrees): the others are the next's, too."""
    tract, box = skymap.tract(number), skymap.Tract.patch_box(patch)
    x, y = np.meshgrid(np.linspace(box.x0, box.x1, _PROBES), np.linspace(box.y0, box.y1, _PROBES))
    places = np.stack([axis.ravel() for axis in tract.wcs.pixel_to_sky(x, y)], axis=1)
    own: NDArray[np.float64] = places[skymap.tract_ids(*places.T) == number]
    return own


def first_part(seen: Sequence[Patch], part: int) -> list[Patch]:
    """The first percents of some patches, at least one. Raises BadData for a part that is none."""
    if not 0 < part <= WHOLE:
        raise BadData(f"a part of {part} % of the sky: it is above 0 and at most {WHOLE}")
    return list(seen[: max(1, math.ceil(len(seen) * part / WHOLE))])


def _tracts(chosen: Sequence[Patch]) -> str:
    return f"tract IN ({', '.join(map(str, sorted({tract for tract, _ in chosen})))})"


def _patches(chosen: Sequence[Patch]) -> str:
    by_tract: dict[int, list[int]] = {}
    for tract, patch in sorted(chosen):
        by_tract.setdefault(tract, []).append(patch)
    each = (f"(tract={tract} AND patch IN ({', '.join(map(str, inner))}))" for tract, inner in by_tract.items())
    return f"({' OR '.join(each)})"


def _steps(campaign: Campaign, pipeline: str, places: Sequence[str], console: Console) -> Outcome:
    outcome = Outcome()
    for number, place in enumerate(places, start=1):
        campaign = replace(campaign, night=beside(campaign.night, console))
        run = _step(campaign, f"{PIPELINES / pipeline}#step{number}", place, console)
        if run is None:
            console.print(f"step {number}: there already")
            continue
        progress = run.progress()
        if progress.state in (CANCELED, CUT_OFF):
            raise BadData(f"{run.path}: the run was {progress.state}; the same command goes on with it")
        outcome.failed += progress.failed
        outcome.failures += progress.failures
    return outcome


def beside(night: Path | None, console: Console) -> Path | None:
    """The night on whose Ray a step is done; None, a Ray of its own, when it has ended meanwhile.

    Raises BadData for a folder in which none was ever played.
    """
    if night is None:
        return None
    try:
        of_night(night)
    except BadData as error:
        if not Settings(output=night).plan_file.exists():
            raise
        console.print(f"{error}: what is left is done on a Ray of its own")
        return None
    return night


def _step(campaign: Campaign, pipeline: str, place: str, console: Console) -> RunFolder | None:
    """Run a step, or go on with it; its run, None if all of it is there."""
    request = request_of(campaign, pipeline, place)
    run = unfinished(campaign.runs, request)
    if run is None:
        try:
            run = commands.submit(campaign.runs, request, console)
        except NothingToDo:
            return None
    elif not run.coordinated():
        commands.start(run)
    commands.wait(run, console)
    return run


def request_of(campaign: Campaign, pipeline: str, place: str) -> BatchRequest:
    """What a step asks of batch; `place`: the Butler's query of tracts or patches."""
    return BatchRequest(
        butler=campaign.butler, pipeline=pipeline, inputs=(f"{campaign.instrument}/defaults",), output=campaign.output,
        where=f"{campaign.query} AND {place}", priority=Priority.RELEASE, skip_existing=True, slots=campaign.slots,
        night=campaign.night, needs=dict.fromkeys(_LABELS, Needs(memory_mb=MEMORY_MB)),
    )  # fmt: skip


_LABELS = (
    "single_frame", "relative_calibration", "template_psf", "warp", "coadd", "template", "objects", "forced",
    "light_curves",
)  # fmt: skip


def unfinished(folder: Path, request: BatchRequest) -> RunFolder | None:
    """The run of a request like this that has not come to its end, or in which something failed."""
    asked = request.pipeline, request.where, request.output
    for run in run_folders(folder):
        if run.of_jobs or run.progress().state == DONE:
            continue
        if (run.request.pipeline, run.request.where, run.request.output) == asked:
            return run
    return None
