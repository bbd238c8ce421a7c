"""From what was kept of the patches to the release's figures."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from access import robust
from access.release.examine import Examined
from access.release.held import DETECTED_SNR
from access.release.model import Band, FalseObjects, Fluxes, Found, Repeats, Told
from access.release.repeated import BRIGHT_SNR, MMAG, as_of_many
from schemas.tables import Table

MAG_STEP = 0.5
FALSE_SNR = (0.0, 5.0, 6.0, 8.0, 12.0, 20.0, 50.0)
BRIGHT_COADD_SNR = 100.0
"""In a coadd, of what positions and fluxes are judged by."""

Floats = NDArray[np.float64]


def band_of(release: Examined, band: str) -> Band:
    """All that is said of a band."""
    held, depth = (table[table["band"] == band] for table in (release.held.sources, release.depth))
    stars, galaxies = held[held["kind"] == "star"], held[held["kind"] == "galaxy"]
    found, found_galaxies = (by_magnitude(rows, _found) for rows in (stars, galaxies))
    alone = stars[stars["alone"] & np.isfinite(stars["psf"])]
    single = galaxies[galaxies["alone"] & np.isfinite(galaxies["kron"])]
    return Band(
        band=band, visits=round(robust.median(depth["visits"]) or 0), objects=int(depth["objects"].sum()),
        depth_mag=robust.median(depth["depth_mag"][np.isfinite(depth["depth_mag"])]),
        stars=found, galaxies=found_galaxies,
        stars_alone=by_magnitude(stars[stars["alone"]], _found),
        galaxies_alone=by_magnitude(galaxies[galaxies["alone"]], _found),
        stars_50_mag=half_found(found), galaxies_50_mag=half_found(found_galaxies),
        **positions(_bright(alone)), star_bias_mmag=_bias(_bright(alone)["psf"]),
        galaxy_bias_mmag=_bias(_bright(single)["kron"]),
        star_fluxes=by_magnitude(alone, _star_fluxes),
        galaxy_fluxes=by_magnitude(single, _galaxy_fluxes),
        told_apart=by_magnitude(held[held["objectId"] != 0], _told) if len(galaxies) else [],
        repeats=repeats(release, band),
    )  # fmt: skip


def _bright(rows: Table) -> Table:
    return rows[rows["snr"] >= BRIGHT_COADD_SNR]


def _bias(ratio: NDArray[Any]) -> float | None:
    """In mmag too faint."""
    return _finite(robust.median(_magnitudes(ratio[np.isfinite(ratio)])))


def by_magnitude(rows: Table, figures: Callable[[float, float, Table], Any]) -> list[Any]:
    """Figures of the rows in each half magnitude that has any."""
    number = np.floor(rows["mag"].astype(np.float64) / MAG_STEP)
    return [
        figures(float(k * MAG_STEP), float((k + 1) * MAG_STEP), rows[number == k]) for k in np.unique(number).tolist()
    ]


def wilson(found: int, true: int) -> tuple[float, float]:
    """The 68 % interval of a share (Wilson 1927, JASA 22, 209)."""
    share = found / true
    middle, half = (share + 0.5 / true), np.sqrt(share * (1.0 - share) / true + 0.25 / true**2)
    return float((middle - half) / (1.0 + 1.0 / true)), float((middle + half) / (1.0 + 1.0 / true))


def _found(low: float, high: float, rows: Table) -> Found:
    detected = (rows["objectId"] != 0) & (rows["snr"] >= DETECTED_SNR)
    n = int(detected.sum())
    least, most = wilson(n, len(rows))
    return Found(mag_min=low, mag_max=high, true=len(rows), share=n / len(rows), low=least, high=most)


def half_found(bins: Sequence[Found]) -> float | None:
    """The magnitude at which the share falls to one half, straight between the bins' middles; None if it never does."""
    for one, other in pairwise(bins):
        if one.share >= 0.5 > other.share:
            part = (one.share - 0.5) / (one.share - other.share)
            return middle(one) + part * (middle(other) - middle(one))
    return None


def middle(one: Found | Fluxes | Told) -> float:
    """The middle of a bin."""
    return 0.5 * (one.mag_min + one.mag_max)


def positions(stars: Table) -> dict[str, float | None]:
    """`ra_mas`, `dec_mas`, `position_rms_mas`, `position_width_mas` of stars."""
    if len(stars) < 4:
        return dict.fromkeys(("ra_mas", "dec_mas", "position_rms_mas", "position_width_mas"))
    offsets = np.stack([stars["d_ra_mas"], stars["d_dec_mas"]]).astype(np.float64)
    about = offsets - np.median(offsets, axis=1)[:, None]
    return {
        "ra_mas": float(np.median(offsets[0])), "dec_mas": float(np.median(offsets[1])),
        "position_rms_mas": float(np.sqrt(np.mean(about**2))), "position_width_mas": robust.width(about.ravel()),
    }  # fmt: skip


def _magnitudes(ratio: NDArray[Any]) -> Floats:
    """In mmag too faint, measured over true fluxes; infinite for what is not positive."""
    with np.errstate(divide="ignore"):
        result: Floats = -1000.0 * 2.5 * np.log10(np.maximum(ratio.astype(np.float64), 0.0))
    return result


def _fluxes(low: float, high: float, ratio: NDArray[Any], pull: NDArray[Any]) -> Fluxes:
    off = _magnitudes(ratio[np.isfinite(ratio)])
    pull = pull[np.isfinite(pull)]
    return Fluxes(
        mag_min=low, mag_max=high, n=len(off), bias_mmag=_finite(robust.median(off)),
        scatter_mmag=_finite(_width(off)), pull=robust.median(pull), pull_width=robust.width(pull),
    )  # fmt: skip


def _width(values: Floats) -> float | None:
    """As `robust.width`, None if a quarter of the values is infinite."""
    return robust.width(values) if np.mean(np.isfinite(values)) > 0.75 else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _star_fluxes(low: float, high: float, rows: Table) -> Fluxes:
    return _fluxes(low, high, rows["psf"], rows["pull"])


def _galaxy_fluxes(low: float, high: float, rows: Table) -> Fluxes:
    return _fluxes(low, high, rows["kron"], np.zeros(0))


def _told(low: float, high: float, rows: Table) -> Told:
    known = rows[np.isfinite(rows["extended"])]
    as_star = known["extended"] < 0.5
    star, galaxy = known["kind"] == "star", known["kind"] == "galaxy"
    return Told(
        mag_min=low, mag_max=high, stars=int(star.sum()), galaxies=int(galaxy.sum()),
        stars_as_stars=robust.share(as_star[star]), galaxies_as_stars=robust.share(as_star[galaxy]),
    )  # fmt: skip


def false_objects(objects: Table) -> list[FalseObjects]:
    """By S/N."""
    result = []
    for low, high in zip(FALSE_SNR, (*FALSE_SNR[1:], np.inf), strict=True):
        rows = objects[(objects["snr"] >= low) & (objects["snr"] < high)]
        top = float(high) if np.isfinite(high) else None
        result.append(FalseObjects(snr_min=low, snr_max=top, objects=len(rows), false=int(rows["false"].sum())))
    return result


def repeats(release: Examined, band: str) -> Repeats:
    """Constant stars in a band."""
    stars, visits, pairs = (
        getattr(release.repeated, name)[getattr(release.repeated, name)["band"] == band]
        for name in ("stars", "visits", "pairs")
    )
    bright = stars[stars["snr"] >= BRIGHT_SNR]
    pull = visits["pull"][np.isfinite(visits["pull"])]
    points = int(bright["n"].sum())
    return Repeats(
        stars=len(bright), pairs=len(pairs), pa1_mmag=robust.median(as_of_many(bright["rms_mmag"], bright["n"])),
        pf1=float(bright["beyond"].sum() / points) if points else None,
        chi2_dof=robust.median(as_of_many(np.sqrt(stars["chi2_dof"]), stars["n"]) ** 2), pull_width=robust.width(pull),
        zero_point_mmag=_zero_points(visits[visits["snr"] >= BRIGHT_SNR]),
        forced_bias_mmag=_bias(bright["from_true"]),
        am1_mas=robust.median(as_of_many(pairs["rms_mas"], pairs["n"])),
    )  # fmt: skip


def _zero_points(visits: Table) -> float | None:
    """Scatter of the visit-detectors, mmag."""
    off = visit_offsets(visits)["off_mmag"]
    return float(np.std(off)) if len(off) >= 2 else None


OFFSET_DTYPE = np.dtype([("visit", "i8"), ("detector", "i4"), ("off_mmag", "f8"), ("n", "i4")])
"""The median offset of a visit-detector's stars, mmag too bright."""
_FEWEST_STARS = 5


def visit_offsets(visits: Table) -> Table:
    """OFFSET_DTYPE rows of those with five stars or more."""
    keys, number, count = np.unique(visits[["visit", "detector"]], return_inverse=True, return_counts=True)
    order = np.argsort(number, kind="stable")
    parts = np.split(visits["off"][order], np.cumsum(count)[:-1]) if len(keys) else []
    rows = np.zeros(len(keys), OFFSET_DTYPE)
    rows["visit"], rows["detector"], rows["n"] = keys["visit"], keys["detector"], count
    rows["off_mmag"] = [MMAG * np.median(part) for part in parts]
    return rows[count >= _FEWEST_STARS]
