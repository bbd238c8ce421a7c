"""The night's sources against the simulator's truth: completeness, purity, astrometric and photometric residuals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from access.report.model import Bin, Truth
from access.robust import median, share, width
from schemas.tables import Table
from schemas.wcs import to_tangent

MATCH_ARCSEC = 1.0
REAL_SNR = 3.0
"""A detection at something that changed by less than this is noise that happened to lie there."""
BINS = (5.0, 6.0, 8.0, 12.0, 20.0, 50.0)
BRIGHT_SNR = 20.0

Floats = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]
"""A table by column."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """Of matched alerts: true S/N, offsets (mas), (measured - true) / error and relative flux error; (n,) each."""

    snr: Floats
    d_ra_mas: Floats
    d_dec_mas: Floats
    pull: Floats
    relative: Floats


@dataclass(frozen=True, eq=False)
class Compared:
    """One visit-detector: of each true change, whether it was detected and alerted on; which sources are real."""

    snr: Floats
    detected: NDArray[np.bool_]
    alerted: NDArray[np.bool_]
    real: NDArray[np.bool_]
    real_alerts: NDArray[np.bool_]
    residuals: Residuals


def read_truth(folder: Path, exposure: int, detector: int) -> Columns | None:
    """Columns of the truth table of an exposure-detector; None if there is none (a real night)."""
    path = folder / f"{exposure}-{detector:03d}.parquet"
    if not path.exists():
        return None
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


def compare(truth: Columns, sources: Table, alerted: NDArray[np.bool_]) -> Compared:
    """Match sources (`DiaSource`; `alerted`: which of them became alerts) to truth, nearest within 1 arcsec."""
    snr = np.abs(truth["snr"].astype(float))
    worth = truth["usable"].astype(bool) & (snr >= BINS[0])
    # Any of its places will do on a detector; a mean of RA would not where it passes 0.
    place = (float(truth["ra"][0]), float(truth["dec"][0])) if len(snr) else (0.0, 0.0)
    changed = snr >= REAL_SNR
    near, index = _nearest(truth["ra"][changed], truth["dec"][changed], sources["ra"], sources["dec"], place)
    found, _ = _nearest(sources["ra"], sources["dec"], truth["ra"][worth], truth["dec"][worth], place)
    told, _ = _nearest(sources["ra"][alerted], sources["dec"][alerted], truth["ra"][worth], truth["dec"][worth], place)
    matched = near & alerted
    rows = np.flatnonzero(changed)[index[matched]]
    usable = truth["usable"].astype(bool)[rows]
    residuals = _residuals(truth, rows[usable], sources[matched][usable], place)
    return Compared(snr[worth], found, told, near, near[alerted], residuals)


def _nearest(
    ra: NDArray[Any], dec: NDArray[Any], at_ra: NDArray[Any], at_dec: NDArray[Any],
    place: tuple[float, float],
) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:  # fmt: skip
    """For each place: is there a point within the radius, and which is nearest (0 where there is none)."""
    if not len(ra) or not len(at_ra):
        return np.zeros(len(at_ra), bool), np.zeros(len(at_ra), np.intp)
    tree = cKDTree(np.transpose(to_tangent(ra, dec, place)))
    distance, index = tree.query(np.transpose(to_tangent(at_ra, at_dec, place)))
    near = distance * 3600.0 <= MATCH_ARCSEC
    return near, np.where(near, index, 0)


def _residuals(truth: Columns, rows: NDArray[np.intp], sources: Table, place: tuple[float, float]) -> Residuals:
    x, y = to_tangent(sources["ra"], sources["dec"], place)
    tx, ty = to_tangent(truth["ra"][rows], truth["dec"][rows], place)
    true = truth["difference_flux"][rows].astype(float)
    error = sources["psfFlux"] - true
    return Residuals(
        np.abs(truth["snr"][rows].astype(float)), (x - tx) * 3.6e6, (y - ty) * 3.6e6,
        error / sources["psfFluxErr"], error / true,
    )  # fmt: skip


_NONE = Residuals(*(np.zeros(0) for _ in range(5)))


def joined(parts: Sequence[Compared]) -> Residuals:
    """The residuals of all visit-detectors."""
    every = [part.residuals for part in parts] or [_NONE]
    return Residuals(*(np.concatenate([getattr(r, name) for r in every]) for name in Residuals.__annotations__))


def summary(parts: Sequence[Compared]) -> Truth:
    """The night's figures."""
    residuals = joined(parts)
    real = np.concatenate([p.real for p in parts]) if parts else np.zeros(0, bool)
    alerts = np.concatenate([p.real_alerts for p in parts]) if parts else np.zeros(0, bool)
    finite = np.isfinite(residuals.pull)
    bright = finite & (residuals.snr >= BRIGHT_SNR)
    distance = np.hypot(residuals.d_ra_mas, residuals.d_dec_mas)
    return Truth(
        completeness=_bins(parts), purity=share(alerts), purity_before_score=share(real),
        position_mas=median(distance), position_width_mas=width(residuals.d_ra_mas),
        flux_bias=median(residuals.relative[bright]), flux_pull_width=width(residuals.pull[finite]),
        matched=len(distance),
    )  # fmt: skip


def _bins(parts: Sequence[Compared]) -> list[Bin]:
    snr, found, told = (
        np.concatenate([getattr(p, name) for p in parts]) if parts else np.zeros(0)
        for name in ("snr", "detected", "alerted")
    )
    result = []
    for low, high in zip(BINS, (*BINS[1:], np.inf), strict=True):
        inside = (snr >= low) & (snr < high)
        result.append(
            Bin(
                snr_min=low, snr_max=high if np.isfinite(high) else None, true=int(inside.sum()),
                detected=share(found[inside]), alerted=share(told[inside]),
            )
        )  # fmt: skip
    return result
