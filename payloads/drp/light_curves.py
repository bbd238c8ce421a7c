"""Light curves: the forced sources of a patch's objects in order, and what each object does in each band.

Means are weighted by 1 / err**2; `Sigma` is the sample standard deviation, `MaxSlope` the greatest signed rise between
successive points, per day, as in DiaObject. A point counts where its flux is finite, its error positive and its flag
not set. Stetson's J (1996, PASP 108, 851) is that of single points, each weighing the same.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.drp_tables import forced_source_dtype, light_curve_dtype
from schemas.errors import BadData
from schemas.instrument import BANDS
from schemas.tables import Table, nulls

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def light_curves(objects: Table, forced: Sequence[Table]) -> tuple[Table, Table]:
    """Forced sources in the order of object and time, and rows of `light_curve_dtype`, by object and band.

    `objects`: rows with `objectId`, `tract`, `patch`; `forced`: tables of `forced_source_dtype`, of these objects. A
    band in which an object has no point has no row. Raises BadData for sources of other objects, and for two of one
    object in one visit and detector.
    """
    sources = np.concatenate([np.zeros(0, forced_source_dtype()), *forced])
    row = _rows_of(objects, sources)
    order = np.lexsort((sources["detector"], sources["visit"], sources["expMidptMJD"], row))
    sources, row = sources[order], row[order]
    twice = np.ones(max(len(sources) - 1, 0), np.bool_)
    for name in ("objectId", "visit", "detector"):
        twice &= sources[name][1:] == sources[name][:-1]
    if twice.any():
        again = sources[1:][twice][0]
        raise BadData(f"object {again['objectId']} comes twice in visit {again['visit']} detector {again['detector']}")
    return sources, _summaries(objects, sources, row)


def _rows_of(objects: Table, sources: Table) -> Indices:
    """The row of each source's object."""
    if not len(sources):
        return np.zeros(0, np.int64)
    order = np.argsort(objects["objectId"], kind="stable")
    ids = objects["objectId"][order]
    place = np.searchsorted(ids, sources["objectId"])
    known = place < len(ids)
    known[known] = ids[place[known]] == sources["objectId"][known]
    if not known.all():
        raise BadData(f"there is no object {sources['objectId'][~known][0]} for a forced source")
    result: Indices = order[place]
    return result


def _summaries(objects: Table, sources: Table, row: Indices) -> Table:
    good = np.isfinite(sources["psfFlux"]) & (sources["psfFluxErr"] > 0.0) & np.isfinite(sources["psfFluxErr"])
    good &= ~sources["psfFlux_flag"]
    sources, row = sources[good], row[good]
    band = _band_numbers(sources)
    key, group = np.unique(row * len(BANDS) + band, return_inverse=True)
    table = nulls(light_curve_dtype(), key.size)
    for name in ("objectId", "tract", "patch"):
        table[name] = objects[name][key // len(BANDS)]
    table["band"] = np.array(BANDS)[key % len(BANDS)]
    _put_statistics(table, sources, group)
    return table


def _band_numbers(sources: Table) -> Indices:
    band = np.full(len(sources), -1)
    for number, name in enumerate(BANDS):
        band[sources["band"] == name] = number
    if np.any(band < 0):
        raise BadData(f"a forced source of no known band: {str(sources['band'][band < 0][0])!r}")
    return band


def _put_statistics(table: Table, sources: Table, group: Indices) -> None:
    flux, error = sources["psfFlux"].astype(np.float64), sources["psfFluxErr"].astype(np.float64)
    time, rows = sources["expMidptMJD"], len(table)
    count = np.bincount(group, minlength=rows)
    weight = np.bincount(group, error**-2.0, minlength=rows)
    mean = np.bincount(group, flux * error**-2.0, minlength=rows) / weight
    off = flux - np.bincount(group, flux, minlength=rows)[group] / count[group]
    table["psfFluxNdata"], table["psfFluxMean"], table["psfFluxMeanErr"] = count, mean, weight**-0.5
    table["psfFluxErrMean"] = np.bincount(group, error, minlength=rows) / count
    table["psfFluxSigma"] = np.sqrt(_per_freedom(_sums(group, off**2, rows), count))
    pull = (flux - mean[group]) / error
    table["psfFluxChi2"] = _per_freedom(_sums(group, pull**2, rows), count)
    table["psfFluxStetsonJ"] = _stetson_j(pull, group, count)
    for first, last, values in (("psfFluxMin", "psfFluxMax", flux), ("firstMJD", "lastMJD", time)):
        table[first], table[last] = np.inf, -np.inf
        np.minimum.at(table[first], group, values)
        np.maximum.at(table[last], group, values)
    table["psfFluxMaxSlope"] = _max_slope(flux, time, group, rows)


def _sums(group: Indices, values: Floats, rows: int) -> Floats:
    return np.bincount(group, values, minlength=rows).astype(np.float64)


def _per_freedom(squares: Floats, count: NDArray[np.int_]) -> Floats:
    """Sums of squares over count - 1, NaN of one point."""
    result: Floats = np.divide(squares, count - 1, where=count > 1, out=np.full(count.size, np.nan))
    return result


def _stetson_j(pull: Floats, group: Indices, count: NDArray[np.int_]) -> Floats:
    """The mean of sign(p) sqrt(|p|) with p = pull**2 - 1, pulls scaled by sqrt(n / (n - 1)); NaN of one point."""
    scaled = pull**2 * np.divide(count, count - 1, where=count > 1, out=np.full(count.size, np.nan))[group] - 1.0
    return _sums(group, np.sign(scaled) * np.sqrt(np.abs(scaled)), count.size) / count


def _max_slope(flux: Floats, time: Floats, group: Indices, rows: int) -> Floats:
    """Greatest signed slope between successive points; NaN with fewer than two times."""
    order = np.lexsort((time, group))
    flux, time, group = flux[order], time[order], group[order]
    steps = (group[1:] == group[:-1]) & (time[1:] > time[:-1])
    slopes = np.full(rows, -np.inf)
    np.maximum.at(slopes, group[1:][steps], np.diff(flux)[steps] / np.diff(time)[steps])
    return np.where(np.isfinite(slopes), slopes, np.nan)
