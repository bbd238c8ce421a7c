"""Which stars of many frames are the same star, and which of the reference catalogue it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from payloads.drp.single_frame import FrameSummary
from payloads.imaging.calibrate import UNFIT
from schemas.tables import Table
from schemas.wcs import to_tangent

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LEAST_SNR = 10.0
_LINK_ARCSEC = 0.5
"""Sightings nearer to one another are one star's: ten times what preliminary maps are off, less than stars are wide."""

_SEARCH_ARCSEC = 1.0
_FEWEST = 10
_LEAST_PART = 0.1
"""Of a frame's stars, or of the references on it where they are fewer, that must be within `_SEARCH_ARCSEC`: chance
brings 5 % together at 200 000 references a square degree."""


@dataclass(frozen=True, eq=False)
class Sightings:
    """Usable stars of all frames, in order of frame: row `frame` of each, and where and how bright it is there.

    `uv`: (n, 2), position on the frame, from its centre, 1 at its longer side's edge. `plane`: (n, 2) arcsec on the
    plane tangent at the frames' common centre, by the preliminary WCS; `position_err`: arcsec an axis. Fluxes: nJy.
    """

    frame: Ints
    uv: Floats
    plane: Floats
    position_err: Floats
    flux: Floats
    flux_err: Floats

    def of(self, chosen: Bools) -> "Sightings":
        """Some of them."""
        return Sightings(*(column[chosen] for column in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Stars:
    """Stars seen in several frames, or known: each one's `reference` row, -1 for none; the star of each sighting."""

    reference: Ints
    sightings: Sightings
    star: Ints


def on_frame(summary: FrameSummary, x: Floats, y: Floats) -> Floats:
    """(n, 2): positions from the frame's centre, 1 at its longer side's edge."""
    half = max(summary.nx, summary.ny) / 2.0
    return np.stack([(x - (summary.nx - 1) / 2.0) / half, (y - (summary.ny - 1) / 2.0) / half], axis=-1)


def usable(stars: Table) -> Table:
    """The stars that tell of place and brightness: unflagged, of S/N over 10, nothing of them NaN."""
    good = (stars["flags"] & UNFIT == 0) & (stars["flux"] > LEAST_SNR * stars["flux_err"])
    good &= (stars["flux_err"] > 0) & (stars["position_err"] > 0)
    for name in ("x", "y", "position_err", "flux", "flux_err"):
        good &= np.isfinite(stars[name])
    result: Table = stars[good]
    return result


def sightings(frames: Sequence[tuple[FrameSummary, Table]], center: tuple[float, float]) -> Sightings:
    """The usable stars of frames, seen from the common centre (RA, dec, deg)."""
    return _joined([_sightings(row, summary, usable(stars), center) for row, (summary, stars) in enumerate(frames)])


def _sightings(row: int, summary: FrameSummary, stars: Table, center: tuple[float, float]) -> Sightings:
    x, y = stars["x"], stars["y"]
    plane = 3600.0 * np.stack(to_tangent(*summary.wcs.pixel_to_sky(x, y), center), axis=-1)
    errors = stars["position_err"].astype(np.float64) * summary.wcs.pixel_scale
    flux, flux_err = (stars[name].astype(np.float64) for name in ("flux", "flux_err"))
    return Sightings(np.full(len(stars), row), on_frame(summary, x, y), plane, errors, flux, flux_err)


def _joined(parts: list[Sightings]) -> Sightings:
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Sightings(*(np.concatenate(column) for column in columns))


def offsets(seen: Sightings, n_frames: int, references: Floats) -> tuple[Floats, Bools]:
    """How far (n_frames, 2; arcsec) each frame lies beside the references' plane, and which frames lie elsewhere.

    `references`: (m, 2), arcsec on the plane. A frame lies elsewhere if it has 10 stars and 10 references, but fewer
    than a tenth of them are within an arcsec of one another; if it has fewer, nothing is known: its offset is 0.
    """
    shift, elsewhere = np.zeros((n_frames, 2)), np.zeros(n_frames, bool)
    tree, by_x = cKDTree(references), references[np.argsort(references[:, 0])]
    starts = np.searchsorted(seen.frame, np.arange(n_frames + 1))
    for row in range(n_frames):
        stars = seen.plane[starts[row] : starts[row + 1]]
        there = _inside(by_x, stars)
        if min(len(stars), there) < _FEWEST:
            continue
        distance, nearest = tree.query(stars, distance_upper_bound=_SEARCH_ARCSEC)
        found = np.isfinite(distance)
        elsewhere[row] = found.sum() < _LEAST_PART * min(len(stars), there)
        if not elsewhere[row]:
            shift[row] = np.median(references[nearest[found]] - stars[found], axis=0)
    return shift, elsewhere


def _inside(by_x: Floats, stars: Floats) -> int:
    """How many of the references, in order of x, are in the box that stars span."""
    if len(stars) == 0:
        return 0
    low, high = stars.min(axis=0), stars.max(axis=0)
    first, last = np.searchsorted(by_x[:, 0], (low[0], high[0]))
    y = by_x[first:last, 1]
    return int(np.count_nonzero((y >= low[1]) & (y <= high[1])))


def link(seen: Sightings, references: Floats) -> Stars:
    """The stars. `references`: (m, 2), arcsec on the plane.

    Sightings within half an arcsec are friends, friends' friends one star; what a frame saw twice is none, nor what is
    seen once and not known.
    """
    label = _friends(seen.plane)
    twice = _seen_twice(seen.frame, label)
    known = _known(seen.plane, label, references)
    counts = np.bincount(label)
    good = ~twice & ((counts > 1) | (known >= 0))
    number = np.cumsum(good) - 1
    chosen = good[label]
    return Stars(known[good], seen.of(chosen), number[label[chosen]])


def _friends(plane: Floats) -> Ints:
    """Friends of friends; sightings in one cell of the link's size are one friend: deep fields make no more pairs."""
    cells, node = np.unique(np.floor(plane / _LINK_ARCSEC).astype(np.int64), axis=0, return_inverse=True)
    counts = np.bincount(node, minlength=len(cells))
    means = np.stack([np.bincount(node, column, len(cells)) / counts for column in plane.T], axis=1)
    pairs = cKDTree(means).query_pairs(_LINK_ARCSEC, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(cells), len(cells)))
    _, component = connected_components(graph, directed=False)
    result: Ints = component[node].astype(np.int64)
    return result


def _seen_twice(frame: Ints, label: Ints) -> Bools:
    """Of each label, whether a frame has two sightings of it."""
    key, counts = np.unique(label * (frame.max(initial=0) + 1) + frame, return_counts=True)
    twice = np.zeros(label.max(initial=-1) + 1, bool)
    twice[key[counts > 1] // (frame.max(initial=0) + 1)] = True
    return twice


def _known(plane: Floats, label: Ints, references: Floats) -> Ints:
    """The reference of each label: each the other's nearest, within the link's length; -1 for none."""
    counts = np.bincount(label)
    means = np.stack([np.bincount(label, column) / counts for column in plane.T], axis=1)
    known = np.full(len(counts), -1)
    if len(references) == 0 or len(means) == 0:
        return known
    distance, nearest = cKDTree(references).query(means, distance_upper_bound=_LINK_ARCSEC)
    found = np.flatnonzero(np.isfinite(distance))
    found = found[np.argsort(distance[found], kind="stable")]
    reference, first = np.unique(nearest[found], return_index=True)
    known[found[first]] = reference
    return known
