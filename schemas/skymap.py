"""The sky in tracts and patches: rings of declination, each tract a TAN plane in square patches.

A tract's inner area is 1.6 deg high; its plane reaches 0.3 deg beyond, so that a detector whose centre lies in the
tract lies wholly on its plane: a detector's template comes from one tract. (The idea is lsst.skymap's RingsSkyMap.)
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.wcs import Wcs

NAME = "pachon_rings_v1"
PATCH_PIXELS = 2048
TRACT_PATCHES = 20
PIXEL_ARCSEC = 0.2
_INNER_DEG = 1.6
_N_RINGS = round(180.0 / _INNER_DEG)


@dataclass(frozen=True)
class Tract:
    """One plane: `id`, and its centre (deg, ICRS)."""

    id: int
    ra: float
    dec: float

    @cached_property
    def wcs(self) -> Wcs:
        """North up, east left; pixel (0, 0) is the lower left of patch 0."""
        middle = TRACT_PATCHES * PATCH_PIXELS / 2.0 - 0.5
        scale = PIXEL_ARCSEC / 3600.0
        return Wcs((self.ra, self.dec), (middle, middle), np.array([[-scale, 0.0], [0.0, scale]]))

    def patches_in(self, box: "Box") -> list[int]:
        """Patches that overlap a box of tract pixels: row * 20 + column, those on the plane."""
        last = TRACT_PATCHES - 1
        x0, x1 = max(0, box.x0 // PATCH_PIXELS), min(last, (box.x1 - 1) // PATCH_PIXELS)
        y0, y1 = max(0, box.y0 // PATCH_PIXELS), min(last, (box.y1 - 1) // PATCH_PIXELS)
        return [y * TRACT_PATCHES + x for y in range(y0, y1 + 1) for x in range(x0, x1 + 1)]

    @staticmethod
    def patch_box(patch: int) -> "Box":
        """The pixels of a patch, in the tract's grid. Patches do not overlap."""
        row, column = divmod(patch, TRACT_PATCHES)
        x0, y0 = column * PATCH_PIXELS, row * PATCH_PIXELS
        return Box(x0, y0, x0 + PATCH_PIXELS, y0 + PATCH_PIXELS)

    def box_of(self, wcs: Wcs, shape: tuple[int, int], margin: int = 32) -> "Box":
        """The box of tract pixels that covers an image of `shape` (ny, nx), with a margin in pixels."""
        ny, nx = shape
        edge_x = np.concatenate(
            [np.linspace(0, nx - 1, 17), np.full(17, nx - 1), np.linspace(0, nx - 1, 17), np.zeros(17)]
        )
        edge_y = np.concatenate(
            [np.zeros(17), np.linspace(0, ny - 1, 17), np.full(17, ny - 1), np.linspace(0, ny - 1, 17)]
        )
        x, y = self.wcs.sky_to_pixel(*wcs.pixel_to_sky(edge_x, edge_y))
        low = np.floor([x.min(), y.min()]).astype(int) - margin
        high = np.ceil([x.max(), y.max()]).astype(int) + margin + 1
        return Box(int(low[0]), int(low[1]), int(high[0]), int(high[1]))


@dataclass(frozen=True)
class Box:
    """Pixels x0 <= x < x1, y0 <= y < y1."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.y1 - self.y0, self.x1 - self.x0


def tract(tract_id: int) -> Tract:
    """The tract of an id (ring * 1000 + number in the ring)."""
    ring, number = divmod(tract_id, 1000)
    dec = -90.0 + (ring + 0.5) * 180.0 / _N_RINGS
    return Tract(tract_id, (number + 0.5) * 360.0 / _tracts_in_ring(ring), dec)


def tract_at(ra: float, dec: float) -> Tract:
    """The tract in whose inner area a sky position (deg) lies."""
    return tract(int(tract_ids(ra, dec)))


def tract_ids(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.int64]:
    """Ids of the tracts in whose inner areas sky positions (deg) lie, elementwise."""
    ring = np.minimum(((np.asarray(dec) + 90.0) * _N_RINGS / 180.0).astype(np.int64), _N_RINGS - 1)
    number = (np.mod(ra, 360.0) / 360.0 * _ring_sizes()[ring]).astype(np.int64)
    return ring * 1000 + number


@cache
def _ring_sizes() -> NDArray[np.int64]:
    return np.array([_tracts_in_ring(ring) for ring in range(_N_RINGS)])


@cache
def _tracts_in_ring(ring: int) -> int:
    """Enough that the edge nearest the equator is at most 1.6 deg wide."""
    edges = [-90.0 + (ring + side) * 180.0 / _N_RINGS for side in (0, 1)]
    widest = max(np.cos(np.radians(edge)) for edge in edges)
    return max(3, int(np.ceil(360.0 * widest / _INNER_DEG)))
