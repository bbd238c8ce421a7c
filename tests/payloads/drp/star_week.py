"""A week of visits to one sky as their star tables tell it, with all that is true of them."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from payloads.drp.relative import Frame
from payloads.drp.single_frame import SINGLE_VISIT_STAR_DTYPE, FrameSummary
from schemas.clock import tai_from_mjd
from schemas.image import Psf
from schemas.instrument import Detector, camera
from schemas.pointing import nominal_wcs
from schemas.tables import REFCAT_DTYPE, Table
from schemas.wcs import Wcs

Floats = NDArray[np.float64]

EPOCH_MJD = 57388.5
MJD = 61400.0
YEARS = (MJD - EPOCH_MJD) / 365.25


@dataclass(frozen=True)
class Recipe:
    """What a week is like. Angles deg; `density` per square degree; floors: errors besides photon noise."""

    seed: int = 1
    visits: int = 6
    detectors: str = "R22_S11"
    center: tuple[float, float] = (150.0, -30.0)
    dither: float = 0.05
    density: float = 6000.0
    variables: float = 0.05
    place_floor_mas: float = 2.0
    flux_floor: float = 0.002
    reference_mas: float = 5.0
    reference_flux: float = 0.003
    wcs_error_mas: float = 8.0
    zero_point_error: float = 0.003
    slope: float = 0.0
    clouds: dict[int, float] = field(default_factory=dict)
    """Visit number -> magnitudes by which its preliminary fluxes are too faint."""


@dataclass(frozen=True, eq=False)
class Week:
    """Frames, catalogue and, of each frame: its true WCS, scale and slope, and which sky's star each row is."""

    frames: list[Frame]
    refcat: Table
    wcs: list[Wcs]
    scale: Floats
    slope: Floats
    stars: list[NDArray[np.int64]]
    sky: Table


def week(recipe: Recipe) -> Week:
    rng = np.random.default_rng(recipe.seed)
    chosen = camera("LSSTCam").select(recipe.detectors)
    sky = _sky(recipe, rng, chosen)
    rows = []
    for visit in range(1, recipe.visits + 1):
        boresight = _boresight(recipe, rng)
        rotation = rng.uniform(0.0, 360.0) if len(chosen) == 1 else rng.uniform(-5.0, 5.0)
        for detector in chosen:
            true = _true_wcs(rng, detector, boresight, rotation)
            scale = np.exp(rng.normal(0.0, recipe.zero_point_error)) * 10 ** (0.4 * recipe.clouds.get(visit, 0.0))
            slope = rng.normal(0.0, 1.0, 2) * recipe.slope
            rows.append((*_frame(recipe, rng, detector, visit, true, scale, slope, sky), true, scale, slope))
    frames, stars, maps, scales, slopes = zip(*rows, strict=True)
    refcat = _refcat(recipe, rng, sky)
    return Week(list(frames), refcat, list(maps), np.array(scales), np.array(slopes), list(stars), sky)


def _sky(recipe: Recipe, rng: np.random.Generator, chosen: tuple[Detector, ...]) -> Table:
    """True stars at the week: `ra`, `dec`, `pm_ra`, `pm_dec` (mas/yr), `flux` (nJy), `amplitude` of its variation."""
    half = 0.18 + recipe.dither + (0.3 if len(chosen) > 1 else 0.0)
    n = int(recipe.density * (2 * half) ** 2)
    sky = np.zeros(n, [(name, "f8") for name in ("ra", "dec", "pm_ra", "pm_dec", "flux", "amplitude")])
    x, y = rng.uniform(-half, half, (2, n))
    plane = Wcs(recipe.center, (0.0, 0.0), np.eye(2))
    sky["ra"], sky["dec"] = plane.pixel_to_sky(x, y)
    sky["pm_ra"], sky["pm_dec"] = rng.normal(0.0, 8.0, (2, n))
    sky["flux"] = 10 ** rng.triangular(3.2, 3.4, 6.2, n)
    sky["amplitude"] = np.where(rng.random(n) < recipe.variables, rng.uniform(0.02, 0.6, n), 0.0)
    return sky


def _boresight(recipe: Recipe, rng: np.random.Generator) -> tuple[float, float]:
    dx, dy = rng.uniform(-recipe.dither, recipe.dither, 2)
    dec = recipe.center[1] + dy
    return (recipe.center[0] + dx / np.cos(np.radians(dec))) % 360.0, dec


def _true_wcs(rng: np.random.Generator, detector: Detector, boresight: tuple[float, float], rotation: float) -> Wcs:
    nominal = nominal_wcs(detector, *boresight, rotation)
    lasting = np.random.default_rng(detector.id)
    order, half = np.add.outer(np.arange(4), np.arange(4)), 2000.0
    size = np.where((order == 2) | (order == 3), 0.25, 0.0) / half**order
    centre = (detector.format.width - 1) / 2.0, (detector.format.height - 1) / 2.0
    ra, dec = nominal.pixel_to_sky(*centre)
    step = Wcs((float(ra), float(dec)), centre, nominal.cd)
    sip = (lasting.normal(0.0, 1.0, (2, 4, 4)) + 0.02 * rng.normal(0.0, 1.0, (2, 4, 4))) * size
    return Wcs(step.crval, centre, nominal.cd, sip)


def _frame(
    recipe: Recipe,
    rng: np.random.Generator,
    detector: Detector,
    visit: int,
    true: Wcs,
    scale: float,
    slope: Floats,
    sky: Table,
) -> tuple[Frame, NDArray[np.int64]]:
    nx, ny = detector.format.width, detector.format.height
    x, y = true.sky_to_pixel(sky["ra"], sky["dec"])
    rows = np.flatnonzero((x > 20) & (x < nx - 20) & (y > 20) & (y < ny - 20))
    u, v = (x[rows] - (nx - 1) / 2) / (ny / 2), (y[rows] - (ny - 1) / 2) / (ny / 2)
    dimming = 1.0 / (scale * np.exp(slope[0] * u + slope[1] * v))
    varied = sky["flux"][rows] * (1.0 + sky["amplitude"][rows] * np.sin(rng.uniform(0, 2 * np.pi, len(rows))))
    flux = varied * dimming
    error = np.sqrt(60.0**2 + 0.6 * flux)
    stars = np.zeros(len(rows), SINGLE_VISIT_STAR_DTYPE)
    stars["visit"], stars["detector"] = visit, detector.id
    position_err = 2.5 * error / flux
    scatter = np.hypot(position_err, recipe.place_floor_mas / 200.0)
    stars["x"], stars["y"] = rng.normal(x[rows], scatter), rng.normal(y[rows], scatter)
    stars["position_err"] = position_err
    stars["flux"] = rng.normal(flux, np.hypot(error, recipe.flux_floor * flux))
    stars["flux_err"] = error
    guess = _preliminary(recipe, rng, true)
    stars["ra"], stars["dec"] = guess.pixel_to_sky(stars["x"], stars["y"])
    seen = stars["flux"] > 8 * stars["flux_err"]
    summary = FrameSummary(
        visit=visit, detector=detector.id, band="r", physical_filter="r_57", ny=ny, nx=nx, wcs=guess,
        midpoint=tai_from_mjd(MJD + 0.1 * visit), exposure_time=30.0, zero_point=1.0, fwhm_px=4.0, sky_e=1000.0,
        depth_mag=24.0, wcs_rms_mas=5.0, n_stars=int(seen.sum()),
        psf=Psf(np.ones((1, 1, 1), np.float32), 0, (ny, nx)),
    )  # fmt: skip
    return Frame(summary, stars[seen]), rows[seen]


def _preliminary(recipe: Recipe, rng: np.random.Generator, true: Wcs) -> Wcs:
    """The true map with a wrong zero, linear part, and distortion."""
    size = recipe.wcs_error_mas
    dx, dy = rng.normal(0.0, size / 200.0, 2)
    turn = np.eye(2) + rng.normal(0.0, size / 200.0 / 2000.0, (2, 2))
    order = np.add.outer(np.arange(4), np.arange(4))
    wrong = rng.normal(0.0, 0.5 * size / 200.0, (2, 4, 4)) / 2000.0**order * ((order == 2) | (order == 3))
    return Wcs(true.crval, (true.crpix[0] + dx, true.crpix[1] + dy), true.cd @ turn, true.sip + wrong)


def _refcat(recipe: Recipe, rng: np.random.Generator, sky: Table) -> Table:
    """The brighter stars as of J2016.0."""
    known = sky[sky["flux"] > 4000.0]
    n = len(known)
    table = np.zeros(n, REFCAT_DTYPE)
    table["id"], table["pm_ra"], table["pm_dec"] = np.arange(1, n + 1), known["pm_ra"], known["pm_dec"]
    back = YEARS / 3.6e6
    east, north = rng.normal(0.0, recipe.reference_mas / 3.6e6, (2, n))
    cos_dec = np.cos(np.radians(known["dec"]))
    table["ra"] = (known["ra"] + (east - back * known["pm_ra"]) / cos_dec) % 360.0
    table["dec"] = known["dec"] + north - back * known["pm_dec"]
    table["r_fluxErr"] = np.hypot(recipe.reference_flux * known["flux"], 30.0)
    table["r_flux"] = rng.normal(known["flux"], table["r_fluxErr"])
    table["variable"] = (known["amplitude"] > 0) & (rng.random(n) < 0.5)
    return table
