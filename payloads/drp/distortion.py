"""What of the distortion of frames belongs to their detector: optics and sensor, the same in every visit.

Where a detector was seen often, each frame's map bends as its others do, but for as much as they are seen to differ:
instrument and exposure are apart as in SCAMP (Bertin 2006) and gbdes (Bernstein et al. 2017), by way of the prior.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from payloads.drp.single_frame import FrameSummary
from payloads.drp.tan_sip import POWERS, grid, tan_sip
from schemas.wcs import Wcs, to_tangent

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DEGREE = np.array([p + q for p, q in POWERS])
_FEWEST = 4
"""Frames that tell what a detector does."""

_LEAST_PX = 0.001


@dataclass(frozen=True, eq=False)
class Maps:
    """Frames' preliminary maps: `detector` (n,); `jacobian` (n, 2, 2), mas on the common plane per pixel at the centre.

    `bend`: (n, 10, 2) pixels, terms of `POWERS` of the distortion at positions as `star_links.on_frame` has them, those
    of degree 0 and 1 being 0.
    """

    detector: Ints
    jacobian: Floats
    bend: Floats


def maps_of(summaries: Sequence[FrameSummary], center: tuple[float, float]) -> Maps:
    """`center`: RA, dec (deg) where the common plane is tangent."""
    return Maps(
        np.array([s.detector for s in summaries]),
        np.array([_jacobian(s, center) for s in summaries]),
        np.array([_bend(s) for s in summaries]),
    )


def lasting(maps: Maps, fitted: Floats, rich: Bools) -> tuple[Floats, Floats]:
    """What is to be added (n, 10, 2; mas) for a frame to bend as its detector does, and how much frames differ (10,).

    `fitted`: (n, 10, 2) mas, what was found that is to be added; `rich`: (n,), the frames of stars enough to tell.
    Where a detector has fewer than 4 of these nothing is known: NaN.
    """
    whole = maps.bend + np.einsum("nij,nkj->nki", np.linalg.inv(maps.jacobian), fitted)
    typical, apart = np.full_like(whole, np.nan), []
    for detector in np.unique(maps.detector[rich]):
        own = rich & (maps.detector == detector)
        if (n := int(own.sum())) >= _FEWEST:
            middle = np.median(whole[own], axis=0)
            typical[maps.detector == detector] = middle
            apart.append((whole[own] - middle) * np.sqrt(n / (n - 1.0)))
    added = np.einsum("nij,nkj->nki", maps.jacobian, typical - maps.bend)
    return added, _widths(maps, apart)


def _widths(maps: Maps, apart: list[Floats]) -> Floats:
    """(10,) mas: how wide frames scatter about their detector's terms, alike for all of a degree."""
    if not apart:
        return np.full(len(POWERS), np.nan)
    every, scale = np.abs(np.concatenate(apart)), np.sqrt(np.abs(np.linalg.det(maps.jacobian)).mean())
    widths = [
        max(1.4826 * float(np.median(every[:, degree == DEGREE])), _LEAST_PX) for degree in range(DEGREE.max() + 1)
    ]
    result: Floats = scale * np.array(widths)[DEGREE]
    return result


def _jacobian(summary: FrameSummary, center: tuple[float, float]) -> Floats:
    x, y = np.array([1.0, -1.0, 0.0, 0.0]) + summary.nx / 2.0, np.array([0.0, 0.0, 1.0, -1.0]) + summary.ny / 2.0
    plane = 3.6e6 * np.stack(to_tangent(*summary.wcs.pixel_to_sky(x, y), center))
    return np.stack([plane[:, 0] - plane[:, 1], plane[:, 2] - plane[:, 3]], axis=1) / 2.0


def _bend(summary: FrameSummary) -> Floats:
    """(10, 2) pixels, about the frame's centre whatever the map's own reference pixel."""
    shape = summary.ny, summary.nx
    x, y = grid(shape)
    centred: Wcs = tan_sip(x, y, *summary.wcs.pixel_to_sky(x, y), shape)
    half = max(shape) / 2.0
    return np.array([centred.sip[:, p, q] * half ** (p + q) for p, q in POWERS])
