"""The earlier products of a simulated night: calibrations, templates, reference catalogue, orbits.

A real observatory has them from earlier nights. Here the simulator's side makes them, and they are registered in
the Data Butler like any other; what is there already is not made again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from backbone.butler import ButlerArchive
from cluster.settings import Settings
from schemas.clock import mjd_from_tai
from schemas.errors import BadData
from schemas.identity import DatasetId
from schemas.image import Raw
from schemas.instrument import Camera, Detector
from schemas.pointing import nominal_wcs
from schemas.skymap import tract, tract_at, tract_ids
from schemas.tables import Table
from schemas.wcs import from_tangent
from simulators.camera import products
from simulators.camera.exposure import FocalPlane, Recipe
from simulators.ocs.schedule import PlannedVisit
from simulators.sky.sky import Sky

MARGIN_PIXELS = 96
"""Template beyond the nominal footprint: pointing is good to some 10 arcsec."""


@dataclass(frozen=True)
class Made:
    """How many products there are now, and how many of them were made for this night."""

    wanted: int
    made: int


def wanted(plan: Sequence[PlannedVisit], camera: Camera, detectors: Sequence[int]) -> list[DatasetId]:
    """The datasets that a plan needs; a visit whose filter the camera lacks needs none."""
    names: dict[DatasetId, None] = {}
    for visit in plan:
        try:
            band = camera.band_of(visit.physical_filter)
        except BadData:  # the system refuses the visit itself
            continue
        for detector in detectors:
            names |= dict.fromkeys(_of_detector(visit, camera[detector], band, camera.name))
    return list(names)


def _of_detector(visit: PlannedVisit, detector: Detector, band: str, instrument: str) -> Iterable[DatasetId]:
    yield DatasetId(
        dataset_type="calibration", instrument=instrument, detector=detector.id, physical_filter=visit.physical_filter
    )
    form = detector.format
    wcs = nominal_wcs(detector, visit.ra, visit.dec, visit.rotation)
    ra, dec = wcs.pixel_to_sky((form.width - 1) / 2, (form.height - 1) / 2)
    plane = tract_at(float(ra), float(dec))
    for number in {tract_at(*place).id for place in _around(float(ra), float(dec))}:
        yield DatasetId(dataset_type="reference_catalogue", tract=number)
    for patch in plane.patches_in(plane.box_of(wcs, (form.height, form.width), MARGIN_PIXELS)):
        yield DatasetId(dataset_type="template_patch", tract=plane.id, patch=patch, band=band)


def _around(ra: float, dec: float) -> list[tuple[float, float]]:
    """A position and eight about it, in whose tracts a detector's reference stars lie."""
    offsets = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    places = [from_tangent(x * STARS_WITHIN_DEG, y * STARS_WITHIN_DEG, (ra, dec)) for x, y in offsets]
    return [(float(a), float(d)) for a, d in places]


def make(name: DatasetId, seed: int, sky: Sky, camera: Camera) -> object:
    """One product of the simulated sky or camera."""
    if name.dataset_type == "calibration":
        assert name.detector is not None
        assert name.physical_filter is not None
        return products.calibration(seed, camera, name.detector, camera.band_of(name.physical_filter))
    assert name.tract is not None
    plane = tract(name.tract)
    if name.dataset_type == "reference_catalogue":
        stars = products.reference_catalogue(sky, plane.ra, plane.dec, REFCAT_RADIUS_DEG)
        return stars[tract_ids(stars["ra"], stars["dec"]) == plane.id]
    assert name.patch is not None
    assert name.band is not None
    return products.template_patch(sky, seed, plane, name.patch, name.band)


REFCAT_RADIUS_DEG = 1.65
"""A tract's plane, corner to corner."""
STARS_WITHIN_DEG = 0.2
"""Half a CCD's diagonal, and what the pointing may be off."""


def make_and_put(names: Sequence[DatasetId], seed: int, settings: Settings) -> int:
    """Make products and put them into the Butler; how many."""
    archive, sky = ButlerArchive.open(settings.butler), Sky(seed)
    for name in names:
        archive.put(name, make(name, seed, sky, settings.camera))
    return len(names)


def missing(settings: Settings, plan: Sequence[PlannedVisit]) -> tuple[list[DatasetId], int]:
    """Create or open the repository: what it lacks for a plan, and how many datasets the plan needs in all."""
    archive = ButlerArchive.create(settings.butler)
    archive.register_camera(settings.camera)
    names = wanted(plan, settings.camera, settings.detectors)
    archive.register_tracts([tract(number) for number in sorted({n.tract for n in names if n.tract is not None})])
    return [name for name in names if not archive.exists(name)], len(names)


def known_orbits(seed: int, plan: Sequence[PlannedVisit]) -> Table:
    """`mpc_orbits` rows of the known bodies in and about the night's fields: what a nightly update would bring."""
    sky = Sky(seed)
    near = [
        sky.asteroids(visit.ra, visit.dec, ORBITS_RADIUS_DEG, "r", mjd_from_tai(visit.start_tai))["id"]
        for visit in plan
    ]
    orbits = sky.orbits()
    bodies = np.unique(np.concatenate(near)) & BODY_NUMBER
    chosen: Table = orbits[np.isin(orbits["id"], bodies + 1)]
    return chosen


def rehearsal(seed: int, plan: Sequence[PlannedVisit], settings: Settings) -> list[Raw]:
    """The raws of the first detector in the plan's first visit, for workers to rehearse on; none of an empty plan."""
    plane = FocalPlane(seed, settings.instrument, Sky(seed))
    return [raw for visit in plan[:1] for raw in raws_of(plane, visit, settings.detectors[0])]


def rehearsed(plan: Sequence[PlannedVisit], settings: Settings) -> list[PlannedVisit]:
    """The first visit of a plan that the system can process, if there is one: workers rehearse on it."""
    return [visit for visit in plan if visit.physical_filter in settings.camera.filters][:1]


def raws_of(plane: FocalPlane, visit: PlannedVisit, detector: int) -> list[Raw]:
    """What a detector reads out in each snap of a visit."""
    seen = [visit.observation(snap) for snap in range(visit.n_snaps)]
    recipes = [Recipe(observation, seen[0].midpoint) for observation in seen]
    return [
        Raw.of(recipe.observation, detector, plane.segments(recipe, detector, plane.charge(recipe, detector)))
        for recipe in recipes
    ]


ORBITS_RADIUS_DEG = 2.5
"""The field of view, and what may wander into it during the night."""
BODY_NUMBER = 0xFFFFFFFF
"""The bits of a simulated body's id that are its number, one less than its orbit's `id`."""
