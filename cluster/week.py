"""A simulated week in the archive: calibrations, reference stars and raws, made by the simulator where they lack."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context

from backbone.butler import ButlerArchive
from cluster import prepare
from cluster.settings import Settings
from schemas.identity import DatasetId
from simulators.camera.exposure import FocalPlane
from simulators.ocs.schedule import PlannedVisit
from simulators.sky.sky import Sky


def take(settings: Settings, plan: Sequence[PlannedVisit], seed: int, workers: int) -> int:
    """Simulate and archive what the archive lacks of a plan, in processes of their own; how many raws.

    Templates are not made: they are what such a week is for.
    """
    names = [name for name in prepare.missing(settings, plan)[0] if name.dataset_type != "template_patch"]
    archive = ButlerArchive.open(settings.butler)
    lacking = [
        (settings, visit, detector, seed)
        for visit in plan
        for detector in settings.detectors
        if not all(archive.exists(name) for name in _raws(settings.instrument, visit, detector))
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        made = [pool.submit(prepare.make_and_put, names[first::workers], seed, settings) for first in range(workers)]
        for each in made:
            each.result()
        return sum(pool.map(_expose, lacking))


def _raws(instrument: str, visit: PlannedVisit, detector: int) -> list[DatasetId]:
    seen = (visit.observation(snap) for snap in range(visit.n_snaps))
    return [DatasetId.of_raw(instrument, each.exposure, detector) for each in seen]


def _expose(given: tuple[Settings, PlannedVisit, int, int]) -> int:
    settings, visit, detector, seed = given
    raws = prepare.raws_of(_plane(seed, settings.instrument), visit, detector)
    for raw in raws:
        _archive(settings).put_raw(raw)
    return len(raws)


@lru_cache(maxsize=1)
def _plane(seed: int, instrument: str) -> FocalPlane:
    return FocalPlane(seed, instrument, Sky(seed))


@lru_cache(maxsize=1)
def _archive(settings: Settings) -> ButlerArchive:
    return ButlerArchive.open(settings.butler)
