"""What is left of the sky on a coadd: light that no single visit tells from its sky is seen here, and masked."""

from contextlib import suppress

import numpy as np
from scipy import ndimage

from payloads.drp.matching import halved
from payloads.imaging import background
from payloads.imaging.morphology import grown
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage

_CELL = 128
_SCALES = (1.2, 5.0)
"""Pixels (binned), sigmas of the Gaussians that the image is looked at with: a star's, an outskirt's."""
_FROM, _SPREAD = 3.0, 3
"""Sigmas from which there is light, and pixels that it reaches farther. At 3 the noise that is masked with it, peaks
alone, leaves the level lower by 0.02 sigma of a pixel; what is fainter leaves it higher by about as much."""
_ANY = 0xFFFF
_COVERED = np.uint16(Mask.DETECTED)


def on_empty_sky(pixels: MaskedImage) -> None:
    """Subtract, in place, the level between a coadd's sources, a mesh of 256 pixels; none where none is to be seen."""
    with suppress(BadData):  # all covered, or hardly anything to be seen
        pixels.image[:] -= background.render(_empty_level(pixels), pixels.image.shape)


def _empty_level(pixels: MaskedImage) -> Image:
    """A mesh of the level. Raises BadData where no cell has enough of the sky."""
    image, flags = halved(pixels)
    level, noise = background.mesh(image, flags, _ANY, _CELL)
    flat = np.where(flags == 0, (image - background.render(level, image.shape)), np.float32(0.0))
    flat /= background.render(noise, image.shape)
    for scale in _SCALES:
        smooth = ndimage.gaussian_filter(flat, scale)
        light = smooth > _FROM / (2.0 * np.sqrt(np.pi) * scale)  # of white noise so seen
        flags[grown(light.astype(np.uint16), 1, _SPREAD)] |= _COVERED
    return background.mesh(image, flags, _ANY, _CELL)[0]
