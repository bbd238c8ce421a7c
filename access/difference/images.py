"""Any FITS image as the payload wants one: in electrons where its gain is known, with variance, mask and WCS."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from access.difference import header as cards
from access.difference.masks import of_plane, read_mask
from backbone.fits_errors import opened, refused_by_name
from payloads.imaging import background
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage, MaskPlane, Psf
from schemas.wcs import Wcs

LEAST_SIDE = 256
"""Pixels: less than this holds no sky, PSF and kernel to speak of."""
_CELL = 128
_SPOILT = int(Mask.BAD | Mask.SAT | Mask.NO_DATA | Mask.UNMASKED_NAN | Mask.CR)
_VARIANCE, _MASK = ("VARIANCE", "VAR"), ("MASK", "DQ")
_MOST = 1e18
"""What is larger has no square in float32, and is a mark of no measurement (IRAF's INDEF is 1.6e38)."""
_LEAST_NOISE = 1e-11
"""Of the image's unit: less is lost in the steps in which the sky's level is reckoned."""


@dataclass(frozen=True)
class Source:
    """Where an image and what belongs to it lie, and its gain (electrons per unit) if its header lacks it."""

    image: Path
    variance: Path | None = None
    mask: Path | None = None
    psf: Path | None = None
    gain: float | None = None


@dataclass(frozen=True, eq=False)
class About:
    """What is known of an image. `filter`: as the header has it; `noise`: what its variance was made of.

    `gain`: by what its unit was multiplied; `midpoint`: TAI s; `exposure_time`: s. `psf`: as given, or None.
    """

    wcs: Wcs
    psf: Psf | None
    filter: str
    midpoint: float
    exposure_time: float
    gain: float
    noise: str


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, in its unit times its gain, and what is known of it."""

    pixels: MaskedImage
    about: About


def read_picture(source: Source) -> Picture:
    """Read an image. Raises BadData, naming the file and what it lacks."""
    with refused_by_name(source.image), opened(source.image) as hdus:
        hdu = _image_in(hdus)
        header = fits.Header(hdus[0].header, copy=True)
        header.update(hdu.header)
        with np.errstate(over="ignore"):
            values = hdu.data.astype(np.float32)
            values -= np.float32(cards.number(header, cards.PEDESTAL) or 0.0)
        mask = _mask_of(hdus, source, values, header)
        image, mask = _finite(values, mask)
        variance = _variance_in(hdus, source, image.shape)
        told = cards.number(header, cards.GAIN) if source.gain is None else source.gain
        pixels, gain, noise = _with_noise(image, mask, variance, told)
        wcs = cards.wcs_of(header, pixels.shape)
        psf = None if source.psf is None else _psf_in(source.psf, pixels.shape)
        middle, seconds = cards.midpoint_of(header), cards.exposure_of(header)
        return Picture(pixels, About(wcs, psf, cards.filter_of(header), middle, seconds, gain, noise))


def _image_in(hdus: fits.HDUList) -> fits.ImageHDU:
    hdu = next((hdu for hdu in hdus if hdu.is_image and hdu.data is not None), None)
    if hdu is None:
        raise BadData("it holds no image")
    if hdu.data.ndim > 2 and max(hdu.data.shape[:-2]) == 1:  # axes of one pixel, as radio and some cameras write
        hdu.data = hdu.data.reshape(hdu.data.shape[-2:])
    if hdu.data.ndim != 2 or min(hdu.data.shape) < LEAST_SIDE:
        raise BadData(f"its image is {hdu.data.shape}, not of two axes of {LEAST_SIDE} pixels at least")
    if hdu.data.dtype.itemsize < 2:
        raise BadData("its pixels have 8 bits: a picture, not a measurement")
    return hdu


def _mask_of(hdus: fits.HDUList, source: Source, values: Image, header: fits.Header) -> MaskPlane:
    """The mask from its file, or of the same file, or empty; with what is saturated by the header's level."""
    shape = values.shape
    beside = next((hdu for hdu in hdus if hdu.name in _MASK and hdu.is_image and hdu.data is not None), None)
    if source.mask is not None:
        mask = read_mask(source.mask, shape)
    else:
        mask = np.zeros(shape, np.uint16) if beside is None else of_plane(beside, shape)
    level = cards.number(header, cards.SATURATION)
    if level is not None:
        mask[values >= level - (cards.number(header, cards.PEDESTAL) or 0.0)] |= np.uint16(Mask.SAT)
    return mask


def _finite(values: Image, mask: MaskPlane) -> tuple[Image, MaskPlane]:
    """The image with the median where it is not finite, and that in the mask."""
    lost = ~(np.abs(values) < _MOST)
    if not lost.any():
        return values, mask
    if lost.all():
        raise BadData("none of its pixels is finite")
    mask[lost] |= np.uint16(Mask.UNMASKED_NAN | Mask.NO_DATA)
    return np.where(lost, np.float32(np.median(values[~lost])), values), mask


def _variance_in(hdus: fits.HDUList, source: Source, shape: tuple[int, ...]) -> Image | None:
    """The variance from its file, or of the same file; None if there is none."""
    if source.variance is not None:
        with refused_by_name(source.variance), opened(source.variance) as others:
            return _positive(_image_in(others), shape)
    beside = next((hdu for hdu in hdus if hdu.name in _VARIANCE and hdu.is_image and hdu.data is not None), None)
    return None if beside is None else _positive(beside, shape)


def _positive(hdu: fits.ImageHDU, shape: tuple[int, ...]) -> Image:
    """A variance, NaN where it is none."""
    if hdu.data.shape != shape:
        raise BadData(f"the variance is {hdu.data.shape}, the image {shape}")
    with np.errstate(over="ignore"):
        values = hdu.data.astype(np.float32)
    known = (values > 0) & (values < _MOST)
    if not known.any():
        raise BadData("the variance is nowhere positive")
    result: Image = np.where(known, values, np.float32(np.nan))
    return result


def _with_noise(
    image: Image, mask: MaskPlane, variance: Image | None, gain: float | None
) -> tuple[MaskedImage, float, str]:
    """The image in electrons, if a gain can be had, and what tells its variance."""
    if gain is not None and not 0.0 < gain < np.inf:
        raise BadData(f"its gain is {gain}")
    if variance is not None:
        unit = np.float32(gain or 1.0)
        known = np.isfinite(variance)
        mask[~known] |= np.uint16(Mask.NO_DATA)
        usual = np.median(variance[known])
        if np.sqrt(usual) < _LEAST_NOISE:
            raise BadData(f"its noise of {np.sqrt(usual):.2g} is too small a number to reckon with: scale its unit")
        full = np.where(known, variance, usual).astype(np.float32)
        return MaskedImage(image * unit, mask, full * unit**2), float(unit), "variance plane"
    return _by_its_sky(image, mask, gain)


def _by_its_sky(image: Image, mask: MaskPlane, gain: float | None) -> tuple[MaskedImage, float, str]:
    """The noise that the sky shows, and photon noise of what stands above it.

    Without a gain the sky's own level over its variance is one, if photons made that noise: an upper bound, so
    that bright sources' noise is rather too small.
    """
    level, sigma = background.mesh(image, mask, _SPOILT, _CELL)
    sky, noise = float(np.median(level)), float(np.median(sigma))
    low, middle = np.percentile(image[(mask & _SPOILT) == 0][::16], [16.0, 50.0])
    if middle - low < _LEAST_NOISE:
        raise BadData(f"its sky has no noise: {middle - low:.2g} lies between its median and its 16th percentile")
    if gain is None and sky <= noise:  # its sky is taken away already, as a coadd's is
        alone: Image = background.render(sigma, image.shape) ** 2
        return MaskedImage(image, mask, alone), 1.0, "sky noise alone: no gain is known"
    told = "sky noise and gain" if gain is not None else "sky noise; gain taken from the sky's level"
    known = gain if gain is not None else sky / noise**2
    above = np.maximum(background.subtract(image, level), 0.0)
    variance = background.render(sigma, image.shape) ** 2 * known**2 + above * known
    return MaskedImage(image * np.float32(known), mask, variance.astype(np.float32)), known, told


def _psf_in(path: Path, shape: tuple[int, int]) -> Psf:
    """One kernel for the whole image, of a FITS image of an odd, square number of pixels."""
    with refused_by_name(path), opened(path) as hdus:
        hdu = next((hdu for hdu in hdus if hdu.is_image and hdu.data is not None), None)
        if hdu is None or hdu.data.ndim != 2 or hdu.data.shape[0] != hdu.data.shape[1] or hdu.data.shape[0] % 2 == 0:
            raise BadData("it holds no PSF of an odd, square number of pixels")
        kernel = hdu.data.astype(np.float64)
    if not (np.isfinite(kernel).all() and kernel.sum() > 0.0):
        raise BadData(f"{path}: the PSF's sum is {kernel.sum()}")
    return Psf((kernel / kernel.sum()).astype(np.float32)[None], 0, shape)
