"""A patch's objects held to what is on the sky: each source found or not, how far off, how wrong its fluxes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from access.release.given import RADIUS_DEG, REFERENCE_DTYPE, PatchTables, Reference, ab_mag, flagged, primary
from schemas.skymap import Tract
from schemas.tables import Table
from schemas.wcs import to_tangent

MATCH_ARCSEC = 0.5
FALSE_ARCSEC = 1.0
"""An object farther than this from everything is at nothing."""
DETECTED_SNR = 5.0
ALONE_ARCSEC = 3.0
ALONE_SHARE = 0.01
"""A source is alone if the others within `ALONE_ARCSEC` have less than this part of its flux, together."""

HELD_DTYPE = np.dtype(
    [
        ("band", "U1"),
        ("kind", "U9"),
        ("objectId", "i8"),
        ("mag", "f4"),
        ("flux", "f8"),
        ("visits", "i2"),
        ("alone", "?"),
    ]
    + [(name, "f4") for name in ("snr", "d_ra_mas", "d_dec_mas", "psf", "kron", "pull", "extended")]
)
"""A source of the reference in a band, in whose sky there are `visits`. mag, flux: its mean's (AB, nJy).

objectId: of its object, 0 if there is none; of that object snr, the offsets (measured - true), psf and kron:
measured over true flux; pull: (measured - true) / error of the PSF flux; extended: refExtendedness. NaN for none.
"""

OBJECT_DTYPE = np.dtype([("objectId", "i8"), ("kind", "U9"), ("snr", "f4"), ("false", "?")])
"""An object; kind: of what it is, "" if nothing is known; snr: the greatest over the bands; false: nothing is near."""

_CHANGING_SHARE = 0.1
"""An object in which a transient has this part of the light is the transient."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Held:
    """`sources`: rows of HELD_DTYPE; `objects`: of OBJECT_DTYPE."""

    sources: Table
    objects: Table


def hold(patch: PatchTables, reference: Reference | None) -> Held:
    """Hold a patch to a reference; without one nothing is, and no object is said to be false."""
    objects = primary(patch.objects)
    told = objects_of(objects, patch.bands)
    if reference is None:
        return Held(np.zeros(0, HELD_DTYPE), told)
    rows, everything = [], [np.zeros(0, REFERENCE_DTYPE)]
    for band in patch.bands:
        mjd = float(np.mean(list(patch.visits(band).values())))
        sky = reference.sources(*patch.middle, RADIUS_DEG, band, mjd)
        sky = sky[(sky["mean_flux"] > 0.0) | (sky["flux"] > 0.0)]
        everything.append(sky)
        lasting = sky[sky["mean_flux"] > 0.0]
        found = match(lasting, objects, patch.middle)
        rows.append(_held(patch, objects, band, lasting, found))
        told["kind"][found[found >= 0]] = lasting["kind"][found >= 0]
        _name_transients(told, sky[sky["mean_flux"] == 0.0], objects, band, patch.middle)
    if reference.complete:
        told["false"] = ~_near(np.concatenate(everything), objects, patch.middle)
    return Held(np.concatenate([np.zeros(0, HELD_DTYPE), *rows]), told)


def _name_transients(told: Table, sky: Table, objects: Table, band: str, middle: tuple[float, float]) -> None:
    sky = sky.copy()
    sky["mean_flux"] = sky["flux"]  # of two at one object, the brighter is the one
    found = match(sky, objects, middle)
    sky, found = sky[found >= 0], found[found >= 0]
    bright = sky["flux"] > _CHANGING_SHARE * objects[f"{band}_psfFlux"][found]
    told["kind"][found[bright]] = sky["kind"][bright]


def objects_of(objects: Table, bands: tuple[str, ...]) -> Table:
    """OBJECT_DTYPE rows, none said to be false."""
    told = np.zeros(len(objects), OBJECT_DTYPE)
    told["objectId"] = objects["objectId"]
    told["snr"] = np.nan_to_num([snr_of(objects, band) for band in bands] or np.zeros((1, len(objects)))).max(0)
    return told


def snr_of(objects: Table, band: str) -> Floats:
    """Of the PSF fluxes in a band; NaN where there is none."""
    return _over(objects[f"{band}_psfFlux"], objects[f"{band}_psfFluxErr"])


def _held(patch: PatchTables, objects: Table, band: str, sky: Table, found: NDArray[np.intp]) -> Table:
    """HELD_DTYPE rows of what lies in the patch and is covered; `found`: the object's row of each source."""
    alone = _alone(sky, patch.middle)
    own = _within(patch, sky)
    visits = np.zeros(len(sky), np.int16)
    visits[own] = patch.visits_at(band, sky["ra"][own], sky["dec"][own])
    own &= visits > 0
    rows = np.zeros(int(own.sum()), HELD_DTYPE)
    rows["band"], rows["kind"], rows["flux"] = band, sky["kind"][own], sky["mean_flux"][own]
    rows["mag"] = ab_mag(rows["flux"])
    rows["visits"], rows["alone"] = visits[own], alone[own]
    _measure(rows, sky[own], objects, found[own], band)
    return rows


def _within(patch: PatchTables, sky: Table) -> NDArray[np.bool_]:
    """Whether it is this patch that a source's object is primary in, whatever its position's error."""
    x, y = patch.plane.wcs.sky_to_pixel(sky["ra"], sky["dec"])
    box, rim = Tract.patch_box(patch.patch), 5
    result: NDArray[np.bool_] = (
        (x >= box.x0 + rim) & (x < box.x1 - rim) & (y >= box.y0 + rim) & (y < box.y1 - rim)
    )  # fmt: skip
    return result


def _measure(rows: Table, sky: Table, objects: Table, found: NDArray[np.intp], band: str) -> None:
    """Fill in what the objects say; `found`: of each row its object, -1 for none."""
    none = found < 0
    if not len(objects):
        none[:], objects = True, np.zeros(1, objects.dtype)
    mine = objects[np.where(none, 0, found)]
    flux, error = mine[f"{band}_psfFlux"].astype(np.float64), mine[f"{band}_psfFluxErr"]
    flux[flagged(mine, f"{band}_psfFlux_flag", f"{band}_pixelFlags_saturatedCenter")] = np.nan
    rows["objectId"] = np.where(none, 0, mine["objectId"])
    rows["snr"], rows["pull"] = snr_of(mine, band), _over(flux - rows["flux"], error)
    rows["psf"], rows["extended"] = flux / rows["flux"], mine["refExtendedness"]
    rows["kron"] = np.where(mine[f"{band}_kronFlux_flag"], np.nan, mine[f"{band}_kronFlux"]) / rows["flux"]
    rows["d_dec_mas"] = (mine["coord_dec"] - sky["dec"]) * 3.6e6
    east = np.mod(mine["coord_ra"] - sky["ra"] + 180.0, 360.0) - 180.0
    rows["d_ra_mas"] = east * np.cos(np.radians(sky["dec"])) * 3.6e6
    for name in ("snr", "pull", "psf", "kron", "extended", "d_ra_mas", "d_dec_mas"):
        rows[name][none] = np.nan


def match(sky: Table, objects: Table, middle: tuple[float, float]) -> NDArray[np.intp]:
    """Of each source the row of its object, nearest within `MATCH_ARCSEC`; -1 for none.

    An object is one source's, that of the brightest where it is the nearest to several: a blend is found once.
    """
    found = np.full(len(sky), -1, np.intp)
    if not len(sky) or not len(objects):
        return found
    distance, nearest = _tree(objects["coord_ra"], objects["coord_dec"], middle).query(_plane(sky, middle))
    bright_first = np.argsort(-sky["mean_flux"], kind="stable")
    bright_first = bright_first[distance[bright_first] * 3600.0 <= MATCH_ARCSEC]
    taken, first = np.unique(nearest[bright_first], return_index=True)
    found[bright_first[first]] = taken
    return found


def _near(sky: Table, objects: Table, middle: tuple[float, float]) -> NDArray[np.bool_]:
    """Whether objects have a source within `FALSE_ARCSEC`."""
    if not len(sky) or not len(objects):
        return np.zeros(len(objects), bool)
    x, y = to_tangent(objects["coord_ra"], objects["coord_dec"], middle)
    distance, _ = _tree(sky["ra"], sky["dec"], middle).query(np.transpose([x, y]))
    result: NDArray[np.bool_] = distance * 3600.0 <= FALSE_ARCSEC
    return result


def _alone(sky: Table, middle: tuple[float, float]) -> NDArray[np.bool_]:
    """Whether sources have no neighbours that matter."""
    others = np.zeros(len(sky))
    if len(sky):
        pairs = _tree(sky["ra"], sky["dec"], middle).query_pairs(ALONE_ARCSEC / 3600.0, output_type="ndarray")
        for one, other in (pairs.T, pairs.T[::-1]):
            np.add.at(others, one, sky["mean_flux"][other])
    result: NDArray[np.bool_] = others < ALONE_SHARE * sky["mean_flux"]
    return result


def _tree(ra: Floats, dec: Floats, middle: tuple[float, float]) -> cKDTree:
    return cKDTree(np.transpose(to_tangent(ra, dec, middle)))


def _plane(sky: Table, middle: tuple[float, float]) -> Floats:
    return np.transpose(to_tangent(sky["ra"], sky["dec"], middle))


def _over(values: Floats, errors: Floats) -> Floats:
    """Values in units of their errors; NaN where there is no error."""
    result: Floats = np.divide(values, errors, out=np.full(len(values), np.nan), where=errors > 0.0)
    return result
