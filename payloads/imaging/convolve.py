"""Convolution with kernels that vary over an image in square blocks, one thread, float32.

A kernel's width is a constant to the compiled code, so that the compiler unrolls every tap of a row: that
alone is five times faster than the same loop over a width known only at run time.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadData
from schemas.image import Image

FAST = {"reassoc", "contract", "arcp", "nsz"}
"""Fast-math that keeps NaN and infinity as they are."""


def convolve_blocks(image: Image, kernels: Image, block: int) -> Image:
    """`image` (ny, nx) convolved with `kernels` (rows, columns, k, k), each over a block of pixels.

    Kernel taps run as in a convolution: out[y, x] = sum K[r, c] image[y + h - r, x + h - c], h = k // 2. The
    border of h pixels, which no whole kernel reaches, is 0. Raises BadData if the blocks do not cover the
    image.
    """
    _check_cover(image, kernels.shape[:2], block)
    out = np.zeros(image.shape, np.float32)
    _full_kernel(kernels.shape[2])(np.ascontiguousarray(image), np.ascontiguousarray(kernels, np.float32), block, out)
    return out


def separable(kernels: Image) -> tuple[Image, Image]:
    """Columns and rows (..., k) of the outer products nearest `kernels` (..., k, k) in least squares."""
    u, s, vt = np.linalg.svd(np.asarray(kernels, np.float64))
    columns, rows = u[..., :, 0] * np.sqrt(s[..., :1]), vt[..., 0, :] * np.sqrt(s[..., :1])
    sign = np.sign(columns.sum(-1, keepdims=True))
    return (columns * sign).astype(np.float32), (rows * sign).astype(np.float32)


def blocks_of(shape: tuple[int, int], block: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """X and y (pixels) of the centres of the blocks that cover `shape`, each (rows, columns)."""
    ny, nx = (-(-n // block) for n in shape)
    x, y = np.meshgrid((np.arange(nx) + 0.5) * block - 0.5, (np.arange(ny) + 0.5) * block - 0.5)
    return x, y


def _check_cover(image: Image, blocks: tuple[int, ...], block: int) -> None:
    needed = tuple(-(-n // block) for n in image.shape)
    if blocks != needed:
        raise BadData(f"{blocks} kernels of {block} pixels do not cover an image of {image.shape}: {needed} do")


@cache
def _full_kernel(width: int) -> Callable[..., Any]:
    half = width // 2

    @numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
    def convolve(image, kernels, block, out):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        ny, nx = image.shape
        total = np.empty(block, np.float32)
        for j in range(kernels.shape[0]):
            for i in range(kernels.shape[1]):
                x0, x1 = max(i * block, half), min((i + 1) * block, nx - half)
                n = x1 - x0
                for y in range(max(j * block, half), min((j + 1) * block, ny - half)):
                    total[:] = 0.0
                    for r in range(width):
                        taps = kernels[j, i, r]
                        pixels = image[y + half - r, x0 - half : x1 + half]
                        for x in range(n):
                            s = np.float32(0.0)
                            for c in range(width):
                                s += taps[c] * pixels[x + width - 1 - c]
                            total[x] += s
                    for x in range(n):
                        out[y, x0 + x] = total[x]

    return convolve
