"""Science less template: the template is warped, matched in PSF and taken away; the noise is whitened."""

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np

from payloads.alert_production.far_wings import remove_far_wings
from payloads.alert_production.kernel import MatchingKernel, fit_kernel
from payloads.alert_production.systematics import Systematics, measure_systematics
from payloads.imaging import background
from payloads.imaging.convolve import blocks_of, convolve_blocks
from payloads.imaging.morphology import grown
from payloads.imaging.psf_field import fit_psf, kernel_sigma, kernels_at, sample_points, warp_psf
from payloads.imaging.warp import warp
from schemas.errors import BadData
from schemas.image import Difference, Image, Mask, MaskedImage, MaskPlane, Psf, Template, VisitImage

_BLOCK = 128
_MESH = 256
_NO_DATA = np.uint16(Mask.NO_DATA)
_EDGE = np.uint16(Mask.EDGE)
_HOLES = np.uint16(Mask.NO_DATA | Mask.SAT | Mask.BAD | Mask.SAT_TEMPLATE)
_SHARED = np.uint16(Mask.NO_DATA | Mask.BAD | Mask.HALO)
_SAT, _SAT_TEMPLATE = np.uint16(Mask.SAT), np.uint16(Mask.SAT_TEMPLATE)
_INJECTED, _INJECTED_TEMPLATE = np.uint16(Mask.INJECTED), np.uint16(Mask.INJECTED_TEMPLATE)
_FFT = 64
_WHITENERS = (7, 13, 25)
_LOST = 0.01


@dataclass(frozen=True, eq=False)
class Subtraction:
    """A difference and what it was made of, all on the science image's grid.

    `difference`: nJy, its noise white (see `_whitener`), its `psf` a point source's. `warped`: the template
    resampled, with its PSF as it is there. `matched`: the template as subtracted, nJy. `convolved`: which
    image the kernel was applied to, "template" or "science". `kernel_sum`: target / source in flux, at the
    centre. `reach`: how far (pixels) matching and whitening carry what is in a pixel. `systematics`: how far its stars
    are off.
    """

    difference: Difference
    warped: Template
    matched: Image
    kernel: MatchingKernel
    convolved: str
    kernel_sum: float
    reach: int
    systematics: Systematics


def warp_template(template: Template, science: VisitImage) -> Template:
    """The template on the science image's grid, with its PSF as it is there.

    Raises BadData if the bands differ or the template does not reach the image.
    """
    if science.band != template.band:
        raise BadData(f"a template in {template.band} cannot be taken from an image in {science.band}")
    shape = science.pixels.shape
    pixels = warp(template, science.wcs, shape)
    if (pixels.mask & _NO_DATA).all():
        raise BadData("the template does not overlap the image")
    return Template(pixels, science.wcs, warp_psf(template.psf, template.wcs, science.wcs, shape), template.band)


def subtract(science: VisitImage, warped: Template) -> Subtraction:
    """Science less template after Alard & Lupton 1998; whichever is sharper is convolved.

    `warped`: see `warp_template`. The difference has the zero point of the science image. Raises BadData if too few
    stars are clean.
    """
    sharp, wide = effective_sigma(warped.psf), effective_sigma(science.psf)
    sigma = float(np.sqrt(abs(wide**2 - sharp**2)))
    if wide >= sharp:
        return _convolving_template(science, warped, fit_kernel(warped.pixels, science.pixels, sigma))
    return _convolving_science(science, warped, fit_kernel(science.pixels, warped.pixels, sigma))


def effective_sigma(psf: Psf) -> float:
    """`kernel_sigma` of the PSF at the centre."""
    ny, nx = psf.shape
    return kernel_sigma(psf.at((nx - 1) / 2, (ny - 1) / 2))


def _convolving_template(science: VisitImage, warped: Template, kernel: MatchingKernel) -> Subtraction:
    shape = science.pixels.shape
    centers = blocks_of(shape, _BLOCK)
    kernels = kernel.at(*centers)
    sums = kernels.sum((2, 3))
    matched = convolve_blocks(_filled(warped.pixels.image), kernels, _BLOCK)
    image = science.pixels.image - matched
    for box, level in _blocks(kernel.background(*centers)):
        image[box] -= level
    return _whitened(science, warped, kernel, image, matched, sums, science.psf)


def _convolving_science(science: VisitImage, warped: Template, kernel: MatchingKernel) -> Subtraction:
    shape = science.pixels.shape
    centers = blocks_of(shape, _BLOCK)
    kernels = kernel.at(*centers)
    sums = kernels.sum((2, 3))
    image = convolve_blocks(_filled(science.pixels.image), kernels / sums[..., None, None], _BLOCK)
    matched = _filled(warped.pixels.image).copy()
    for (box, level), (_, scale) in zip(_blocks(kernel.background(*centers)), _blocks(sums), strict=True):
        matched[box] = (matched[box] - level) / scale
    image -= matched
    psf = _convolved(science.psf, kernel.at(*sample_points(shape)))
    return _whitened(science, warped, kernel, image, matched, 1.0 / sums, psf)


def _whitened(
    science: VisitImage,
    warped: Template,
    kernel: MatchingKernel,
    image: Image,
    matched: Image,
    template_scale: Image,
    psf: Psf,
) -> Subtraction:
    """From the raw difference `image`, which is consumed, to a white one with variance and mask."""
    forward = psf is science.psf
    half = kernel.basis.shape[1] // 2
    mask = _joint_mask(science.pixels.mask, warped.pixels.mask, half)
    remove_far_wings(image, matched, science.pixels.variance, mask, half)
    middle = template_scale.shape[0] // 2, template_scale.shape[1] // 2
    noise = typical_variance(science.pixels), typical_variance(warped.pixels) * float(template_scale[middle]) ** 2
    ny, nx = science.pixels.shape
    taps = kernel.at(np.array((nx - 1) / 2), np.array((ny - 1) / 2)).astype(np.float64)
    white = _whitener(taps / taps.sum(), *(noise[::-1] if forward else noise))
    _punch(image, mask, _HOLES, np.float32(0.0))
    image = convolve_blocks(image, np.broadcast_to(white, (*template_scale.shape, *white.shape)), _BLOCK)
    reach = half + white.shape[0] // 2
    _mark_border(mask, reach)
    np.bitwise_or(mask, _EDGE, out=mask, where=grown(mask, Mask.NO_DATA, white.shape[0] // 2))
    level, _ = background.mesh(image, mask, int(_HOLES | _EDGE), _MESH, believe_all=True)  # stars and galaxies are gone
    image = background.subtract(image, level)
    variance = science.pixels.variance.copy()
    for box, scale in _blocks(template_scale):
        variance[box] += warped.pixels.variance[box] * scale**2
    _punch(image, mask, _NO_DATA, np.float32(np.nan))
    _punch(variance, mask, _NO_DATA, np.float32(np.inf))
    difference = Difference(
        MaskedImage(image, mask, variance), science.wcs, _convolved(psf, white[None]),
        science.band, science.midpoint, science.exposure_time,
    )  # fmt: skip
    side = "template" if forward else "science"
    systematics = measure_systematics(difference, matched, psf, kernel.x, kernel.y)
    return Subtraction(difference, warped, matched, kernel, side, float(taps.sum()), reach, systematics)


def _whitener(kernel: Image, convolved: float, other: float) -> Image:
    """The filter (k, k), sum 1, that makes the difference's noise white (Reiss & Lupton 2016, DMTN-021).

    `kernel`: the matching kernel, sum 1. `convolved`, `other`: variances of the two images, in the
    difference's unit. The result's noise has their sum at every frequency, and a variance that needs no
    convolution.
    """
    padded = np.zeros((_FFT, _FFT))
    half = kernel.shape[0] // 2
    padded[_FFT // 2 - half : _FFT // 2 + half + 1, _FFT // 2 - half : _FFT // 2 + half + 1] = kernel
    power = np.abs(np.fft.fft2(padded)) ** 2
    spectrum = np.sqrt((convolved + other) / (convolved * power + other))
    white = np.fft.fftshift(np.fft.ifft2(spectrum).real)
    total = np.abs(white).sum()
    for width in _WHITENERS:
        edge = _FFT // 2 - width // 2
        inner = white[edge : edge + width, edge : edge + width]
        if np.abs(inner).sum() > (1.0 - _LOST) * total:
            break
    result: Image = (inner / inner.sum()).astype(np.float32)
    return result


def _joint_mask(science: MaskPlane, template: MaskPlane, reach: int) -> MaskPlane:
    """The science's bits, the template's under their own names, NO_DATA as far as the kernel reaches."""
    mask = np.empty_like(science)
    _join(science, template, mask)
    np.bitwise_or(mask, _NO_DATA, out=mask, where=grown(mask, Mask.NO_DATA, reach))
    return mask


def _mark_border(mask: MaskPlane, width: int) -> None:
    for strip in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
        mask[strip] |= _EDGE


def _blocks(values: Image) -> Iterator[tuple[tuple[slice, slice], float]]:
    """The pixels of each block, and its value."""
    for (j, i), value in np.ndenumerate(values):
        box = slice(j * _BLOCK, (j + 1) * _BLOCK), slice(i * _BLOCK, (i + 1) * _BLOCK)
        yield box, float(value)


def _filled(image: Image) -> Image:
    """With 0 for NaN: what is missing is masked, and must not spread through a convolution."""
    filled: Image = np.nan_to_num(image, nan=0.0) if np.isnan(image.sum()) else image
    return filled


def typical_variance(pixels: MaskedImage) -> float:
    """The median of one finite variance in 256."""
    sample = pixels.variance[::16, ::16]
    return float(np.median(sample[np.isfinite(sample)]))


def _convolved(psf: Psf, kernels: Image) -> Psf:
    """A PSF convolved with one kernel (1, k, k), or with 36 at `sample_points`; of order 2 or more."""
    x, y = sample_points(psf.shape)
    stamps = kernels_at(psf, x, y)
    n = stamps.shape[1] + kernels.shape[1] - 1
    product = np.fft.irfft2(np.fft.rfft2(stamps, (n, n)) * np.fft.rfft2(kernels, (n, n)), (n, n))
    edge = kernels.shape[1] // 2
    inner = product[:, edge : edge + stamps.shape[1], edge : edge + stamps.shape[1]]
    return fit_psf(inner.astype(np.float32), x, y, max(psf.order, 2), psf.shape)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _join(science: MaskPlane, template: MaskPlane, mask: MaskPlane) -> None:
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            theirs = template[y, x]
            joint = science[y, x] | (theirs & _SHARED)
            if theirs & _SAT:
                joint |= _SAT_TEMPLATE
            if theirs & _INJECTED:
                joint |= _INJECTED_TEMPLATE
            mask[y, x] = joint


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _punch(plane: Image, mask: MaskPlane, bits: np.uint16, value: np.float32) -> None:
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            if mask[y, x] & bits:
                plane[y, x] = value
