"""Trails of satellites: what is long and thin among artefacts is followed across the whole image."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_LONG, _THIN = 40.0, 0.06
"""Pixels from end to end of what may be a piece of a trail; its root mean square width in its length."""
_BESIDE = 4.0
"""Pixels from the line through the longest piece that are looked at for more of it."""
_HALF_WIDTH = (2.0, 8.0)
"""Pixels to either side that are given up, at the least and at the most."""
_EIGHT = np.ones((3, 3), np.bool_)


def extend_trails(found: Bools) -> None:
    """Mark, in place, the whole lines that long thin groups of pixels lie on.

    A trail crosses a detector from edge to edge; where it fades, or crosses stars, too little of it stands out by
    itself.
    """
    labels, n = ndimage.label(found, _EIGHT)
    if not n:
        return
    y, x = np.nonzero(labels)
    order = np.argsort(labels[y, x], kind="stable")
    y, x = y[order], x[order]
    size = np.bincount(labels[y, x], minlength=n + 1)[1:]
    ends = np.cumsum(size)
    for k in np.flatnonzero(size >= _LONG):
        piece = slice(ends[k] - size[k], ends[k])
        if _is_trail(x[piece], y[piece]):
            _mark_line(found, x, y, piece)


def _is_trail(x: NDArray[np.int64], y: NDArray[np.int64]) -> bool:
    _, _, _, along, across = _line(x, y)
    length = float(np.ptp(along))
    return length >= _LONG and float(across.std()) <= _THIN * length


def _line(x: NDArray[np.int64], y: NDArray[np.int64]) -> tuple[float, float, Floats, Floats, Floats]:
    """Middle, direction (2,), and pixels' places along and across it."""
    middle_x, middle_y = float(x.mean()), float(y.mean())
    offsets = np.stack([x - middle_x, y - middle_y])
    direction: Floats = np.linalg.eigh(offsets @ offsets.T)[1][:, 1]
    return middle_x, middle_y, direction, direction @ offsets, direction[0] * offsets[1] - direction[1] * offsets[0]


def _mark_line(found: Bools, x: NDArray[np.int64], y: NDArray[np.int64], piece: slice) -> None:
    middle_x, middle_y, direction, _, _ = _line(x[piece], y[piece])
    across = direction[0] * (y - middle_y) - direction[1] * (x - middle_x)
    near = np.abs(across) <= _BESIDE
    middle_x, middle_y, direction, _, across = _line(x[near], y[near])
    half = float(np.clip(2.0 * across.std(), *_HALF_WIDTH))
    row, column = np.ogrid[: found.shape[0], : found.shape[1]]
    found |= np.abs(direction[0] * (row - middle_y) - direction[1] * (column - middle_x)) <= half
