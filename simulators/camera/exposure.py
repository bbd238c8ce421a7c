"""One detector of one exposure, from sky to raw: the steps in order, and what a visit's snaps share."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.clock import mjd_from_tai
from schemas.image import SCIENCE, Image, Observation
from schemas.instrument import PIXEL_ARCSEC, Detector, camera
from schemas.wcs import Wcs
from simulators.camera import calibrations, hits, sensor
from simulators.camera.ccd import Ccd, add_dark_current, ccd, response
from simulators.camera.optics import Conditions, conditions, field_position, psf_field, true_wcs
from simulators.camera.psf import PsfField
from simulators.camera.render import SHAPES_DTYPE, draw, galaxy_moments
from simulators.sky.sources import Kind

Floats = NDArray[np.float64]
T = TypeVar("T")

_MARGIN_PIXELS = 300.0
"""How far beyond the edges sources are drawn: a bright star's halo."""
_FAINTEST = 1e-3
"""Surface brightness at which a source's outskirts end: of the sky's."""
_TRAIL_STEP_PIXELS = 0.5
_TRAIL_MARGIN_PIXELS = 80


class SourceSky(Protocol):
    """The sky's sources, as the simulated sky tells them."""

    def sources(self, ra: float, dec: float, radius_deg: float, band: str, mjd_tai: float) -> NDArray[np.void]:
        """Rows of `SKY_SOURCE_DTYPE` inside a circle (deg, ICRS)."""


@dataclass(frozen=True)
class Recipe:
    """All that an exposure's pixels depend on besides the seed.

    `epoch`: TAI s, the middle of its visit's first snap. What varies on the sky is constant inside a visit:
    its value is the one at `epoch`.
    """

    observation: Observation
    epoch: float


@dataclass(frozen=True, eq=False)
class Field:
    """What the snaps of a visit share on one detector. `wcs` is the true one.

    sources: rows of SKY_SOURCE_DTYPE on or near the detector, at the epoch. shapes: SHAPES_DTYPE,
    electrons/s, a row each. still: which do not move. light: (ny, nx), electrons/s that sky and still sources
    make in the detector, whose pixels have the `response` (ny, nx).
    """

    seed: int
    conditions: Conditions
    wcs: Wcs
    psf: PsfField
    chip: Ccd
    sources: NDArray[np.void]
    shapes: NDArray[np.void]
    still: NDArray[np.bool_]
    light: Image
    response: Image


class Cache(Generic[T]):
    """The newest `size` values by key, for threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value, made if it is not there; two threads at once may both make it."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value


class FocalPlane:
    """An instrument's detectors under a sky. `fields`: how many are kept for the visit's next snap."""

    def __init__(self, seed: int, instrument: str, sky: SourceSky, *, fields: int = 4) -> None:
        self.seed = seed
        self.camera = camera(instrument)
        self._sky = sky
        self._fields: Cache[Field] = Cache(fields)
        self._responses: Cache[Image] = Cache(1)

    def field(self, recipe: Recipe, detector: int) -> Field:
        """What the visit's snaps share on a detector. Raises BadData for a detector the camera has not."""
        chosen = self.camera[detector]
        key = recipe.observation.visit, recipe.epoch, detector
        return self._fields.get(key, lambda: self._new_field(recipe, chosen))

    def charge(self, recipe: Recipe, detector: int) -> Image:
        """(ny, nx), electrons in each pixel at the end of the exposure, expected: no noise, but bled."""
        if recipe.observation.image_type != SCIENCE:
            return self._calibration_charge(recipe.observation, self.camera[detector])
        field = self.field(recipe, detector)
        observation = recipe.observation
        seconds = observation.exposure_time
        charge = field.light * np.float32(seconds)
        for source, flux in zip(field.sources[~field.still], field.shapes["flux"][~field.still], strict=True):
            _add_trail(charge, field, trail(source, field.wcs, recipe), flux * seconds)
        path = hits.streak(self.seed, observation.exposure)
        if path is not None:
            hits.add_streak(charge, field.response, path, field.chip.detector)
        add_dark_current(charge, field.chip, seconds)
        hits.add_cosmic_rays(charge, self.seed, observation.exposure, detector, seconds)
        sensor.bleed(charge, field.chip)
        return charge

    def segments(self, recipe: Recipe, detector: int, charge: Image) -> sensor.Segments:
        """The raw of a detector's charge: int32 (16, rows, columns) ADU, always the same for a recipe."""
        chip = ccd(self.seed, self.camera.name, self.camera[detector])
        return sensor.read_out(charge, chip, self.seed, recipe.observation.exposure)

    def _calibration_charge(self, observation: Observation, detector: Detector) -> Image:
        chip, band = ccd(self.seed, self.camera.name, detector), observation.band

        def throughput() -> Image:
            return self._responses.get((detector.id, band), lambda: response(chip, band))

        return calibrations.charge(self.seed, observation, chip, throughput)

    def _new_field(self, recipe: Recipe, detector: Detector) -> Field:
        observation = recipe.observation
        observed = conditions(self.seed, observation, recipe.epoch)
        wcs = true_wcs(self.seed, observed, observation, detector)
        psf = psf_field(self.seed, observed, detector)
        sources = self._sources_near(wcs, detector, observation.band, recipe.epoch)
        shapes = shapes_of(sources, sources["flux"] * observed.zero_point, wcs)
        still = sources["kind"] != Kind.ASTEROID
        light = _sky_light(observed, detector)
        draw(light, shapes[still], psf, _FAINTEST * observed.sky)
        chip = ccd(self.seed, self.camera.name, detector)
        throughput = response(chip, observation.band)
        light *= throughput
        return Field(self.seed, observed, wcs, psf, chip, sources, shapes, still, light, throughput)

    def _sources_near(self, wcs: Wcs, detector: Detector, band: str, epoch: float) -> NDArray[np.void]:
        form = detector.format
        center = wcs.pixel_to_sky((form.width - 1) / 2.0, (form.height - 1) / 2.0)
        radius = (np.hypot(form.width, form.height) / 2.0 + _MARGIN_PIXELS) * PIXEL_ARCSEC / 3600.0
        return self._sky.sources(float(center[0]), float(center[1]), float(radius), band, mjd_from_tai(epoch))


def trail(source: np.void, wcs: Wcs, recipe: Recipe) -> tuple[Floats, Floats]:
    """Pixels of a mover at equal steps through an exposure, at most half a pixel apart."""
    observation = recipe.observation
    rate = np.hypot(source["rate_ra"], source["rate_dec"]) / PIXEL_ARCSEC
    n = max(1, int(np.ceil(rate * observation.exposure_time / _TRAIL_STEP_PIXELS)))
    seconds = observation.midpoint - recipe.epoch + observation.exposure_time * ((np.arange(n) + 0.5) / n - 0.5)
    dec = source["dec"] + source["rate_dec"] * seconds / 3600.0
    ra = source["ra"] + source["rate_ra"] * seconds / 3600.0 / np.cos(np.radians(source["dec"]))
    return wcs.sky_to_pixel(ra, dec)


def _add_trail(charge: Image, field: Field, path: tuple[Floats, Floats], flux: float) -> None:
    """Add a mover's charge, `flux` electrons in all, spread evenly over a path."""
    ny, nx = charge.shape
    x0, y0 = (max(0, int(p.min()) - _TRAIL_MARGIN_PIXELS) for p in path)
    x1, y1 = (
        min(nx, int(path[0].max()) + _TRAIL_MARGIN_PIXELS),
        min(ny, int(path[1].max()) + _TRAIL_MARGIN_PIXELS),
    )
    if x0 >= x1 or y0 >= y1:
        return
    shapes = np.zeros(len(path[0]), SHAPES_DTYPE)
    shapes["x"], shapes["y"] = path
    shapes["flux"] = flux / len(shapes)
    stamp = np.zeros((y1 - y0, x1 - x0), np.float32)
    draw(stamp, shapes, field.psf, _FAINTEST * field.conditions.sky, origin=(x0, y0))
    charge[y0:y1, x0:x1] += stamp * field.response[y0:y1, x0:x1]


def shapes_of(sources: NDArray[np.void], flux: Floats, wcs: Wcs) -> NDArray[np.void]:
    """Sky sources as they are drawn (SHAPES_DTYPE) with a flux in the image's unit."""
    shapes = np.zeros(len(sources), SHAPES_DTYPE)
    shapes["x"], shapes["y"] = wcs.sky_to_pixel(sources["ra"], sources["dec"])
    shapes["flux"] = flux
    to_pixel = np.linalg.inv(wcs.cd)
    north = np.radians(sources["angle"])
    axis_x, axis_y = to_pixel @ np.stack([np.sin(north), np.cos(north)])
    radius = sources["radius"] / PIXEL_ARCSEC
    moments = galaxy_moments(radius, sources["axis_ratio"], np.arctan2(axis_y, axis_x))
    shapes["xx"], shapes["xy"], shapes["yy"] = moments
    return shapes


def _sky_light(observed: Conditions, detector: Detector) -> Image:
    """(ny, nx), electrons/s of sky: a plane over the field."""
    form = detector.format
    field_x, _ = field_position(detector, np.arange(form.width, dtype=np.float64), np.zeros(form.width))
    _, field_y = field_position(detector, np.zeros(form.height), np.arange(form.height, dtype=np.float64))
    along_x = observed.sky * (1.0 + observed.sky_slope[0] * field_x)
    along_y = observed.sky * observed.sky_slope[1] * field_y
    light: Image = along_x.astype(np.float32)[None, :] + along_y.astype(np.float32)[:, None]
    return light
