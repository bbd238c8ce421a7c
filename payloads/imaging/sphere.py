"""Directions on the sky as vectors, so that neither the poles nor RA 0 are special."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.wcs import Wcs

Floats = NDArray[np.float64]


def unit_vectors(ra: ArrayLike, dec: ArrayLike) -> Floats:
    """(..., 3) unit vectors of positions (deg)."""
    a, d = np.broadcast_arrays(np.radians(ra), np.radians(dec))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def local_axes(ra: ArrayLike, dec: ArrayLike) -> tuple[Floats, Floats]:
    """(..., 3) unit vectors to the east and to the north at positions (deg)."""
    a, d = np.broadcast_arrays(np.radians(ra), np.radians(dec))
    east = np.stack([-np.sin(a), np.cos(a), np.zeros_like(a)], axis=-1)
    north = np.stack([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)], axis=-1)
    return east, north


def sky_jacobians(wcs: Wcs, x: Floats, y: Floats) -> Floats:
    """(n, 2, 2): degrees to the east and to the north for a pixel in x and in y, at pixels x, y (n,)."""
    _, dec = wcs.pixel_to_sky(x, y)
    columns = []
    for dx, dy in ((0.5, 0.0), (0.0, 0.5)):
        ra1, dec1 = wcs.pixel_to_sky(x + dx, y + dy)
        ra0, dec0 = wcs.pixel_to_sky(x - dx, y - dy)
        east = (np.mod(ra1 - ra0 + 180.0, 360.0) - 180.0) * np.cos(np.radians(dec))
        columns.append(np.stack([east, dec1 - dec0], axis=-1))
    return np.stack(columns, axis=-1)


def offsets_arcsec(ra: ArrayLike, dec: ArrayLike, from_ra: ArrayLike, from_dec: ArrayLike) -> tuple[Floats, Floats]:
    """Offsets (arcsec) east and north of positions (deg) from others, on the tangent planes of those."""
    target, origin = unit_vectors(ra, dec), unit_vectors(from_ra, from_dec)
    depth = np.sum(target * origin, axis=-1)
    east, north = (np.sum(target * axis, axis=-1) / depth for axis in local_axes(from_ra, from_dec))
    return np.degrees(east) * 3600.0, np.degrees(north) * 3600.0


def position_at(
    ra: ArrayLike, dec: ArrayLike, east_arcsec: ArrayLike, north_arcsec: ArrayLike
) -> tuple[Floats, Floats]:
    """RA in [0, 360) and dec (deg) at offsets (arcsec) from a position: undoes `offsets_arcsec`."""
    east, north = local_axes(ra, dec)
    x, y = (
        np.radians(np.asarray(offset, dtype=np.float64) / 3600.0)[..., None] for offset in (east_arcsec, north_arcsec)
    )
    vector = unit_vectors(ra, dec) + x * east + y * north
    result_ra = np.degrees(np.arctan2(vector[..., 1], vector[..., 0])) % 360.0
    return result_ra, np.degrees(np.arctan2(vector[..., 2], np.hypot(vector[..., 0], vector[..., 1])))
