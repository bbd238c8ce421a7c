"""How well a release repeats itself: fluxes of constant stars from visit to visit, and distances between stars.

The figures are those of the LSST Science Requirements Document (LPM-17), measured as its section 3.3.1 and 3.3.4 define
them: PA1, the scatter of a bright star's magnitudes, of which the release's is the median over stars, and AM1, that of
the distance between two stars some 5 arcmin apart, median over pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.stats import chi2

from access.release.given import PatchTables, ab_mag, flagged, primary
from access.release.held import Held
from schemas.tables import Table
from schemas.wcs import separation_arcsec, to_tangent

BRIGHT_SNR = 200.0
"""In a visit, of stars whose photometry is judged: photon noise is below 5 mmag."""
STEADY_SNR = 20.0
"""In a visit, of stars that are looked at at all."""
POSITION_SNR = 100.0
"""In a visit, of stars whose positions are: photon noise is below 5 mas in mean seeing."""
PAIR_ARCSEC = (240.0, 360.0)
_MOST_PAIRS = 3000
_SAME_ARCSEC = 0.5

STAR_DTYPE = np.dtype(
    [("band", "U1"), ("objectId", "i8")]
    + [(name, "f4") for name in ("mag", "snr", "rms_mmag", "chi2_dof", "from_true")]
    + [("n", "i4"), ("beyond", "i4")]
)
"""A constant star's fluxes over the visits of a band: mean magnitude, median S/N of a visit, scatter, from_true: the
mean over the true flux (NaN without a truth), n: visits, beyond: how many of them are off by more than PA2."""

VISIT_DTYPE = np.dtype(
    [("visit", "i8"), ("detector", "i4"), ("band", "U1"), ("snr", "f4"), ("off", "f4"), ("pull", "f4")]
)
"""A constant star in a visit. off: flux over the true one, where there is a truth, or over its own mean, less 1.
pull: (flux - its mean) / error, as the unit Gaussian has it if the errors are right."""

PAIR_DTYPE = np.dtype([("band", "U1"), ("n", "i4"), ("rms_mas", "f4")])
"""Two stars some 5 arcmin apart, that n visits of a band have both: scatter of their distance."""

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

MMAG = 2500.0 / np.log(10.0)
"""mmag of a relative change."""


def pa2_mmag(band: str) -> float:
    """How far off a measurement of a bright star is too far (LPM-17, table 14)."""
    return 22.5 if band in {"u", "z", "y"} else 15.0


def as_of_many(rms: NDArray[np.floating], n: NDArray[np.integer]) -> Floats:
    """Scatters of n values each, made so large that their median is the true scatter, as that of few values is not."""
    freedom = np.maximum(np.asarray(n, dtype=np.float64) - 1.0, 1.0)
    result: Floats = np.asarray(rms, dtype=np.float64) / np.sqrt(chi2.ppf(0.5, freedom) / freedom)
    return result


@dataclass(frozen=True, eq=False)
class Repeated:
    """Rows of STAR_DTYPE, VISIT_DTYPE and PAIR_DTYPE."""

    stars: Table
    visits: Table
    pairs: Table


def repeated(patch: PatchTables, held: Held) -> Repeated:
    """What the visits of a patch say of its constant stars."""
    stars, visits, pairs = [np.zeros(0, STAR_DTYPE)], [np.zeros(0, VISIT_DTYPE)], [np.zeros(0, PAIR_DTYPE)]
    good = usable(patch.forced)
    for band in patch.bands:
        steady = _steady(patch, held, band)
        own = good[(good["band"] == band) & np.isin(good["objectId"], steady["objectId"])]
        own = own[np.argsort(own["objectId"], kind="stable")]
        if len(own):
            ids, first, number = np.unique(own["objectId"], return_inverse=True, return_counts=True)
            true = steady["flux"][np.searchsorted(steady["objectId"], ids)]
            told, seen = _photometry(own, ids, first, number, true, band)
            stars.append(told)
            visits.append(seen)
        pairs.append(_pairs(patch, steady["objectId"], band))
    return Repeated(np.concatenate(stars), np.concatenate(visits), np.concatenate(pairs))


def usable(forced: Table) -> Table:
    """Forced sources that mean something."""
    flux, error = forced["psfFlux"], forced["psfFluxErr"]
    bad = flagged(forced, "psfFlux_flag", "invalidPsfFlag", "pixelFlags_saturatedCenter", "pixelFlags_nodata")
    bad |= flagged(forced, "pixelFlags_crCenter", "pixelFlags_edge", "pixelFlags_bad")
    result: Table = forced[np.isfinite(flux) & (error > 0.0) & np.isfinite(error) & ~bad]
    return result


_STEADY_DTYPE = np.dtype([("objectId", "i8"), ("flux", "f8")])


def _steady(patch: PatchTables, held: Held, band: str) -> Table:
    """Objects that do not vary, by their ids, and their true fluxes; without a reference all that look like stars."""
    if len(held.sources):
        rows = held.sources
        rows = rows[(rows["band"] == band) & (rows["kind"] == "star") & rows["alone"] & (rows["objectId"] != 0)]
        ids, flux = rows["objectId"], rows["flux"]
    else:
        objects = primary(patch.objects)
        objects = objects[objects["refExtendedness"] < 0.5]
        ids, flux = objects["objectId"], np.full(len(objects), np.nan)
    steady = np.zeros(len(ids), _STEADY_DTYPE)
    steady["objectId"], steady["flux"] = ids, flux
    return np.sort(steady, order="objectId")


def _photometry(
    own: Table, ids: NDArray[np.int64], star: Rows, number: NDArray[np.int64], true: Floats, band: str
) -> tuple[Table, Table]:
    """STAR_DTYPE and VISIT_DTYPE rows of forced sources in the order of their `star`, whose rows are `number` each."""
    flux, error = (own[name].astype(np.float64) for name in ("psfFlux", "psfFluxErr"))
    weight = error**-2.0
    sums = np.bincount(star, weight)
    mean = np.bincount(star, weight * flux) / sums
    off = flux - mean[star]
    told = np.zeros(len(ids), STAR_DTYPE)
    told["band"], told["objectId"], told["n"] = band, ids, number
    with np.errstate(divide="ignore", invalid="ignore"):
        told["mag"] = ab_mag(mean)
        told["rms_mmag"] = MMAG * np.sqrt(np.bincount(star, (flux - _plain(flux, star)) ** 2) / (number - 1)) / mean
        told["chi2_dof"] = np.bincount(star, weight * off**2) / (number - 1)
        told["from_true"] = mean / true
        # The mean is of the same values: a value's distance from it has the variance error**2 - 1 / sums.
        pull = off / np.sqrt(np.maximum(error**2 - 1.0 / sums[star], 0.0))
        relative = off / mean[star] * np.sqrt(number / np.maximum(number - 1, 1))[star]
    told["snr"] = _medians(flux / error, number)
    told["beyond"] = np.bincount(star, MMAG * np.abs(relative) > pa2_mmag(band))
    return _kept(told, number, own, star, np.where(np.isfinite(true), true, mean), pull)


def _kept(
    told: Table, number: NDArray[np.int64], own: Table, star: Rows, true: Floats, pull: Floats
) -> tuple[Table, Table]:
    """Of stars that are bright enough and were seen twice: themselves, and their visits."""
    keep = (number >= 2) & (told["snr"] >= STEADY_SNR)
    rows = keep[star]
    seen = np.zeros(int(rows.sum()), VISIT_DTYPE)
    for name in ("visit", "detector", "band"):
        seen[name] = own[name][rows]
    seen["off"], seen["pull"] = (own["psfFlux"] / true[star] - 1.0)[rows], pull[rows]
    seen["snr"] = told["snr"][star][rows]
    return told[keep], seen


def _plain(values: Floats, star: Rows) -> Floats:
    """Of each value the mean of its star's."""
    means: Floats = (np.bincount(star, values) / np.bincount(star))[star]
    return means


def _medians(values: Floats, number: NDArray[np.int64]) -> Floats:
    """Of runs of values, so many each."""
    return np.array([np.median(part) for part in np.split(values, np.cumsum(number)[:-1])])


def _pairs(patch: PatchTables, ids: NDArray[np.int64], band: str) -> Table:
    """PAIR_DTYPE rows; of a random choice of pairs where there are many."""
    objects = patch.objects[np.isin(patch.objects["objectId"], ids)]
    visits = np.array(sorted(patch.visits(band)), np.int64)
    seen = patch.positions[np.isin(patch.positions["visit"], visits) & (patch.positions["snr"] >= POSITION_SNR)]
    if len(objects) < 2 or len(seen) < 2:
        return np.zeros(0, PAIR_DTYPE)
    ra, dec = _by_star(objects, seen, visits, patch.middle)
    one, other = _chosen(objects, np.isfinite(ra).sum(1) >= 2, patch.middle)
    away = separation_arcsec(ra[one], dec[one], ra[other], dec[other])
    n = np.isfinite(away).sum(1)
    rows = np.zeros(int((n >= 2).sum()), PAIR_DTYPE)
    rows["band"], rows["n"] = band, n[n >= 2]
    rows["rms_mas"] = 1e3 * np.nanstd(away[n >= 2], axis=1, ddof=1)
    return rows


def _by_star(objects: Table, seen: Table, visits: NDArray[np.int64], middle: tuple[float, float]) -> list[Floats]:
    """RA and dec (stars, visits) of each star in each visit; NaN where it was not seen."""
    tree = cKDTree(np.transpose(to_tangent(objects["coord_ra"], objects["coord_dec"], middle)))
    distance, star = tree.query(np.transpose(to_tangent(seen["ra"], seen["dec"], middle)))
    same = distance * 3600.0 <= _SAME_ARCSEC
    result = []
    for name in ("ra", "dec"):
        values = np.full((len(objects), len(visits)), np.nan)
        values[star[same], np.searchsorted(visits, seen["visit"][same])] = seen[name][same]
        result.append(values)
    return result


def _chosen(objects: Table, often: NDArray[np.bool_], middle: tuple[float, float]) -> tuple[Rows, Rows]:
    """Pairs of stars at the right distance."""
    rows = np.flatnonzero(often)
    place = np.transpose(to_tangent(objects["coord_ra"][rows], objects["coord_dec"][rows], middle)) * 3600.0
    one, other = np.triu_indices(len(rows), 1)
    away = np.hypot(*(place[one] - place[other]).T)
    right = np.flatnonzero((away >= PAIR_ARCSEC[0]) & (away <= PAIR_ARCSEC[1]))
    if len(right) > _MOST_PAIRS:
        right = np.random.default_rng(0).choice(right, _MOST_PAIRS, replace=False)
    return rows[one[right]], rows[other[right]]
