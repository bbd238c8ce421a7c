"""A patch in figures: what is kept of its tables once they are read, so that a release of any size can be reported."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from access.release.curves import Curve, curves, most
from access.release.given import PatchTables, Reference, ab_mag, primary
from access.release.held import Held, hold
from access.release.repeated import Repeated, repeated
from schemas.instrument import BANDS
from schemas.tables import Table

DEPTH_DTYPE = np.dtype(
    [("tract", "i4"), ("patch", "i4"), ("band", "U1"), ("visits", "i4"), ("depth_mag", "f4"), ("objects", "i4")]
)
"""A patch in a band: how many visits touch it, 5 sigma of a point source (AB; NaN if unknown), objects with a flux."""

_FAINT_SNR = 30.0
"""A source fainter than that has the errors of the sky."""


@dataclass(frozen=True, eq=False)
class Examined:
    """Patches; tables as their parts say, `depth`: DEPTH_DTYPE."""

    held: Held
    repeated: Repeated
    depth: Table
    curves: list[Curve]
    forced: int
    light_curves: int


def examine(patch: PatchTables, reference: Reference | None) -> Examined:
    """All that the report says of a patch."""
    held = hold(patch, reference)
    depth = np.concatenate([np.zeros(0, DEPTH_DTYPE), *(_depth(patch, band) for band in patch.bands)])
    return Examined(
        held, repeated(patch, held), depth, curves(patch, held), len(patch.forced), patch.n_light_curves
    )  # fmt: skip


def joined(parts: Sequence[Examined]) -> Examined:
    """Patches together. There is at least one."""
    held = Held(*(np.concatenate([getattr(p.held, name) for p in parts]) for name in Held.__annotations__))
    again = (np.concatenate([getattr(p.repeated, name) for p in parts]) for name in Repeated.__annotations__)
    return Examined(
        held, Repeated(*again), np.concatenate([p.depth for p in parts]), most([c for p in parts for c in p.curves]),
        sum(p.forced for p in parts), sum(p.light_curves for p in parts),
    )  # fmt: skip


def _depth(patch: PatchTables, band: str) -> Table:
    row = np.zeros(1, DEPTH_DTYPE)
    objects = primary(patch.objects)
    flux, error = objects[f"{band}_psfFlux"], objects[f"{band}_psfFluxErr"]
    faint = error[np.isfinite(flux) & (error > 0.0) & (flux < _FAINT_SNR * error)]
    row["tract"], row["patch"], row["band"], row["objects"] = patch.tract, patch.patch, band, np.isfinite(flux).sum()
    row["visits"] = len(patch.visits(band))
    row["depth_mag"] = ab_mag(5.0 * np.median(faint)) if len(faint) else np.nan
    return row


def bands_of(depth: Table) -> tuple[str, ...]:
    """The bands of DEPTH_DTYPE rows, in order."""
    return tuple(band for band in BANDS if np.any(depth["band"] == band))
