"""Light curves to be looked at: of the objects that vary most, with what they truly did."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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

Floats = NDArray[np.float64]


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
    ids, chosen, chi2_dof = _variability(good)
    often = int(np.sum(chi2_dof > 0.0))
    objects = {int(row["objectId"]): row for row in primary(patch.objects)}
    found = []
    for number in np.argsort(-chi2_dof, kind="stable")[:often]:
        key = int(ids[number])
        if key in objects and (not kinds or key in kinds):
            points = _points(good[chosen == number])
            place = float(objects[key]["coord_ra"]), float(objects[key]["coord_dec"])
            found.append(Curve(key, kinds.get(key, ""), *place, float(chi2_dof[number]), points))
    return most(found)


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


def _variability(forced: Table) -> tuple[NDArray[np.int64], NDArray[np.intp], Floats]:
    """Ids of objects, each row's object among them, chi2 a degree of freedom about each band's mean, 0 of few."""
    ids, chosen = np.unique(forced["objectId"], return_inverse=True)
    _, group = np.unique(np.rec.fromarrays([chosen, forced["band"]]), return_inverse=True)
    flux, weight = forced["psfFlux"].astype(np.float64), forced["psfFluxErr"].astype(np.float64) ** -2.0
    mean = np.bincount(group, weight * flux) / np.bincount(group, weight)
    chi2 = np.bincount(chosen, weight * (flux - mean[group]) ** 2, len(ids))
    bands = np.bincount(chosen[np.unique(group, return_index=True)[1]], minlength=len(ids))
    points = np.bincount(chosen, minlength=len(ids))
    freedom = points - bands
    return ids, chosen, np.where(freedom >= _FEWEST_POINTS - 1, chi2 / np.maximum(freedom, 1), 0.0)


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
