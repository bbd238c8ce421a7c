"""Kernels and their transforms, on 96 x 96 pixels: enough for a PSF and for what takes it to another.

A transform is as precise as what it is of.
"""

import numpy as np
from numpy.typing import NDArray

from payloads.imaging.stars import FWHM_OF_SIGMA
from schemas.errors import BadData
from schemas.image import Image

Floats = NDArray[np.float64]
Transform = NDArray[np.complexfloating]

_SIDE = 96


def transform(kernels: Image | Floats) -> Transform:
    """(..., 96, 49): of kernels (..., k, k), k odd, about their middle pixel. Raises BadData for more than 96."""
    size = kernels.shape[-1]
    if size > _SIDE:
        raise BadData(f"a PSF of {size} pixels: more than {_SIDE}")
    place = np.arange(size) - size // 2
    padded = np.zeros((*kernels.shape[:-2], _SIDE, _SIDE), kernels.dtype)
    padded[..., place[:, None], place] = kernels
    result: Transform = np.fft.rfft2(padded)
    return result


def inverse(transforms: Transform, size: int) -> Floats:
    """(..., size, size), size odd: the kernels about their middle pixel, and what lies beyond is cut off."""
    place = np.arange(size) - size // 2
    result: Floats = np.fft.irfft2(transforms, (_SIDE, _SIDE))[..., place[:, None], place]
    return result


def gaussian_transform(fwhm: float) -> Floats:
    """(96, 49): of a round Gaussian (pixels), of sum 1."""
    sigma = fwhm / FWHM_OF_SIGMA
    across, along = np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE)
    result: Floats = np.exp(-2.0 * (np.pi * sigma) ** 2 * (across**2 + along**2))
    return result
