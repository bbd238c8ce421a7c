"""What is known of each DIAObject from all its sources: place, light curve statistics, times.

Definitions are those of the columns of `DiaObject` in `apdb.yaml`: means are weighted by 1/err**2, `Sigma`
is the sample standard deviation (n - 1), `MaxSlope` the greatest signed rise between consecutive points,
per day. A point counts where its flux is finite and its error positive.
"""

import numpy as np
from numpy.typing import NDArray

from payloads.alert_production.packets import HISTORY_DAYS
from payloads.alert_production.table_checks import require_columns, require_unique
from payloads.imaging.sphere import offsets_arcsec, position_at
from schemas.instrument import BANDS
from schemas.tables import Table

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_SOURCE_COLUMNS = (
    "diaSourceId", "diaObjectId", "midpointMjdTai", "timeWithdrawnMjdTai", "band",
    "ra", "dec", "raErr", "decErr", "ra_dec_Cov", "psfFlux", "psfFluxErr", "scienceFlux", "scienceFluxErr",
)  # fmt: skip
_FORCED_COLUMNS = (
    "diaForcedSourceId", "diaObjectId", "midpointMjdTai", "timeWithdrawnMjdTai", "band", "psfFlux", "psfFluxErr",
)  # fmt: skip


def update(objects: Table, history: Table, found: Table, forced: Table, processed: float) -> Table:
    """New versions of `objects` (`DiaObject`, in the same order), valid from `processed` (MJD TAI).

    `history`, `found`: their `DiaSource` rows that `nDiaSources` counts already, as far back as is looked, and those
    of the visit that it does not count yet. `forced`: their `DiaForcedSource` rows. Rows of other objects, and
    withdrawn ones, are passed over. An object without sources keeps its place.

    Raises BadData for a column that lacks, or an id that comes twice in a table.
    """
    sources = np.concatenate([history, found])
    _check(objects, sources, forced)
    result = _summary(objects, sources, forced, processed)
    _, row = _of_objects(found, objects)
    result["nDiaSources"] = objects["nDiaSources"] + np.bincount(row, minlength=len(objects))
    return result


def _summary(objects: Table, sources: Table, forced: Table, processed: float) -> Table:
    """All but the count of sources."""
    result = objects.copy()
    ours, row = _of_objects(sources, objects)
    _set_positions(result, ours, row)
    _set_times(result, ours, row)
    result["validityStartMjdTai"], result["validityEndMjdTai"] = processed, np.nan
    own_forced, forced_row = _of_objects(forced, objects)
    for band in BANDS:
        mine, theirs = ours["band"] == band, own_forced["band"] == band
        _set_source_fluxes(result, band, ours[mine], row[mine])
        _set_mean(result, f"{band}_fpFluxMean", own_forced[theirs], forced_row[theirs], "psfFlux")
    return result


def remake(objects: Table, sources: Table, forced: Table, processed: float) -> Table:
    """New versions of `objects` as `update` makes them, but of `sources` alone, as if no others had ever been.

    All `sources` count, and tell the times; of what is older than the last of an object by more than `HISTORY_DAYS`
    association no longer makes means, and so it is here. `nDiaSources` of `objects`: how many stand. Where that is
    more than `sources` has of an object (old months were taken away), the others still count, and the times of the
    first and the last reach as far as before.
    """
    _check(objects, sources, forced)
    ours, row = _of_objects(sources, objects)
    counted = np.bincount(row, minlength=len(objects))
    blank, more = objects.copy(), objects["nDiaSources"] > counted
    blank["firstDiaSourceMjdTai"][~more] = np.nan
    blank["lastDiaSourceMjdTai"][~more | (counted > 0)] = np.nan
    _set_times(blank, ours, row)
    blank["nDiaSources"] = np.where(more, objects["nDiaSources"], counted)
    return _summary(blank, _recent(sources, blank), _recent(forced, blank), processed)


def _recent(table: Table, objects: Table) -> Table:
    """The rows of objects that are not too old for a mean."""
    ours, row = _of_objects(table, objects)
    recent: Table = ours[ours["midpointMjdTai"] >= objects["lastDiaSourceMjdTai"][row] - HISTORY_DAYS]
    return recent


def _check(objects: Table, sources: Table, forced: Table) -> None:
    require_columns(objects, ("diaObjectId", "ra", "dec", "nDiaSources"), "the DiaObject table")
    require_columns(sources, _SOURCE_COLUMNS, "the DiaSource table")
    require_columns(forced, _FORCED_COLUMNS, "the DiaForcedSource table")
    require_unique(objects, "diaObjectId", "the DiaObject table")
    require_unique(sources, "diaSourceId", "the DiaSource table")
    require_unique(forced, "diaForcedSourceId", "the DiaForcedSource table")


def _of_objects(table: Table, objects: Table) -> tuple[Table, Indices]:
    """The rows that belong to `objects` and stand, and for each the row of its object."""
    if not len(objects):
        return table[:0], np.zeros(0, np.int64)
    order = np.argsort(objects["diaObjectId"])
    place = np.searchsorted(objects["diaObjectId"], table["diaObjectId"], sorter=order)
    row = order[np.minimum(place, len(objects) - 1)]
    ours = (objects["diaObjectId"][row] == table["diaObjectId"]) & np.isnan(table["timeWithdrawnMjdTai"])
    return table[ours], row[ours]


def _set_positions(result: Table, sources: Table, row: Indices) -> None:
    """The mean weighted by the inverse covariances, on the tangent plane at where the object was.

    An object none of whose sources has a position error gets their plain mean, and no error.
    """
    rows = len(result)
    x, y = offsets_arcsec(sources["ra"], sources["dec"], result["ra"][row], result["dec"][row])
    wxx, wxy, wyy, known = _position_weights(sources)
    without = np.bincount(row[known], minlength=rows)[row] == 0
    wxx[without], wxy[without], wyy[without] = 1.0, 0.0, 1.0
    axx, axy, ayy = (np.bincount(row, w, minlength=rows) for w in (wxx, wxy, wyy))
    bx = np.bincount(row, wxx * x + wxy * y, minlength=rows)
    by = np.bincount(row, wxy * x + wyy * y, minlength=rows)
    has = np.bincount(row, minlength=rows) > 0
    det = np.where(has, axx * ayy - axy**2, 1.0)
    ra, dec = position_at(result["ra"], result["dec"], (ayy * bx - axy * by) / det, (axx * by - axy * bx) / det)
    result["ra"][has], result["dec"][has] = ra[has], dec[has]
    measured = np.bincount(row[known], minlength=rows) > 0
    for name, value in (("raErr", ayy / det), ("decErr", axx / det)):
        result[name][has] = np.where(measured, np.sqrt(value) / 3600.0, np.nan)[has]
    result["ra_dec_Cov"][has] = np.where(measured, -axy / det / 3600.0**2, np.nan)[has]


def _position_weights(sources: Table) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Elements xx, xy, yy of the inverse covariance (arcsec**-2), 0 where not known, and where known."""
    sxx, syy = ((sources[name].astype(np.float64) * 3600.0) ** 2 for name in ("raErr", "decErr"))
    sxy = np.nan_to_num(sources["ra_dec_Cov"].astype(np.float64)) * 3600.0**2
    det = sxx * syy - sxy**2
    known = np.isfinite(det) & (det > 0.0)
    wxx, wxy, wyy = (np.divide(s, det, where=known, out=np.zeros(len(det))) for s in (syy, -sxy, sxx))
    return wxx, wxy, wyy, known


def _set_times(result: Table, sources: Table, row: Indices) -> None:
    times = sources["midpointMjdTai"]
    first, last = np.full(len(result), np.inf), np.full(len(result), -np.inf)
    np.minimum.at(first, row, times)
    np.maximum.at(last, row, times)
    result["firstDiaSourceMjdTai"] = np.fmin(result["firstDiaSourceMjdTai"], _finite(first))
    result["lastDiaSourceMjdTai"] = np.fmax(result["lastDiaSourceMjdTai"], _finite(last))


def _set_source_fluxes(result: Table, band: str, sources: Table, row: Indices) -> None:
    """All statistics of a band's `psfFlux`, and the mean of its `scienceFlux`."""
    _set_mean(result, f"{band}_psfFluxMean", sources, row, "psfFlux")
    _set_mean(result, f"{band}_scienceFluxMean", sources, row, "scienceFlux")
    good = _measured(sources, "psfFlux")
    sources, row, rows = sources[good], row[good], len(result)
    flux, error = sources["psfFlux"].astype(np.float64), sources["psfFluxErr"].astype(np.float64)
    count = np.bincount(row, minlength=rows)
    low, high = np.full(rows, np.inf), np.full(rows, -np.inf)
    np.minimum.at(low, row, flux)
    np.maximum.at(high, row, flux)
    mean = _over(np.bincount(row, flux, minlength=rows), count)
    squares = np.bincount(row, (flux - mean[row]) ** 2, minlength=rows)
    result[f"{band}_psfFluxNdata"] = count
    result[f"{band}_psfFluxMin"], result[f"{band}_psfFluxMax"] = _finite(low), _finite(high)
    result[f"{band}_psfFluxErrMean"] = _over(np.bincount(row, error, minlength=rows), count)
    result[f"{band}_psfFluxSigma"] = np.sqrt(_over(squares, count - 1))
    result[f"{band}_psfFluxMaxSlope"] = _max_slope(flux, sources["midpointMjdTai"], row, rows)


def _set_mean(result: Table, column: str, table: Table, row: Indices, flux_column: str) -> None:
    """Weighted mean of a flux, and its standard error in `<column>Err`."""
    good = _measured(table, flux_column)
    weight = table[f"{flux_column}Err"][good].astype(np.float64) ** -2.0
    total = np.bincount(row[good], weight, minlength=len(result))
    flux = np.bincount(row[good], weight * table[flux_column][good], minlength=len(result))
    result[column], result[f"{column}Err"] = _over(flux, total), np.sqrt(_over(np.ones(len(result)), total))


def _measured(table: Table, flux_column: str) -> NDArray[np.bool_]:
    error = table[f"{flux_column}Err"]
    result: NDArray[np.bool_] = np.isfinite(table[flux_column]) & np.isfinite(error) & (error > 0.0)
    return result


def _max_slope(flux: Floats, times: Floats, row: Indices, rows: int) -> Floats:
    """Greatest signed slope between successive points of an object; NaN with fewer than two."""
    order = np.lexsort((times, row))
    flux, times, row = flux[order], times[order], row[order]
    steps = (row[1:] == row[:-1]) & (times[1:] > times[:-1])
    slopes = np.full(rows, -np.inf)
    np.maximum.at(slopes, row[1:][steps], np.diff(flux)[steps] / np.diff(times)[steps])
    return _finite(slopes)


def _over(numerator: NDArray[np.generic], denominator: NDArray[np.generic]) -> Floats:
    """The quotient, NaN where the denominator is not positive."""
    bottom = np.asarray(denominator, dtype=np.float64)
    result: Floats = np.divide(numerator, bottom, where=bottom > 0.0, out=np.full(len(bottom), np.nan))
    return result


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)
