"""TAN-SIP maps through positions that are exact."""

import numpy as np
from numpy.typing import NDArray

from schemas.wcs import Wcs, from_tangent, to_tangent

Floats = NDArray[np.float64]

ORDER = 3
POWERS = [(p, total - p) for total in range(ORDER + 1) for p in range(total + 1)]
"""Of u and v in a polynomial of that order, terms of low degree first."""

_GRID = 9


def grid(shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Pixels (81,) x, y spread over an image of `shape` (ny, nx), edges included."""
    x, y = np.meshgrid(np.linspace(0.0, shape[1] - 1.0, _GRID), np.linspace(0.0, shape[0] - 1.0, _GRID))
    return x.ravel(), y.ravel()


def tan_sip(x: Floats, y: Floats, ra: Floats, dec: Floats, shape: tuple[int, int]) -> Wcs:
    """The TAN projection about the centre of an image of `shape` (ny, nx), with SIP of order 3, nearest to positions.

    `x`, `y` (n,) pixels, `ra`, `dec` (n,) deg: all of equal weight, spread over the image, 10 at least.
    """
    centre, half = ((shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0), max(shape) / 2.0
    u, v = (x - centre[0]) / half, (y - centre[1]) / half
    design = np.stack([u**p * v**q for p, q in POWERS], axis=1)
    nearest = int(np.argmin(u * u + v * v))
    pointing = float(ra[nearest]), float(dec[nearest])
    fitted: Floats = np.zeros((len(POWERS), 2))
    for _ in range(4):  # then nothing is left of the constant: the tangent point has moved there
        fitted[:] = np.linalg.lstsq(design, np.stack(to_tangent(ra, dec, pointing), axis=1))[0]
        a, d = from_tangent(fitted[0, 0], fitted[0, 1], pointing)
        pointing = float(a), float(d)
    term = dict(zip(POWERS, fitted, strict=True))
    cd, sip = np.column_stack([term[1, 0], term[0, 1]]) / half, np.zeros((2, 4, 4))
    for (p, q), value in term.items():
        if p + q > 1:
            sip[:, p, q] = np.linalg.solve(cd, value) / half ** (p + q)
    return Wcs(pointing, centre, cd, sip)
