"""A band's PSF at objects, and what points and discs look like through it."""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.drp.blends import Models
from payloads.drp.profiles import add_excess, add_profile, disc_profile, psf_mixture, smearing
from payloads.imaging.psf_field import kernel_sigma, kernels_at
from payloads.imaging.warp import lanczos_table
from schemas.image import Image, Psf

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POINT = np.array([[1.0, 0.0]])
"""The profile of a point: all the light, no width."""
_MESH = 4


@dataclass(frozen=True, eq=False)
class Optics:
    """A band's PSF at objects: Gaussians of places on a mesh, which place is nearest, and what pixels have over them.

    `kernels` (m, k, k), `mixtures` (m, g, 4), `place` (n,), `excess` (n, k, k), `sigma` (m,): of the Gaussian with the
    noise area.
    """

    kernels: Image
    mixtures: Floats
    place: Ints
    excess: Image
    sigma: Floats

    @classmethod
    def at(cls, psf: Psf, x: Floats, y: Floats) -> "Optics":
        """The optics at pixels x, y (n,)."""
        ny, nx = psf.shape
        columns, rows = (np.linspace(0.5, _MESH - 0.5, _MESH) * size / _MESH - 0.5 for size in (nx, ny))
        mesh_x, mesh_y = (c.ravel() for c in np.meshgrid(columns, rows))
        kernels = kernels_at(psf, mesh_x, mesh_y)
        parts = [psf_mixture(kernel) for kernel in kernels]
        mixtures = np.zeros((len(parts), max(len(part) for part in parts), 4))
        mixtures[:, :, 1] = mixtures[:, :, 3] = 1.0
        for mixture, part in zip(mixtures, parts, strict=True):
            mixture[: len(part)] = part
        i, j = (np.clip((c + 0.5) * _MESH / size, 0, _MESH - 1).astype(np.int64) for c, size in ((x, nx), (y, ny)))
        place, k = j * _MESH + i, kernels.shape[1]
        smooth = np.stack([_drawn(mixture, k) for mixture in mixtures]).astype(np.float32)
        excess = kernels_at(psf, x, y) - smooth[place]
        return cls(kernels, mixtures, place, excess, np.array([kernel_sigma(kernel) for kernel in kernels]))


@dataclass(frozen=True, eq=False)
class Shapes:
    """Objects' places (pixels), each (n,), and the roots of their discs' ellipses (n, 3), 0 for points."""

    x: Floats
    y: Floats
    root: Floats

    @classmethod
    def points(cls, x: Floats, y: Floats) -> "Shapes":
        """Points at x, y (n,)."""
        return cls(x, y, np.zeros((x.size, 3)))


def draw(shapes: Shapes, optics: Optics, half: Ints) -> Models:
    """Models of flux 1 in boxes of (2 half + 1)**2 pixels."""
    models = Models.around(shapes.x, shapes.y, half)
    _draw(
        shapes.x - models.x0, shapes.y - models.y0, shapes.root,
        optics.mixtures, optics.place, optics.excess, optics.sigma, disc_profile(), lanczos_table(),
        models.side, models.start, models.values,
    )  # fmt: skip
    return models


def _drawn(mixture: Floats, side: int) -> Floats:
    out = np.zeros((side, side))
    add_profile(out, side // 2, side // 2, np.zeros(3), POINT, mixture, 1.0)
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _draw(
    x: Floats,
    y: Floats,
    roots: Floats,
    mixtures: Floats,
    place: Ints,
    excess: Image,
    sigma: Floats,
    profile: Floats,
    table: Image,
    sides: Ints,
    start: Ints,
    values: Image,
) -> None:
    point = np.array([[1.0, 0.0]])
    for k in range(x.size):
        side, psf = sides[k], mixtures[place[k]]
        out, root = np.zeros((side, side)), roots[k]
        shown = point if root[0] == 0.0 and root[1] == 0.0 and root[2] == 0.0 else profile
        add_profile(out, x[k], y[k], root, shown, psf, 1.0)
        add_excess(out, x[k], y[k], excess[k], table, smearing(root, sigma[place[k]]))
        for i in range(side * side):
            values[start[k] + i] = out[i // side, i % side]
