"""From detections to DIASource rows: positions, fluxes, shapes, dipoles, trails, flags, ids."""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from payloads.alert_production.detect import Detections, footprint_moments
from payloads.alert_production.lobes import DIPOLE, TRAIL, Lobes, fit_lobes
from payloads.alert_production.subtract import Subtraction, effective_sigma
from payloads.imaging import photometry
from payloads.imaging.photometry import PointSources, adaptive_moments, aperture_fluxes, fit_point_sources
from payloads.imaging.psf_field import kernels_at
from payloads.imaging.sphere import sky_jacobians
from schemas.clock import mjd_from_tai
from schemas.identity import dia_source_id
from schemas.image import Image, Mask, MaskedImage, MaskPlane, Psf, VisitImage
from schemas.tables import Table, empty
from schemas.wcs import Wcs

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

APERTURE_RADIUS = 12.0
_ARCSEC = 3600.0
_GROW_SIGMAS = 2.4
_FLAG_REACH = 2
_LONG, _LONG_PIXELS = (1.3, 2.0), 12
"""Ratio of second moments from which a footprint may be a trail, if bright and if faint; and its fewest pixels."""
_BRIGHT = 10.0
_DIPOLE_LOBE = 3.0
_DIPOLE_BALANCE = 0.65
_EXTENDED = 1.2

_FLAGS = {
    "bad": Mask.BAD, "cr": Mask.CR, "edge": Mask.EDGE, "nodata": Mask.NO_DATA, "interpolated": Mask.INTRP,
    "saturated": Mask.SAT | Mask.SAT_TEMPLATE, "suspect": Mask.SUSPECT, "streak": Mask.STREAK,
    "injected": Mask.INJECTED, "injected_template": Mask.INJECTED_TEMPLATE,
}  # fmt: skip
_CENTER_FLAGS = tuple(name for name in _FLAGS if name not in {"bad", "edge"})


@dataclass(frozen=True, eq=False)
class _Field:
    """What each measurement needs: the pixels, positions (n,), and their PSFs (n, k, k)."""

    pixels: MaskedImage
    psfs: Image
    wcs: Wcs
    to_sky: Floats
    """(n, 2, 2): degrees on the sky (east, north) per pixel in x, y."""


def measure(
    detections: Detections,
    subtraction: Subtraction,
    science: VisitImage,
    *,
    visit: int,
    detector: int,
    processed: float,
) -> Table:
    """`DiaSource` rows, numbered from 0 in the order of y, then x. `processed`: TAI s, when this runs.

    What is not known here is null: objects, reliability, and `glint_trail` is False; so is `trailAlgorithm`, whose
    key has no number for a fit of the pixels. `snr` is the unsigned significance of the detection, `isNegative` its
    sign. Dipoles are fitted where footprints of both signs touch, trails where a footprint is long; a dipole's
    position is the middle of its lobes.
    """
    table = empty("DiaSource", detections.x.size)
    field, fits = _centroids(detections, subtraction)
    _put_point_source(table, fits, detections)
    _put_dipoles(table, detections, field)
    _put_trails(table, detections, field)
    _put_positions(table, fits, field)
    _put_photometry(table, subtraction, science)
    _put_shapes(table, field, subtraction.difference.psf)
    _put_flags(table, detections, effective_sigma(subtraction.difference.psf))
    table["visit"], table["detector"], table["band"] = visit, detector, science.band
    table["midpointMjdTai"], table["exposureTime"] = mjd_from_tai(science.midpoint), science.exposure_time
    table["timeProcessedMjdTai"] = mjd_from_tai(processed)
    table = table[np.lexsort((table["x"], table["y"]))]
    table["diaSourceId"] = [dia_source_id(visit, detector, number) for number in range(table.size)]
    return table


def _centroids(detections: Detections, subtraction: Subtraction) -> tuple[_Field, PointSources]:
    difference = subtraction.difference
    x, y = detections.x.astype(np.float64), detections.y.astype(np.float64)
    psfs = kernels_at(difference.psf, x, y)
    field = _Field(difference.pixels, psfs, difference.wcs, sky_jacobians(difference.wcs, x, y))
    return field, fit_point_sources(difference.pixels, psfs, x, y, move=True)


def _put_point_source(table: Table, fits: PointSources, detections: Detections) -> None:
    table["x"], table["y"] = fits.x, fits.y
    table["xErr"], table["yErr"] = np.sqrt(fits.xx), np.sqrt(fits.yy)
    table["centroid_flag"] = (fits.failure & photometry.FAILED_CENTROID) != 0
    table["psfFlux"], table["psfFluxErr"] = fits.flux, fits.flux_err
    table["psfChi2"], table["psfLnL"], table["psfNdata"] = fits.chi2, fits.log_likelihood, fits.n_pixels
    table["psfFlux_flag_edge"] = (fits.failure & photometry.FAILED_EDGE) != 0
    table["psfFlux_flag_noGoodPixels"] = (fits.failure & photometry.FAILED_NO_PIXELS) != 0
    table["psfFlux_flag"] = table["psfFlux_flag_edge"] | table["psfFlux_flag_noGoodPixels"]
    table["snr"], table["isNegative"] = np.abs(detections.score), detections.score < 0


def _put_dipoles(table: Table, detections: Detections, field: _Field) -> None:
    """A dipole has two lobes of 3 sigma, within a factor of 5, and fits better than a point source."""
    at = np.flatnonzero(detections.opposite != 0)
    table["dipoleFitAttempted"][at] = True
    if not at.size:
        return
    fit = fit_lobes(DIPOLE, field.pixels, field.psfs[at], _dipole_start(table, detections, at))
    plus, minus = fit.parameters[:, 0], fit.parameters[:, 3]
    error = np.sqrt(np.stack([fit.covariance[:, 0, 0], fit.covariance[:, 3, 3]]))
    cross = fit.covariance[:, 0, 3]
    table["dipoleMeanFlux"][at], table["dipoleFluxDiff"][at] = (plus + minus) / 2.0, plus - minus
    total = (error**2).sum(0)
    table["dipoleMeanFluxErr"][at] = np.sqrt(np.maximum(total + 2.0 * cross, 0.0)) / 2.0
    table["dipoleFluxDiffErr"][at] = np.sqrt(np.maximum(total - 2.0 * cross, 0.0))
    length, angle = _bearing(field.to_sky[at], fit.parameters[:, 1:3] - fit.parameters[:, 4:6])
    table["dipoleLength"][at], table["dipoleAngle"][at] = length, angle
    table["dipoleChi2"][at], table["dipoleNdata"][at] = fit.chi2, fit.n_pixels
    balance = np.abs(plus - minus) / np.maximum(plus + minus, 1e-30)
    is_dipole = (plus > _DIPOLE_LOBE * error[0]) & (minus > _DIPOLE_LOBE * error[1]) & (balance < _DIPOLE_BALANCE)
    is_dipole &= fit.chi2 / fit.n_pixels < table["psfChi2"][at] / table["psfNdata"][at]
    table["isDipole"][at] = is_dipole
    middle = (fit.parameters[:, 1:3] + fit.parameters[:, 4:6]) / 2.0
    table["x"][at[is_dipole]], table["y"][at[is_dipole]] = middle[is_dipole].T


def _dipole_start(table: Table, detections: Detections, at: Indices) -> Floats:
    own = np.stack([np.abs(table["psfFlux"][at]), detections.x[at], detections.y[at]], axis=1)
    other = np.stack([own[:, 0], detections.opposite_x[at], detections.opposite_y[at]], axis=1)
    ratio = np.abs(detections.opposite[at] / detections.score[at])
    own[:, 0] = np.where(np.isfinite(own[:, 0]), own[:, 0], 1.0)
    other[:, 0] = own[:, 0] * ratio
    negative = (detections.score[at] < 0)[:, None]
    return np.concatenate([np.where(negative, other, own), np.where(negative, own, other)], axis=1)


def _put_trails(table: Table, detections: Detections, field: _Field) -> None:
    middle, spread = footprint_moments(detections.first, detections.pixels, field.pixels.shape[1])
    values, vectors = np.linalg.eigh(spread)
    ratio = np.where(table["snr"] > _BRIGHT, *_LONG)
    long = (values[:, 1] > ratio * values[:, 0]) & (np.diff(detections.first) >= _LONG_PIXELS)
    streak = (detections.mask[detections.y, detections.x] & np.uint16(Mask.STREAK)) != 0
    table["trail_flag"] = long & streak
    at = np.flatnonzero(long & ~streak & ~table["isDipole"])
    if not at.size:
        return
    length = np.sqrt(12.0 * np.maximum(values[at, 1] - values[at, 0], 0.5))
    flux = np.where(np.isfinite(table["psfFlux"][at]), table["psfFlux"][at], 1.0)
    ends = vectors[at, :, 1] * length[:, None]
    fit = fit_lobes(TRAIL, field.pixels, field.psfs[at], np.column_stack([1.5 * flux, middle[at], ends]))
    _put_trail_columns(table, at, fit, field)


def _put_trail_columns(table: Table, at: Indices, fit: Lobes, field: _Field) -> None:
    jacobian, error = field.to_sky[at], fit.covariance
    table["trailFlux"][at], table["trailFluxErr"][at] = fit.parameters[:, 0], np.sqrt(error[:, 0, 0])
    found = np.isfinite(fit.chi2)
    table["trailRa"][at[found]], table["trailDec"][at[found]] = field.wcs.pixel_to_sky(*fit.parameters[found, 1:3].T)
    place = jacobian @ error[:, 1:3, 1:3] @ jacobian.transpose(0, 2, 1)
    table["trailRaErr"][at], table["trailDecErr"][at] = np.sqrt(place[:, 0, 0]), np.sqrt(place[:, 1, 1])
    length, angle = _bearing(jacobian, fit.parameters[:, 3:5])
    table["trailLength"][at], table["trailAngle"][at] = length, np.mod(angle, 180.0)
    along, across = _errors_along(jacobian, fit)
    table["trailLengthErr"][at] = along
    table["trailAngleErr"][at] = np.degrees(across / np.maximum(length, 1e-6))
    table["trailChi2"][at], table["trailNdata"][at] = fit.chi2, fit.n_pixels
    table["trail_flag"][at] = ~found
    edge = np.hypot(*fit.parameters[:, 3:5].T) / 2.0 + 1.0
    ny, nx = field.pixels.shape
    x, y = fit.parameters[:, 1], fit.parameters[:, 2]
    table["trail_flag_edge"][at] = (x < edge) | (y < edge) | (x > nx - edge) | (y > ny - edge)


def _errors_along(jacobian: Floats, fit: Lobes) -> tuple[Floats, Floats]:
    """Errors (arcsec) of a trail's end-to-end vector along itself and across."""
    vector = np.einsum("nij,nj->ni", jacobian, fit.parameters[:, 3:5]) * _ARCSEC
    covariance = jacobian @ fit.covariance[:, 3:5, 3:5] @ jacobian.transpose(0, 2, 1) * _ARCSEC**2
    unit = vector / np.maximum(np.hypot(*vector.T), 1e-9)[:, None]
    normal = unit[:, ::-1] * np.array([-1.0, 1.0])
    along, across = (np.sqrt(np.einsum("ni,nij,nj->n", u, covariance, u)) for u in (unit, normal))
    return along, across


def _bearing(jacobian: Floats, vector: Floats) -> tuple[Floats, Floats]:
    """Length (arcsec) and bearing (deg, north through east, 0..360) of vectors in pixels (n, 2)."""
    east, north = (np.einsum("nij,nj->ni", jacobian, vector) * _ARCSEC).T
    return np.hypot(east, north), np.mod(np.degrees(np.arctan2(east, north)), 360.0)


def _put_positions(table: Table, fits: PointSources, field: _Field) -> None:
    x, y = table["x"].astype(np.float64), table["y"].astype(np.float64)
    point = ~table["isDipole"]
    x[point], y[point] = (
        fits.x[point],
        fits.y[point],
    )  # the columns are float32, too coarse for milliarcseconds
    table["ra"], table["dec"] = field.wcs.pixel_to_sky(x, y)
    covariance = np.stack([np.stack([fits.xx, fits.xy], -1), np.stack([fits.xy, fits.yy], -1)], axis=-1)
    sky = field.to_sky @ covariance @ field.to_sky.transpose(0, 2, 1)
    table["raErr"], table["decErr"] = np.sqrt(sky[:, 0, 0]), np.sqrt(sky[:, 1, 1])
    table["ra_dec_Cov"] = sky[:, 0, 1]


def _put_photometry(table: Table, subtraction: Subtraction, science: VisitImage) -> None:
    x, y = table["x"].astype(np.float64), table["y"].astype(np.float64)
    pixels = subtraction.difference.pixels
    flux, error, lost = aperture_fluxes(pixels, x, y, APERTURE_RADIUS)
    table["apFlux"], table["apFluxErr"] = flux, error
    ny, nx = pixels.shape
    inside = (x > APERTURE_RADIUS) & (y > APERTURE_RADIUS)
    inside &= (x < nx - 1 - APERTURE_RADIUS) & (y < ny - 1 - APERTURE_RADIUS)
    table["apFlux_flag_apertureTruncated"], table["apFlux_flag"] = ~inside, ~inside | (lost > 0)
    forced = fit_point_sources(science.pixels, kernels_at(science.psf, x, y), x, y, move=False)
    table["scienceFlux"], table["scienceFluxErr"] = forced.flux, forced.flux_err
    table["forced_PsfFlux_flag_edge"] = (forced.failure & photometry.FAILED_EDGE) != 0
    table["forced_PsfFlux_flag_noGoodPixels"] = (forced.failure & photometry.FAILED_NO_PIXELS) != 0
    table["forced_PsfFlux_flag"] = forced.failure != 0
    warped = subtraction.warped
    below = fit_point_sources(warped.pixels, kernels_at(warped.psf, x, y), x, y, move=False)
    table["templateFlux"], table["templateFluxErr"] = below.flux, below.flux_err


def _put_shapes(table: Table, field: _Field, psf: Psf) -> None:
    n, scale = table.size, field.wcs.pixel_scale**2
    sigma = np.full(n, effective_sigma(psf))
    signs = np.where(table["isNegative"], -1.0, 1.0)
    x, y = table["x"].astype(np.float64), table["y"].astype(np.float64)
    moments, failed = adaptive_moments(field.pixels, x, y, signs, sigma)
    psf_moments = _psf_moments(field.psfs, sigma)
    for k, name in enumerate(("ixx", "iyy", "ixy")):
        table[name], table[f"{name}PSF"] = moments[:, k] * scale, psf_moments[:, k] * scale
    table["shape_flag"], table["shape_flag_no_pixels"] = failed, ~np.isfinite(moments[:, 0])
    ratio = (moments[:, 0] + moments[:, 1]) / (psf_moments[:, 0] + psf_moments[:, 1])
    extended = ndtr((ratio - _EXTENDED) * table["snr"] / 2.0)  # a size's relative error is about 2 / (S/N)
    table["extendedness"] = np.where(failed, np.nan, extended)


def _psf_moments(psfs: Image, sigma: Floats) -> Floats:
    n, k, _ = psfs.shape
    tall = psfs.reshape(n * k, k)
    result = np.empty((n, 3))
    for i in range(n):
        stamp = MaskedImage(tall[i * k : (i + 1) * k], np.zeros((k, k), np.uint16), psfs[i])
        at = np.array([float(k // 2)])
        result[i] = adaptive_moments(stamp, at, at, np.ones(1), sigma[i : i + 1])[0][0]
    return result


def _put_flags(table: Table, detections: Detections, sigma: float) -> None:
    n = table.size
    footprint, center, box = np.zeros(n, np.uint16), np.zeros(n, np.uint16), np.zeros((n, 4), np.int64)
    x, y = (np.rint(table[name]).astype(np.int64) for name in ("x", "y"))
    _gather(detections.mask, x, y, detections.first, detections.pixels, footprint, center, box)
    for name, bits in _FLAGS.items():
        table[f"pixelFlags_{name}"] = (footprint & np.uint16(bits)) != 0
    for name in _CENTER_FLAGS:
        table[f"pixelFlags_{name}Center"] = (center & np.uint16(_FLAGS[name])) != 0
    ny, nx = detections.mask.shape
    table["pixelFlags_offimage"] = (x < 0) | (y < 0) | (x >= nx) | (y >= ny)
    table["pixelFlags_edge"] |= table["pixelFlags_offimage"]
    x0, x1, y0, y1 = box.T
    table["shape_flag_not_contained"] = (x < x0) | (x > x1) | (y < y0) | (y > y1)
    table["bboxSize"] = np.maximum(x1 - x0, y1 - y0) + 1 + 2 * round(_GROW_SIGMAS * sigma)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gather(
    mask: MaskPlane,
    xs: Indices,
    ys: Indices,
    first: Indices,
    pixels: Indices,
    footprint: MaskPlane,
    center: MaskPlane,
    box: Indices,
) -> None:
    """Mask bits within 2 pixels of each footprint, in 3 x 3 about its centre; its first and last column and row."""
    ny, nx = mask.shape
    for n in range(xs.size):
        x0, x1, y0, y1 = nx, -1, ny, -1
        for p in range(first[n], first[n + 1]):
            y, x = pixels[p] // nx, pixels[p] % nx
            x0, x1, y0, y1 = min(x0, x), max(x1, x), min(y0, y), max(y1, y)
            for r in range(max(y - _FLAG_REACH, 0), min(y + _FLAG_REACH + 1, ny)):
                for c in range(max(x - _FLAG_REACH, 0), min(x + _FLAG_REACH + 1, nx)):
                    footprint[n] |= mask[r, c]
        for r in range(max(ys[n] - 1, 0), min(ys[n] + 2, ny)):
            for c in range(max(xs[n] - 1, 0), min(xs[n] + 2, nx)):
                center[n] |= mask[r, c]
        box[n] = x0, x1, y0, y1
