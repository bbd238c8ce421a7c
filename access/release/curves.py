"""Light curves to be looked at: of the objects that vary most, with what they truly did."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from access.release.given import PatchTables, Reference, primary
from access.release.held import MATCH_ARCSEC, Held
from access.release.repeated import usable
from schemas.tables import Table
from schemas.wcs import separation_arcsec

MOST = 8
"""How many are shown."""
_FEWEST_POINTS = 4

POINT_DTYPE = np.dtype([("mjd", "f8"), ("band", "U1"), ("flux", "f4"), ("err", "f4"), ("true", "f4")])
"""nJy; true: that moment's, NaN without a reference."""


@dataclass(frozen=True, eq=False)
class Curve:
    """An object (deg ICRS) of a kind, "" where none is known; `chi2_dof`: of a constant. `points`: POINT_DTYPE."""

    object_id: int
    kind: str
    ra: float
    dec: float
    chi2_dof: float
    points: Table


def curves(patch: PatchTables, held: Held) -> list[Curve]:
    """The patch's objects that vary most, of each kind that varies, if there is a truth; without `true`."""
    good, kinds = usable(patch.forced), _kinds(held)
    places = {int(row["objectId"]): (float(row["coord_ra"]), float(row["coord_dec"])) for row in primary(patch.objects)}
    found = [
        Curve(key, kinds.get(key, ""), *places[key], chi2_dof, np.zeros(0, POINT_DTYPE))
        for key, chi2_dof in _variability(good)
        if chi2_dof > 0.0 and key in places and (not kinds or key in kinds)
    ]
    return [replace(curve, points=_points(good[good["objectId"] == curve.object_id])) for curve in most(found)]


def most(found: Sequence[Curve]) -> list[Curve]:
    """Those that vary most; of each kind as many, if there are so many."""
    kinds = sorted({curve.kind for curve in found})
    ordered = sorted(found, key=lambda curve: -curve.chi2_dof)
    each = MOST // max(len(kinds), 1)
    return [curve for kind in kinds for curve in [c for c in ordered if c.kind == kind][:each]]


def _kinds(held: Held) -> dict[int, str]:
    """What varies, by the ids of objects."""
    rows = held.objects[np.isin(held.objects["kind"], ["variable", "transient"])]
    return dict(zip(rows["objectId"].tolist(), rows["kind"].tolist(), strict=True))


def _variability(forced: Table) -> Iterable[tuple[int, float]]:
    """Objects' ids, and their chi2 a degree of freedom about each band's mean, 0 of few."""
    ids, chosen = np.unique(forced["objectId"], return_inverse=True)
    names, band = np.unique(forced["band"], return_inverse=True)
    _, first, group = np.unique(chosen * len(names) + band, return_index=True, return_inverse=True)
    flux, weight = forced["psfFlux"].astype(np.float64), forced["psfFluxErr"].astype(np.float64) ** -2.0
    mean = np.bincount(group, weight * flux) / np.bincount(group, weight)
    chi2 = np.bincount(chosen, weight * (flux - mean[group]) ** 2, len(ids))
    freedom = np.bincount(chosen, minlength=len(ids)) - np.bincount(chosen[first], minlength=len(ids))
    chi2_dof = np.where(freedom >= _FEWEST_POINTS - 1, chi2 / np.maximum(freedom, 1), 0.0)
    return zip(ids.tolist(), chi2_dof.tolist(), strict=True)


def _points(forced: Table) -> Table:
    points = np.zeros(len(forced), POINT_DTYPE)
    for name, official in (("mjd", "expMidptMJD"), ("band", "band"), ("flux", "psfFlux"), ("err", "psfFluxErr")):
        points[name] = forced[official]
    points["true"] = np.nan
    return points[np.argsort(points["mjd"], kind="stable")]


def overlaid(shown: Sequence[Curve], reference: Reference) -> list[Curve]:
    """Curves with what the reference says of each of their moments, asked for in the order of time."""
    result = [replace(curve, points=curve.points.copy()) for curve in shown]
    moments = [(point["mjd"], curve, point) for curve in result for point in curve.points]
    for mjd, curve, point in sorted(moments, key=lambda moment: float(moment[0])):
        point["true"] = _true(curve, reference, str(point["band"]), float(mjd))
    return result


def _true(curve: Curve, reference: Reference, band: str, mjd: float) -> float:
    """The flux (nJy); of what is not on a sky of which all is known, 0."""
    sky = reference.sources(curve.ra, curve.dec, 2.0 * MATCH_ARCSEC / 3600.0, band, mjd)
    sky = sky[sky["kind"] == curve.kind]
    if not len(sky):
        return 0.0 if reference.complete else np.nan
    return float(sky["flux"][np.argmin(separation_arcsec(sky["ra"], sky["dec"], curve.ra, curve.dec))])
