"""What a release's report is made from: the tables of patches, the visits' frames, and what they are held to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas import skymap
from schemas.clock import mjd_from_tai
from schemas.instrument import BANDS, PIXEL_ARCSEC
from schemas.skymap import PATCH_PIXELS, Box, Tract
from schemas.tables import Table
from schemas.wcs import Wcs, separation_arcsec

Floats = NDArray[np.float64]

REFERENCE_DTYPE = np.dtype(
    [("id", "i8"), ("kind", "U9"), ("ra", "f8"), ("dec", "f8"), ("flux", "f8"), ("mean_flux", "f8")]
)
"""What is on the sky at a time in a band: `kind`: star, galaxy, variable or transient; deg ICRS at that time; nJy, at
that time and in the mean, which is 0 for a transient."""

POSITION_DTYPE = np.dtype([("visit", "i8"), ("ra", "f8"), ("dec", "f8"), ("snr", "f4")])
"""A star as one visit saw it, deg ICRS in the release's own astrometry."""

RADIUS_DEG = 0.5 * np.sqrt(2.0) * PATCH_PIXELS * PIXEL_ARCSEC / 3600.0
"""Of the circle about a patch."""

_NEAR_DEG = 0.5
"""A detector whose middle lies farther from a patch's has no pixel on it."""
_EDGE_PIXELS = 20
"""A source nearer to a detector's edge than this may not count as seen."""


class Frame(Protocol):
    """A visit-detector of the release; (ny, nx) its shape, `midpoint` TAI s."""

    @property
    def visit(self) -> int: ...  # noqa: D102
    @property
    def detector(self) -> int: ...  # noqa: D102
    @property
    def band(self) -> str: ...  # noqa: D102
    @property
    def ny(self) -> int: ...  # noqa: D102
    @property
    def nx(self) -> int: ...  # noqa: D102
    @property
    def wcs(self) -> Wcs: ...  # noqa: D102
    @property
    def midpoint(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Reference:
    """What a release is held to.

    `sources`: of a circle (RA, dec, radius, deg) in a band at a time (MJD TAI), REFERENCE_DTYPE. `complete`: whether
    that is all there is, as a simulator's truth is: then an object that it has not is false.
    """

    name: str
    complete: bool
    sources: Callable[[float, float, float, str, float], Table]


@dataclass(frozen=True, eq=False)
class PatchTables:
    """A patch: rows of `schemas.drp_tables`' Object and ForcedSource, and stars in single visits (POSITION_DTYPE).

    Only primary objects count; forced sources may be in any order. `frames`: of the release, those that touch it.
    """

    tract: int
    patch: int
    objects: Table
    forced: Table
    positions: Table
    n_light_curves: int
    frames: Sequence[Frame]

    @property
    def plane(self) -> Tract:
        """The tract."""
        return skymap.tract(self.tract)

    @cached_property
    def middle(self) -> tuple[float, float]:
        """RA, dec (deg)."""
        return middle_of(self.tract, self.patch)

    @cached_property
    def bands(self) -> tuple[str, ...]:
        """Those that it was seen in."""
        seen = {frame.band for frame in self.frames}
        return tuple(band for band in BANDS if band in seen)

    def visits(self, band: str) -> dict[int, float]:
        """MJD of each visit of a band."""
        return {frame.visit: mjd_from_tai(frame.midpoint) for frame in self.frames if frame.band == band}

    def visits_at(self, band: str, ra: Floats, dec: Floats) -> NDArray[np.int16]:
        """How many visits of a band have a place (deg) well inside a detector."""
        seen = np.zeros(np.shape(ra), np.int16)
        for frame in self.frames:
            if frame.band == band:
                seen += inside(frame, ra, dec)
        return seen


def ab_mag(flux: NDArray[np.floating]) -> Floats:
    """Magnitudes of fluxes (nJy)."""
    magnitudes: Floats = 31.4 - 2.5 * np.log10(flux, dtype=np.float64)
    return magnitudes


def primary(objects: Table) -> Table:
    """The objects that count, each once: no parents of blends, none that a neighbouring patch has too."""
    placed = np.isfinite(objects["coord_ra"]) & np.isfinite(objects["coord_dec"])
    result: Table = objects[placed & objects["detect_isPrimary"]]
    return result


def flagged(table: Table, *names: str) -> NDArray[np.bool_]:
    """Rows of which any of these flags is set."""
    result: NDArray[np.bool_] = np.logical_or.reduce([table[name] for name in names])
    return result


def inside(frame: Frame, ra: Floats, dec: Floats) -> NDArray[np.bool_]:
    """Whether places (deg) lie well inside a detector."""
    x, y = frame.wcs.sky_to_pixel(ra, dec)
    low, right, top = _EDGE_PIXELS, frame.nx - 1 - _EDGE_PIXELS, frame.ny - 1 - _EDGE_PIXELS
    result: NDArray[np.bool_] = (x >= low) & (x <= right) & (y >= low) & (y <= top)
    return result


class Frames:
    """All visit-detectors of a release, to be asked for those about a patch."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames = frames
        middles = [frame.wcs.pixel_to_sky(frame.nx / 2.0, frame.ny / 2.0) for frame in frames]
        self._ra, self._dec = np.array(middles, dtype=np.float64).reshape(-1, 2).T

    def near(self, tract: int, patch: int) -> list[Frame]:
        """Those that touch a patch."""
        away = separation_arcsec(self._ra, self._dec, *middle_of(tract, patch))
        near = (self._frames[row] for row in np.flatnonzero(away <= 3600.0 * _NEAR_DEG).tolist())
        return [frame for frame in near if _touches(frame, skymap.tract(tract), Tract.patch_box(patch))]


def _touches(frame: Frame, plane: Tract, patch: Box) -> bool:
    box = plane.box_of(frame.wcs, (frame.ny, frame.nx), margin=0)
    return box.x0 < patch.x1 and box.x1 > patch.x0 and box.y0 < patch.y1 and box.y1 > patch.y0


def middle_of(tract: int, patch: int) -> tuple[float, float]:
    """RA, dec (deg) of a patch's middle."""
    box = Tract.patch_box(patch)
    ra, dec = skymap.tract(tract).wcs.pixel_to_sky((box.x0 + box.x1 - 1) / 2.0, (box.y0 + box.y1 - 1) / 2.0)
    return float(ra), float(dec)
