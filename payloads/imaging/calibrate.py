"""Where an image lies on the sky and what its electrons are worth, from a reference catalogue."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree

from payloads.imaging.characterize import Characterized
from payloads.imaging.stars import StarFlag
from payloads.imaging.wings import light_within
from schemas.clock import mjd_from_tai
from schemas.errors import BadData
from schemas.image import MaskedImage, VisitImage
from schemas.instrument import BANDS
from schemas.tables import REFCAT_DTYPE, Table
from schemas.wcs import Wcs, from_tangent, to_tangent

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

UNFIT = int(StarFlag.MASKED | StarFlag.CROWDED | StarFlag.NOT_STELLAR | StarFlag.UNMEASURED)
"""Flags of stars that tell nothing of place or brightness."""

_EPOCH_MJD = 57388.5
"""J2016.0, the reference catalogue's epoch."""

_SEARCH_ARCSEC, _SEARCH_PX = 40.0, (75.0, 250.0)
"""How far off the pointing may be, and that in pixels at the least and at the most."""

_BIN_PX = 2.0
_BRIGHTEST = 2000
_FEWEST = 5
_RADII_PX = (5.0, 2.0, 1.5)
"""Matching radius of each round: the first must span half an arcminute of rotation over a detector."""

_MATCHES_OF_ORDER = ((40, 3), (20, 2), (_FEWEST, 1))
"""Fewest matches for a polynomial order."""

_DISTORTION_PX = (2.0, 0.5)
"""A priori size of each quadratic, each cubic term at the detector's edge: few stars do not bend the map
further."""

_POSITION_FLOOR_PX = 0.01
"""Error of a bright star's position that its photons do not tell of: 2 mas, of the PSF model and the air."""

_SNR_ASTROMETRY, _SNR_PHOTOMETRY, _SNR_BRIGHT = 10.0, 50.0, 100.0
_SCALE_TOLERANCE = 0.01
_LEAST_PART = 0.1
"""Of the stars, or of the references on the image where they are fewer, that a true match brings together."""


@dataclass(frozen=True)
class CalibrationSummary:
    """How a calibration went. `sky_e`, `depth_mag`: of the whole visit, per pixel; AB magnitude at S/N 5.

    `wcs_rms_mas`: residual per coordinate of matched stars of S/N over 100, or of all where fewer than 5 have
    that; `offset_arcsec`: how far the pointing was off at the detector's centre; `zero_point`: nJy per
    electron, of the whole light of a star, of which `light_within` (0 to 1) is in the stamp of the PSF: the image's own
    scale makes the fluxes within it whole, and is larger by so much.
    """

    n_stars: float
    n_psf_stars: float
    n_matched: float
    wcs_order: float
    wcs_rms_mas: float
    offset_arcsec: float
    zero_point: float
    zero_point_scatter_mmag: float
    light_within: float
    n_photometric: float
    fwhm_arcsec: float
    sky_e: float
    depth_mag: float

    def as_dict(self) -> dict[str, float]:
        """Name -> value."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Matches:
    """Rows of stars and of the reference catalogue that are the same star."""

    star: Ints
    reference: Ints


def calibrate(
    image: Characterized, refcat: Table, guess: Wcs, band: str, midpoint: float, exposure_time: float
) -> tuple[VisitImage, CalibrationSummary]:
    """The image in nJy with its WCS, and how the calibration went.

    `refcat`: rows of `REFCAT_DTYPE`, moved to `midpoint` (TAI s) by their proper motions; `guess`: the
    pointing's WCS, off by up to 40 arcsec and about 30 arcsec of rotation; `exposure_time` (s) of all snaps.
    The WCS is TAN about the detector's centre with SIP of order 3, 2 or 1, as many as the matches bear.
    Fluxes are those within the PSF's kernel. Raises BadData for a catalogue of the wrong type, an unknown
    band, fewer than 5 matches, or a match that cannot be true: of another pixel scale, or of less than a tenth of the
    stars.
    """
    _check(refcat, band)
    stars = image.stars[(image.stars["flags"] & UNFIT == 0) & (image.stars["flux"] > 0)]
    stars = stars[stars["flux"] > _SNR_ASTROMETRY * stars["flux_err"]]
    stars = stars[np.argsort(-stars["flux"], kind="stable")]
    ra, dec = at_epoch(refcat, midpoint)
    flux = np.where(np.isfinite(refcat[f"{band}_flux"]), refcat[f"{band}_flux"], 0.0)
    wcs, matches, order = _solve(stars, ra, dec, flux, guess, image.pixels.shape)
    zero_point, ratios = _zero_point(stars, refcat, band, matches)
    visit = _in_njy(image, wcs, zero_point, band, midpoint, exposure_time)
    residual = _residuals(wcs, stars, ra, dec, matches)
    summary = _summarise(image, visit, stars, matches, order, residual, guess, ratios)
    return visit, summary


def _check(refcat: Table, band: str) -> None:
    if refcat.dtype != REFCAT_DTYPE:
        raise BadData(f"reference catalogue has columns {refcat.dtype.names}, expected {REFCAT_DTYPE.names}")
    if band not in BANDS:
        raise BadData(f"no band {band!r} in the reference catalogue (it has {', '.join(BANDS)})")


def at_epoch(refcat: Table, midpoint: float) -> tuple[Floats, Floats]:
    """RA, dec (deg) at a time (TAI s); a proper motion of NaN is none."""
    years = (mjd_from_tai(midpoint) - _EPOCH_MJD) / 365.25
    per_mas, cos_dec = years / 3.6e6, np.cos(np.radians(refcat["dec"]))
    dec = refcat["dec"] + per_mas * np.nan_to_num(refcat["pm_dec"].astype(np.float64))
    ra = refcat["ra"] + per_mas * np.nan_to_num(refcat["pm_ra"].astype(np.float64)) / cos_dec
    return ra, dec


def _solve(
    stars: Table, ra: Floats, dec: Floats, flux: Floats, guess: Wcs, shape: tuple[int, int]
) -> tuple[Wcs, _Matches, int]:
    """The WCS by rounds of matching and fitting, each with a smaller radius than the one before."""
    dx, dy, votes = _offset(stars, ra, dec, flux, guess, shape)
    wcs = Wcs(guess.crval, (guess.crpix[0] + dx, guess.crpix[1] + dy), guess.cd, guess.sip)
    tried = f"at an offset of {dx:.0f}, {dy:.0f} pixels, which {votes} pairs favour"
    matches, order = _Matches(np.empty(0, np.int64), np.empty(0, np.int64)), 1
    for round_, radius in enumerate(_RADII_PX):
        matches = _match(stars, ra, dec, wcs, radius)
        if round_ > 0:
            matches = _without_outliers(wcs, stars, ra, dec, matches)
        if len(matches.star) < _FEWEST:
            raise BadData(
                f"{len(matches.star)} of {len(stars)} stars match the {len(ra)} of the catalogue {tried}; "
                f"at least {_FEWEST} are needed"
            )
        order = 1 if round_ == 0 else _order_for(len(matches.star))
        wcs = _fit_wcs(stars, ra, dec, matches, wcs, shape, order)
    if abs(wcs.pixel_scale / guess.pixel_scale - 1.0) > _SCALE_TOLERANCE:
        raise BadData(
            f"a false match {tried}: its pixels are {wcs.pixel_scale:.4f} arcsec, not {guess.pixel_scale:.4f}"
        )
    there = int(_inside(*wcs.sky_to_pixel(ra, dec), shape, 0.0)[flux > 0].sum())
    if len(matches.star) < _LEAST_PART * min(len(stars), there):
        raise BadData(f"a false match {tried}: {len(matches.star)} of {len(stars)} stars and {there} references there")
    return wcs, matches, order


def _inside(x: Floats, y: Floats, shape: tuple[int, int], margin: float) -> Bools:
    return (x > -margin) & (x < shape[1] + margin) & (y > -margin) & (y < shape[0] + margin)


def _order_for(matches: int) -> int:
    return next(order for fewest, order in _MATCHES_OF_ORDER if matches >= fewest)


def _offset(
    stars: Table, ra: Floats, dec: Floats, flux: Floats, guess: Wcs, shape: tuple[int, int]
) -> tuple[float, float, int]:
    """The shift (pixels) that brings most references upon stars, and how many pairs say so."""
    x, y = guess.sky_to_pixel(ra, dec)
    search = float(np.clip(_SEARCH_ARCSEC / guess.pixel_scale, *_SEARCH_PX))
    chosen = np.flatnonzero(_inside(x, y, shape, search) & (flux > 0))
    chosen = chosen[np.argsort(-flux[chosen], kind="stable")][:_BRIGHTEST]
    bright = stars[:_BRIGHTEST]
    if len(chosen) == 0 or len(bright) == 0:
        raise BadData(
            f"{len(bright)} stars and {len(chosen)} of the reference catalogue on the detector: none to match"
        )
    seen, known = np.column_stack([bright["x"], bright["y"]]), np.column_stack([x[chosen], y[chosen]])
    pairs = cKDTree(seen).sparse_distance_matrix(cKDTree(known), search, p=np.inf, output_type="ndarray")
    dx, dy = (seen[pairs["i"]] - known[pairs["j"]]).T
    bins, extent = int(2 * search / _BIN_PX), [[-search, search]] * 2
    votes = uniform_filter(np.histogram2d(dy, dx, bins, extent)[0] * 9.0, 3, mode="constant")
    row, column = np.unravel_index(int(votes.argmax()), votes.shape)
    peak_x, peak_y = ((k + 0.5) * 2.0 * search / bins - search for k in (column, row))
    close = (np.abs(dx - peak_x) < 1.5 * _BIN_PX) & (np.abs(dy - peak_y) < 1.5 * _BIN_PX)
    if not close.any():
        raise BadData(f"no pair of {len(bright)} stars and {len(chosen)} references within {search:.0f} pixels")
    return float(np.median(dx[close])), float(np.median(dy[close])), int(close.sum())


def _match(stars: Table, ra: Floats, dec: Floats, wcs: Wcs, radius: float) -> _Matches:
    """Pairs within `radius` (pixels) that are each other's nearest."""
    x, y = wcs.sky_to_pixel(ra, dec)
    seen = np.flatnonzero(np.isfinite(x))
    if len(seen) == 0:
        return _Matches(np.empty(0, np.int64), np.empty(0, np.int64))
    predicted, measured = np.column_stack([x, y])[seen], np.column_stack([stars["x"], stars["y"]])
    distance, nearest = cKDTree(predicted).query(measured, distance_upper_bound=radius)
    star = np.flatnonzero(np.isfinite(distance))
    star = star[np.argsort(distance[star], kind="stable")]
    unique, first = np.unique(nearest[star], return_index=True)
    return _Matches(star[first], seen[unique])


def _residuals(wcs: Wcs, stars: Table, ra: Floats, dec: Floats, matches: _Matches) -> Floats:
    """(n, 2): measured less predicted, pixels."""
    x, y = wcs.sky_to_pixel(ra[matches.reference], dec[matches.reference])
    result: Floats = np.column_stack([stars["x"][matches.star] - x, stars["y"][matches.star] - y])
    return result


def _position_errors(stars: Table, matches: _Matches) -> Floats:
    result: Floats = np.hypot(stars["position_err"][matches.star].astype(np.float64), _POSITION_FLOOR_PX)
    return result


def _without_outliers(wcs: Wcs, stars: Table, ra: Floats, dec: Floats, matches: _Matches) -> _Matches:
    """The matches within 4 robust sigma of their like, in units of their errors."""
    pull = np.abs(_residuals(wcs, stars, ra, dec, matches)).max(axis=1) / _position_errors(stars, matches)
    if pull.size == 0:
        return matches
    # The median of the larger of two normal deviates is 1.05 sigma.
    kept = pull < 4.0 * max(1.0, float(np.median(pull)) / 1.05)
    return _Matches(matches.star[kept], matches.reference[kept])


def _fit_wcs(
    stars: Table, ra: Floats, dec: Floats, matches: _Matches, wcs: Wcs, shape: tuple[int, int], order: int
) -> Wcs:
    """TAN about the detector's centre with SIP of `order` (1: none), by weighted least squares."""
    centre = (shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0
    scale = max(shape) / 2.0
    u, v = (stars["x"][matches.star] - centre[0]) / scale, (stars["y"][matches.star] - centre[1]) / scale
    powers = [(p, q) for total in range(order + 1) for p in range(total + 1) for q in [total - p]]
    weight = 1.0 / _position_errors(stars, matches)
    design = np.stack([u**p * v**q for p, q in powers], axis=1) * weight[:, None]
    sizes = [np.inf if p + q < 2 else _DISTORTION_PX[p + q - 2] for p, q in powers]
    normal = design.T @ design + np.diag(np.array(sizes) ** -2.0)
    ra0, dec0 = wcs.pixel_to_sky(*centre)
    pointing = float(ra0), float(dec0)
    coefficients: Floats = np.zeros((len(powers), 2))
    for _ in range(3):  # then nothing is left of the constant: the tangent point has moved there
        plane = np.stack(to_tangent(ra[matches.reference], dec[matches.reference], pointing), axis=1)
        coefficients[:] = np.linalg.solve(normal, design.T @ (plane * weight[:, None]))
        ra0, dec0 = from_tangent(coefficients[0, 0], coefficients[0, 1], pointing)
        pointing = float(ra0), float(dec0)
    return _as_wcs(dict(zip(powers, coefficients, strict=True)), pointing, centre, scale)


def _as_wcs(
    terms: dict[tuple[int, int], Floats],
    pointing: tuple[float, float],
    centre: tuple[float, float],
    scale: float,
) -> Wcs:
    cd = np.column_stack([terms[1, 0], terms[0, 1]]) / scale
    sip = np.zeros((2, 4, 4))
    for (p, q), value in terms.items():
        if p + q > 1:
            sip[:, p, q] = np.linalg.solve(cd, value) / scale ** (p + q)
    return Wcs(pointing, centre, cd, sip)


def _zero_point(stars: Table, refcat: Table, band: str, matches: _Matches) -> tuple[float, Floats]:
    """The nJy of an electron, the median over matched stars that do not vary; and those stars' ratios to it.

    Of S/N over 50 where there are 5 such, else all. Clipped at 3 robust sigma.
    """
    star, reference = stars[matches.star], refcat[matches.reference]
    known = np.isfinite(reference[f"{band}_flux"]) & (reference[f"{band}_flux"] > 0) & ~reference["variable"]
    bright = known & (star["flux"] > _SNR_PHOTOMETRY * star["flux_err"])
    used = bright if bright.sum() >= _FEWEST else known
    if used.sum() < _FEWEST:
        raise BadData(f"{used.sum()} matched stars have a steady {band} flux, at least {_FEWEST} are needed")
    ratio = reference[f"{band}_flux"][used].astype(np.float64) / star["flux"][used]
    for _ in range(4):
        middle = np.median(ratio)
        scatter = 1.4826 * np.median(np.abs(ratio - middle))
        ratio = ratio[np.abs(ratio - middle) <= 3.0 * scatter]
    zero_point = float(np.median(ratio))
    return zero_point, ratio / zero_point


def _in_njy(
    image: Characterized, wcs: Wcs, zero_point: float, band: str, midpoint: float, exposure_time: float
) -> VisitImage:
    scale = np.float32(zero_point)
    pixels = MaskedImage(image.pixels.image * scale, image.pixels.mask, image.pixels.variance * (scale * scale))
    level = image.background * scale
    return VisitImage(pixels, wcs, image.psf, zero_point, band, midpoint, exposure_time, level)


def _summarise(
    image: Characterized,
    visit: VisitImage,
    stars: Table,
    matches: _Matches,
    order: int,
    residual: Floats,
    guess: Wcs,
    ratios: Floats,
) -> CalibrationSummary:
    bright = stars["flux"][matches.star] > _SNR_BRIGHT * stars["flux_err"][matches.star]
    judged = residual[bright] if bright.sum() >= _FEWEST else residual
    scale = visit.wcs.pixel_scale
    x, y = guess.sky_to_pixel(*visit.wcs.pixel_to_sky(*visit.wcs.crpix))
    within = light_within(image.psf)
    return CalibrationSummary(
        n_stars=float(len(stars)),
        n_psf_stars=float(np.count_nonzero(image.stars["flags"] & np.uint16(StarFlag.PSF_USED))),
        n_matched=float(len(matches.star)),
        wcs_order=float(order),
        wcs_rms_mas=float(np.sqrt(np.mean(judged**2)) * scale * 1000.0),
        offset_arcsec=float(np.hypot(x - visit.wcs.crpix[0], y - visit.wcs.crpix[1]) * scale),
        zero_point=visit.zero_point * within,
        zero_point_scatter_mmag=float(1085.7 * 1.4826 * np.median(np.abs(ratios - 1.0))),
        light_within=within,
        n_photometric=float(len(ratios)),
        fwhm_arcsec=image.fwhm_px * scale,
        sky_e=float(np.median(image.background)),
        depth_mag=_depth(image, visit),
    )


def _depth(image: Characterized, visit: VisitImage) -> float:
    """AB magnitude of a point source at S/N 5 at the image's centre, over its median noise."""
    ny, nx = image.pixels.shape
    kernel = image.psf.at(nx / 2.0, ny / 2.0).astype(np.float64)
    noise = np.sqrt(float(np.median(visit.pixels.variance[::16, ::16])) / np.sum(kernel**2))
    return float(31.4 - 2.5 * np.log10(5.0 * noise))
