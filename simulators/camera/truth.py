"""The truth about a detector's exposure, for whoever judges what was made of it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.image import Image, Observation
from schemas.instrument import PIXEL_ARCSEC
from schemas.tables import Table
from simulators.camera import hits
from simulators.camera.ccd import SATURATION_PART, defects, view
from simulators.camera.exposure import Field, Recipe, trail
from simulators.camera.products import (
    TEMPLATE_FWHM_ARCSEC,
    TEMPLATE_SECONDS,
    electrons_per_njy,
    template_variance,
)
from simulators.camera.psf import Floats, moffat, overlaps

TRUTH_DTYPE = np.dtype(
    [("id", "i8"), ("kind", "u1")]
    + [(name, "f8") for name in ("ra", "dec", "x", "y")]
    + [(name, "f4") for name in ("flux", "template_flux", "difference_flux", "snr")]
    + [("usable", "?")]
)
"""A source on the detector. ra, dec (deg ICRS) and x, y (pixels, assembled, 0-based) at the exposure's
midpoint; fluxes nJy; snr: of the difference flux measured as a point's in the whole visit, all snaps
together, signed; usable: no pixel
within 3 is saturated, bled on, bad, vignetted, under a streak, or beyond the edge."""

ARTIFACT_DTYPE = np.dtype(
    [
        ("artifact", "U9"),
        ("id", "i8"),
        ("x0", "f8"),
        ("y0", "f8"),
        ("x1", "f8"),
        ("y1", "f8"),
        ("width", "f8"),
    ]
)
"""A `streak` (its ends; 4 sigma across) or a `saturated` star (the span of its saturated pixels through its
centre: x0 to x1 along its row, y0 to y1 along its column; `id` names the source)."""

_CLEAR = 3
_READOUT_S = 2.0
_FWHM_PER_SIGMA = 2.3548


def sources_truth(field: Field, recipe: Recipe, charge: Image) -> Table:
    """TRUTH_DTYPE rows of the sources centred on the detector; `charge`: of `FocalPlane.charge`."""
    ny, nx = charge.shape
    table: Table = np.zeros(len(field.sources), TRUTH_DTYPE)
    for name in ("id", "kind", "ra", "dec", "flux", "template_flux"):
        table[name] = field.sources[name]
    table["x"], table["y"] = field.shapes["x"], field.shapes["y"]
    for k in np.flatnonzero(~field.still):
        x, y = trail(field.sources[k], field.wcs, recipe)
        table["x"][k], table["y"][k] = x.mean(), y.mean()
        table["ra"][k], table["dec"][k] = field.wcs.pixel_to_sky(x.mean(), y.mean())
    on = (table["x"] > -0.5) & (table["x"] < nx - 0.5) & (table["y"] > -0.5) & (table["y"] < ny - 0.5)
    sources = field.sources[on]
    table = table[on]
    table["difference_flux"] = table["flux"] - table["template_flux"]
    _usable(table, spoilt(field, recipe.observation, charge))
    for k in np.flatnonzero(table["difference_flux"] != 0.0):
        table["snr"][k] = difference_snr(field, recipe.observation, table[k], sources[k])
    return table


def saturated(field: Field, charge: Image) -> NDArray[np.bool_]:
    """(ny, nx): where the charge reaches what calibration calls saturated."""
    form = field.chip.detector.format
    result: NDArray[np.bool_] = np.empty(charge.shape, np.bool_)
    for amplifier in field.chip.detector.amplifiers:
        shape = form.amp_height, form.amp_width
        limit = SATURATION_PART * field.chip.full_well[amplifier.index]
        view(result, amplifier, shape)[:] = view(charge, amplifier, shape) >= limit
    return result


def spoilt(field: Field, observation: Observation, charge: Image) -> NDArray[np.bool_]:
    """(ny, nx): saturated, bled on, bad, vignetted, or under a streak."""
    result: NDArray[np.bool_] = saturated(field, charge) | (defects(field.chip) != 0)
    path = hits.streak(field.seed, observation.exposure)
    if path is not None and hits.streak_ends(path, field.chip.detector) is not None:
        a, b, c = path.in_pixels(field.chip.detector)
        y, x = np.ogrid[: charge.shape[0], : charge.shape[1]]
        result |= np.abs(a * x + b * y - c) < 4.0 * path.sigma
    return result


def _usable(table: Table, bad: NDArray[np.bool_]) -> None:
    ny, nx = bad.shape
    x, y = np.rint(table["x"]).astype(int), np.rint(table["y"]).astype(int)
    inside = (x >= _CLEAR) & (y >= _CLEAR) & (x < nx - _CLEAR) & (y < ny - _CLEAR)
    for k in np.flatnonzero(inside):
        around = bad[y[k] - _CLEAR : y[k] + _CLEAR + 1, x[k] - _CLEAR : x[k] + _CLEAR + 1]
        table["usable"][k] = not around.any()


def difference_snr(field: Field, observation: Observation, row: np.void, source: np.void) -> float:
    """Of a point source's flux in the visit's difference image, measured with its PSF and equal weights.

    The variance: sky, neighbours and read noise over the PSF's effective area; the source's own photons; the
    template's noise after it was blurred to this PSF (Gaussian approximation of both PSFs); its source's
    photons.
    """
    weight = moffat().weight
    cov = field.psf.covariances(row["x"], row["y"]) + _trail_moments(field, observation, source)
    squared, cubed = overlaps(weight, cov)
    area, shot = 1.0 / squared, cubed / squared**2
    x, y = int(np.rint(row["x"])), int(np.rint(row["y"]))
    gain = field.conditions.zero_point * float(field.response[y, x])
    seconds = observation.n_snaps * observation.exposure_time
    own = float(row["flux"]) * gain * (_value(weight, cov, x - row["x"], y - row["y"]) if _is_drawn(source) else 0.0)
    floor = 0.9 * field.conditions.sky * float(field.response[y, x])
    light = max(float(field.light[y, x]) - own, floor) + float(field.chip.dark.mean())
    read = observation.n_snaps * float(np.mean(field.chip.read_noise**2))
    science = area * (light * seconds + read) + float(row["flux"]) * gain * seconds * shot
    rate = electrons_per_njy(observation.band) * TEMPLATE_SECONDS
    blurred = _blurred(area / (4.0 * np.pi))
    template = area * template_variance(observation.band) * blurred + float(row["template_flux"]) * shot / rate
    per_njy = gain * seconds
    return float(row["difference_flux"]) * per_njy / float(np.sqrt(science + template * per_njy**2))


def _blurred(science_variance: float) -> float:
    """How much matching lowers the template's variance: s^2 / (2 s^2 - t^2), s and t Gaussian widths."""
    template = (TEMPLATE_FWHM_ARCSEC / PIXEL_ARCSEC / _FWHM_PER_SIGMA) ** 2
    return science_variance / max(2.0 * science_variance - template, 0.5 * science_variance)


def _is_drawn(source: np.void) -> bool:
    """Whether the field's light holds it as a point: movers are drawn by exposure, galaxies are no points."""
    return bool(source["radius"] == 0.0 and source["rate_ra"] == 0.0 and source["rate_dec"] == 0.0)


def _trail_moments(field: Field, observation: Observation, source: np.void) -> Floats:
    """xx, xy, yy (pixels squared) of what a mover draws through the whole visit: a segment, length^2 / 12."""
    span = observation.n_snaps * (observation.exposure_time + _READOUT_S) - _READOUT_S
    path = np.array([source["rate_ra"], source["rate_dec"]]) * span / 3600.0
    dx, dy = np.linalg.inv(field.wcs.cd) @ path
    return np.array([dx * dx, dx * dy, dy * dy]) / 12.0


def _value(weight: Floats, cov: Floats, dx: float, dy: float) -> float:
    """A sum of Gaussians of unit flux at an offset from its centre (pixels)."""
    xx, xy, yy = cov.T
    det = xx * yy - xy * xy
    exponent = (yy * dx * dx - 2.0 * xy * dx * dy + xx * dy * dy) / det
    return float(np.sum(weight / (2.0 * np.pi * np.sqrt(det)) * np.exp(-0.5 * exponent)))


def artifacts_truth(field: Field, recipe: Recipe, charge: Image, table: Table) -> Table:
    """ARTIFACT_DTYPE rows of a detector's exposure; `table`: its `sources_truth`."""
    rows = []
    path = hits.streak(field.seed, recipe.observation.exposure)
    ends = None if path is None else hits.streak_ends(path, field.chip.detector)
    if path is not None and ends is not None:
        rows.append(("streak", 0, *ends[0], *ends[1], 8.0 * path.sigma))
    full = saturated(field, charge)
    x, y = np.rint(table["x"]).astype(int), np.rint(table["y"]).astype(int)
    for k in np.flatnonzero(full[y, x]):
        x0, x1 = _span(full[y[k]], x[k])
        y0, y1 = _span(full[:, x[k]], y[k])
        rows.append(("saturated", table["id"][k], x0, y0, x1, y1, x1 - x0 + 1))
    return np.array(rows, ARTIFACT_DTYPE)


def _span(line: NDArray[np.bool_], at: int) -> tuple[int, int]:
    """First and last index of the run of true values that holds `at`."""
    before, after = np.flatnonzero(~line[:at]), np.flatnonzero(~line[at:])
    first = int(before[-1]) + 1 if len(before) else 0
    return first, at + int(after[0]) - 1 if len(after) else len(line) - 1


def write_truth(folder: Path, recipe: Recipe, field: Field, charge: Image) -> None:
    """Write `{exposure}-{detector:03d}.parquet` and `...-artifacts.parquet`, whole or not at all."""
    table = sources_truth(field, recipe, charge)
    name = f"{recipe.observation.exposure}-{field.chip.detector.id:03d}"
    _write(folder / f"{name}-artifacts.parquet", artifacts_truth(field, recipe, charge, table))
    _write(folder / f"{name}.parquet", table)


def _write(path: Path, rows: Table) -> None:
    names = rows.dtype.names or ()
    partial = path.with_suffix(".partial")
    pq.write_table(
        pa.table(
            {
                name: pa.array(
                    rows[name].tolist() if rows.dtype[name].kind == "U" else np.ascontiguousarray(rows[name])
                )
                for name in names
            }
        ),
        partial,
    )
    partial.replace(path)
