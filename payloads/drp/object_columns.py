"""What is measured of each object on its own light, and the columns that it fills."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import sep
from numpy.typing import NDArray

from payloads.drp.blends import point_fluxes
from payloads.drp.detect import Labels
from payloads.drp.optics import Shapes, draw
from payloads.drp.scene import Band, Scene
from payloads.imaging.mask_ops import bits_about
from payloads.imaging.photometry import adaptive_moments, aperture_fluxes
from schemas.drp_tables import APERTURES
from schemas.image import Image, Mask, MaskedImage, MaskPlane
from schemas.skymap import PIXEL_ARCSEC
from schemas.tables import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_LEAST_SEEN = 0.5
"""Part of a PSF's squares on usable pixels without which there is no PSF flux."""
_AB_ZERO = 31.4
_EXTENDED = 0.985
"""Ratio of PSF to model flux below which an object is extended, as Rubin's pipelines have it."""
_KRON_FACTOR, _KRON_REACH, _LEAST_KRON = 2.5, 6.0, 1.0
_FLAGS = {"cr": Mask.CR, "interpolated": Mask.INTRP, "saturated": Mask.SAT}


@dataclass(frozen=True, eq=False)
class Outlines:
    """Ellipses in which objects are measured in all bands, from the band of each in which it stands out most.

    `moments` (n, 3): xx, yy, xy (pixels**2); `kron`: the Kron radius in units of the ellipse's axes, NaN where none.
    """

    moments: Floats
    kron: Floats


def put_shape(table: Table, scene: Scene, own: Ints) -> Outlines:
    """Columns of shape, each from the object's own band `own` (n,); and the outlines."""
    moments, kron = np.full((own.size, 3), np.nan), np.full(own.size, np.nan)
    for number, band in enumerate(scene.bands):
        hidden = ~band.field.usable
        for k, pixels in own_light(band, np.flatnonzero(own == number)):
            x, y, sigma = scene.shapes.x[k : k + 1], scene.shapes.y[k : k + 1], _sigma(band, k)
            fitted, failed = adaptive_moments(pixels, x, y, np.ones(1), sigma)
            moments[k], table["shape_flag"][k] = fitted[0], failed[0]
            kron[k] = _kron_radius(pixels, hidden, x, y, fitted[0])
    for column, name in enumerate(("shape_xx", "shape_yy", "shape_xy")):
        table[name] = moments[:, column]
    _put_disc(table, scene)
    return Outlines(moments, kron)


def _put_disc(table: Table, scene: Scene) -> None:
    """The ellipse of half the light, before the PSF: 0 of what is no larger than a point."""
    a, c, b = scene.shapes.root.T
    xx, yy, xy = a**2, b**2 + c**2, a * c
    spread = np.hypot((xx - yy) / 2.0, xy)
    major, minor = (np.sqrt(np.maximum((xx + yy) / 2.0 + sign * spread, 0.0)) for sign in (1.0, -1.0))
    sizes = {"x": np.sqrt(xx), "y": np.sqrt(yy), "major": major, "minor": minor}
    for name, size in sizes.items():
        table[f"exponential_reff_{name}"] = size * PIXEL_ARCSEC
    table["exponential_rho"] = np.divide(xy, np.sqrt(xx * yy), where=xx * yy > 0.0, out=np.zeros(a.size))
    table["exponential_unknown_flag"] = np.where(scene.galaxy, scene.discs.failed, scene.points.failed)


def put_band(
    table: Table,
    name: str,
    band: Band,
    scene: Scene,
    outlines: Outlines,
    mask: MaskPlane,
    depth: NDArray[np.uint16],
    labels: Labels,
) -> None:
    """Columns of the band `name`. `mask`, `depth`, `labels`: (ny, nx), the last the object whose peak a pixel is of."""
    _put_fluxes(table, name, band, scene)
    _put_own_light(table, name, band, scene, outlines)
    _put_psf_moments(table, name, band)
    _put_flags(table, name, scene, mask, depth, labels)


def own_light(band: Band, which: Ints) -> Iterator[tuple[int, MaskedImage]]:
    """Each object of `which` with the image less all others: one image, in which the next takes its place."""
    image = band.shares.residual.copy()
    pixels = MaskedImage(image, np.where(band.field.usable, np.uint16(0), np.uint16(Mask.NO_DATA)), band.field.variance)
    models, ny, nx = band.models, *image.shape
    for k in which:
        x0, y0, side = models.x0[k], models.y0[k], models.side[k]
        rows, columns = slice(max(y0, 0), min(y0 + side, ny)), slice(max(x0, 0), min(x0 + side, nx))
        before = image[rows, columns].copy()
        box = models.box(k)[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]
        image[rows, columns] += np.float32(np.nan_to_num(band.shares.flux[k])) * box
        yield int(k), pixels
        image[rows, columns] = before


def _sigma(band: Band, k: int) -> Floats:
    return band.optics.sigma[band.optics.place[k : k + 1]]


def _axes(moments: Floats) -> tuple[float, float, float]:
    """Semi-axes (pixels) and angle (radians) of the ellipse of second moments xx, yy, xy."""
    xx, yy, xy = moments
    spread = np.hypot(0.5 * (xx - yy), xy)
    major, minor = 0.5 * (xx + yy) + spread, max(0.5 * (xx + yy) - spread, 1e-2)
    return float(np.sqrt(major)), float(np.sqrt(minor)), float(0.5 * np.arctan2(2.0 * xy, xx - yy))


def _size(moments: Floats) -> float:
    """Geometric mean (pixels) of the semi-axes; NaN where they are none."""
    square = moments[0] * moments[1] - moments[2] ** 2
    return float(square**0.25) if square > 0.0 else float("nan")


def _kron_radius(pixels: MaskedImage, hidden: Flags, x: Floats, y: Floats, moments: Floats) -> float:
    """In units of the ellipse of the moments, at least 1; NaN where there is none."""
    if not (moments[0] > 0.0 and moments[0] * moments[1] > moments[2] ** 2):
        return float("nan")
    a, b, theta = _axes(moments)
    radius, flag = sep.kron_radius(pixels.image, x, y, a, b, theta, _KRON_REACH, mask=hidden)
    none = not np.isfinite(radius[0]) or bool(flag[0] & sep.APER_ALLMASKED)
    return float("nan") if none else max(float(radius[0]), _LEAST_KRON)


def _put_fluxes(table: Table, name: str, band: Band, scene: Scene) -> None:
    x, y, known = scene.shapes.x, scene.shapes.y, band.optics.excess.shape[1] // 2
    points = draw(Shapes.points(x, y), band.optics, np.full(x.size, known))
    flux, error, seen = point_fluxes(band.field, band.shares, band.models, points)
    ny, nx = band.field.image.shape
    edge = (points.x0 < 0) | (points.y0 < 0) | (points.x0 + points.side > nx) | (points.y0 + points.side > ny)
    lost = ~(seen >= _LEAST_SEEN)
    flux[lost], error[lost] = np.nan, np.nan
    table[f"{name}_psfFlux"], table[f"{name}_psfFluxErr"] = flux, error
    table[f"{name}_psfFlux_flag_edge"], table[f"{name}_psfFlux_flag_noGoodPixels"] = edge, lost
    table[f"{name}_psfFlux_flag"] = edge | lost
    with np.errstate(invalid="ignore", divide="ignore"):
        table[f"{name}_psfMag"] = np.where(flux > 0.0, _AB_ZERO - 2.5 * np.log10(flux), np.nan)
        table[f"{name}_psfMagErr"] = np.where(flux > 0.0, 2.5 / np.log(10.0) * error / flux, np.nan)
        table[f"{name}_extendedness"] = np.where(lost, np.nan, flux / band.shares.flux < _EXTENDED)
    table[f"{name}_exponentialFlux"] = np.where(lost, np.nan, band.shares.flux)
    table[f"{name}_exponentialFluxErr"] = np.where(lost, np.nan, band.shares.flux_err)
    table[f"{name}_extendedness_flag"] = lost
    table[f"{name}_blendedness"] = band.shares.blended
    table[f"{name}_blendedness_flag"] = ~np.isfinite(band.shares.blended)


def _put_own_light(table: Table, name: str, band: Band, scene: Scene, outlines: Outlines) -> None:
    """Apertures, Kron fluxes and moments."""
    hidden = ~band.field.usable
    columns = [[table[f"{name}_ap{r:02d}Flux{end}"] for end in ("", "Err", "_flag")] for r in APERTURES]
    kron = [table[f"{name}_kronFlux{end}"] for end in ("", "Err", "_flag")]
    moments, failed = [table[f"{name}_{axes}"] for axes in ("ixx", "iyy", "ixy")], table[f"{name}_i_flag"]
    for k, pixels in own_light(band, np.arange(len(table))):
        x, y = scene.shapes.x[k : k + 1], scene.shapes.y[k : k + 1]
        for radius, (flux, error, flag) in zip(APERTURES, columns, strict=True):
            total, sigma, lost = aperture_fluxes(pixels, x, y, float(radius))
            flux[k], error[k], flag[k] = total[0], sigma[0], lost[0] > 0.0
        fitted, bad = adaptive_moments(pixels, x, y, np.ones(1), _sigma(band, k))
        failed[k] = bad[0]
        for column, value in zip(moments, fitted[0], strict=True):
            column[k] = value
        kron[0][k], kron[1][k], kron[2][k] = _kron_flux(pixels, hidden, x, y, outlines.moments[k], outlines.kron[k])
        table[f"{name}_kronRad"][k] = outlines.kron[k] * _size(outlines.moments[k])


def _kron_flux(
    pixels: MaskedImage, hidden: Flags, x: Floats, y: Floats, moments: Floats, radius: float
) -> tuple[float, float, bool]:
    if not np.isfinite(radius):
        return np.nan, np.nan, True
    a, b, theta = _axes(moments)
    flux, error, flag = sep.sum_ellipse(
        pixels.image, x, y, a, b, theta, _KRON_FACTOR * radius, var=pixels.variance, mask=hidden, subpix=5
    )
    return float(flux[0]), float(error[0]), bool(flag[0] & (sep.APER_TRUNC | sep.APER_HASMASKED))


def _put_psf_moments(table: Table, name: str, band: Band) -> None:
    """Of the PSF at each object: that of the place of the mesh nearest to it."""
    k = band.optics.excess.shape[1]
    places = zip(band.optics.kernels, band.optics.sigma, strict=True)
    moments = np.array([_moments_of(kernel, k // 2, sigma) for kernel, sigma in places])
    for column, axes in enumerate(("ixxPSF", "iyyPSF", "ixyPSF")):
        table[f"{name}_{axes}"] = moments[band.optics.place, column]
    table[f"{name}_iPSF_flag"] = False
    table[f"{name}_invalidPsfFlag"] = False


def _moments_of(kernel: Image, half: int, sigma: float) -> Floats:
    stamp, at = MaskedImage(kernel, np.zeros(kernel.shape, np.uint16), kernel), np.array([float(half)])
    result: Floats = adaptive_moments(stamp, at, at, np.ones(1), np.array([sigma]))[0][0]
    return result


def _put_flags(
    table: Table, name: str, scene: Scene, mask: MaskPlane, depth: NDArray[np.uint16], labels: Labels
) -> None:
    x, y = (
        np.clip(np.floor(c + 0.5).astype(np.int64), 0, size - 1)
        for c, size in ((scene.shapes.x, mask.shape[1]), (scene.shapes.y, mask.shape[0]))
    )
    center = bits_about(mask, x.astype(np.float64), y.astype(np.float64), 1)
    footprint, flagged = center.copy(), (labels >= 0) & (mask != 0)
    np.bitwise_or.at(footprint, labels[flagged], mask[flagged])
    for flag, bit in _FLAGS.items():
        table[f"{name}_pixelFlags_{flag}"] = (footprint & np.uint16(bit)) != 0
        table[f"{name}_pixelFlags_{flag}Center"] = (center & np.uint16(bit)) != 0
    table[f"{name}_inputCount"], table[f"{name}_inputCount_flag"] = depth[y, x], depth[y, x] == 0
    table[f"{name}_pixelFlags_nodata"] = (mask[y, x] & np.uint16(Mask.NO_DATA)) != 0
