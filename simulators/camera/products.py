"""What earlier work has left for tonight: master calibrations, templates and the reference catalogue.

They are made from the same truth as the pixels, with the errors that such products have.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.image import LINEARITY_ELECTRONS, LINEARITY_TERMS, Calibration, Image, Mask, MaskedImage, Psf, Template
from schemas.instrument import BANDS, PIXEL_ARCSEC, Camera
from schemas.skymap import PATCH_PIXELS, TRACT_PATCHES, Tract
from schemas.tables import Table
from simulators.camera.ccd import (
    AMPLIFIERS,
    SATURATION_PART,
    Ccd,
    add_dark_current,
    bias_pattern,
    ccd,
    defects,
    response,
)
from simulators.camera.exposure import SourceSky, shapes_of
from simulators.camera.noise import Purpose, add_noise, fill_normal, generator, stream
from simulators.camera.optics import AB_NANOJANSKY, SKY_MAG, ZERO_POINT
from simulators.camera.psf import PsfField
from simulators.camera.render import draw

TEMPLATE_SECONDS = 600.0
"""Of a template: 20 visits of 30 s."""
TEMPLATE_READS = 40
TEMPLATE_MJD = 61000.0
"""When the template's stars were where it shows them (2025 November)."""
TEMPLATE_FWHM_ARCSEC = 0.775
_TEMPLATE_READ_NOISE = 7.0
_TEMPLATE_SATURATION = 1e5
"""Electrons in a pixel of one 15 s snap."""
_PSF_SIZE = 41
_MARGIN_PIXELS = 300.0
_BIAS_FRAMES, _DARK_FRAMES, _DARK_SECONDS = 100, 30, 300.0
_FLAT_ERROR = 7e-4


class ReferenceSky(Protocol):
    """The sky's reference catalogue."""

    def refcat(self, ra: float, dec: float, radius_deg: float) -> Table:
        """Rows of `REFCAT_DTYPE` inside a circle (deg, ICRS)."""


def calibration(seed: int, camera: Camera, detector: int, band: str) -> Calibration:
    """Master calibrations of a detector in a band. Raises BadData for a detector the camera has not.

    Their noise: bias of 100 frames, dark of 30 x 300 s, flat 0.07 % a pixel; gains 0.03 %, crosstalk 1 %,
    linearity 1 % of the correction.
    """
    chip = ccd(seed, camera.name, camera[detector])
    names = seed, Purpose.CALIBRATION, chip.seeds[1], detector
    rng = generator(*names)
    noise = float(np.sqrt(np.mean(chip.read_noise**2)))
    bias = bias_pattern(chip)
    add_noise(stream(*names, 1), bias, noise / _BIAS_FRAMES**0.5)
    flat = response(chip, band)
    add_noise(stream(*names, 2, BANDS.index(band)), flat, _FLAT_ERROR)
    flat /= flat.mean(dtype=np.float64)
    dark = np.zeros_like(flat)
    add_dark_current(dark, chip, 1.0)
    dark_square = (noise**2 + float(chip.dark.mean()) * _DARK_SECONDS) / _DARK_FRAMES
    add_noise(stream(*names, 3), dark, dark_square**0.5 / _DARK_SECONDS)
    return Calibration(
        bias=bias,
        dark=dark,
        flat=flat,
        defects=defects(chip),
        gain=(chip.gain * (1.0 + 3e-4 * rng.normal(size=16))).astype(np.float32),
        read_noise=(chip.read_noise * (1.0 + 0.01 * rng.normal(size=16))).astype(np.float32),
        saturation=(chip.full_well * SATURATION_PART).astype(np.float32),
        crosstalk=(chip.crosstalk * (1.0 + 0.01 * rng.normal(size=(16, 16)))).astype(np.float32),
        linearity=(_linearity(chip) * (1.0 + 0.01 * rng.normal(size=(AMPLIFIERS, 1)))).astype(np.float32),
    )


def _linearity(chip: Ccd) -> NDArray[np.float64]:
    """(16, terms): what turns the amplifiers' signals back into charge, to 6e-5 of it, up to the full well."""
    made = np.empty((AMPLIFIERS, LINEARITY_TERMS))
    for amplifier, (well, curve) in enumerate(zip(chip.full_well, chip.compression, strict=True)):
        x = np.linspace(0.0, 1.0, 200)[1:]
        shown = 1.0 + x * (curve[0] + x * (curve[1] + x * curve[2]))
        powers = (well * x * shown / LINEARITY_ELECTRONS)[:, None] ** np.arange(1, LINEARITY_TERMS + 1)
        made[amplifier] = np.linalg.lstsq(powers, 1.0 / shown - 1.0)[0]
    return made


def electrons_per_njy(band: str) -> float:
    """Electrons/s per nJy on the nights that templates were made of."""
    return float(10.0 ** (0.4 * (ZERO_POINT[band] - AB_NANOJANSKY)))


def template_variance(band: str) -> float:
    """nJy^2 of a template's pixel on empty sky."""
    sky = 10.0 ** (0.4 * (ZERO_POINT[band] - SKY_MAG[band])) * PIXEL_ARCSEC**2
    electrons = sky * TEMPLATE_SECONDS + TEMPLATE_READS * _TEMPLATE_READ_NOISE**2
    return float(electrons / (electrons_per_njy(band) * TEMPLATE_SECONDS) ** 2)


def template_patch(sky: SourceSky, seed: int, tract: Tract, patch: int, band: str) -> Template:
    """A patch's template, (2048, 2048) nJy in the patch's own WCS: a coadd of 20 visits, its noise white.

    Saturated cores are flagged SAT and cut off at the level of saturation. `psf` has order 1.
    """
    box = tract.patch_box(patch)
    wcs = tract.wcs.shifted(box.x0, box.y0)
    middle = (PATCH_PIXELS - 1) / 2.0
    ra, dec = (float(c) for c in wcs.pixel_to_sky(middle, middle))
    radius = (middle * 2**0.5 + _MARGIN_PIXELS) * PIXEL_ARCSEC / 3600.0
    sources = sky.sources(ra, dec, radius, band, TEMPLATE_MJD)
    sources = sources[sources["template_flux"] > 0.0]
    psf = template_psf(seed, tract, patch, band)
    image = np.zeros((PATCH_PIXELS, PATCH_PIXELS), np.float32)
    draw(image, shapes_of(sources, sources["template_flux"], wcs), psf, 1e-2 * template_variance(band) ** 0.5)
    pixels = _observed(image, band, stream(seed, Purpose.TEMPLATE, tract.id, patch, BANDS.index(band)))
    return Template(pixels, wcs, _sampled(psf), band)


def _observed(image: Image, band: str, state: NDArray[np.uint64]) -> MaskedImage:
    rate = electrons_per_njy(band)
    limit = _TEMPLATE_SATURATION / (15.0 * rate)
    mask = np.where(image > limit, np.uint16(Mask.SAT), np.uint16(0))
    np.minimum(image, np.float32(limit), out=image)
    variance = image * np.float32(1.0 / (rate * TEMPLATE_SECONDS)) + np.float32(template_variance(band))
    noise = np.empty_like(image)
    fill_normal(state, noise.reshape(-1))
    image += noise * np.sqrt(variance)
    return MaskedImage(image, mask, variance)


def template_psf(seed: int, tract: Tract, patch: int, band: str) -> PsfField:
    """The PSF over a patch: 0.75-0.80 arcsec, changing by up to 1 % over the tract, linearly."""
    rng = generator(seed, Purpose.TEMPLATE, tract.id, BANDS.index(band))
    center = np.array([TEMPLATE_FWHM_ARCSEC / PIXEL_ARCSEC * rng.uniform(0.98, 1.02), *rng.uniform(-0.015, 0.015, 2)])
    slope = rng.uniform(-0.005, 0.005, (3, 2)) * np.array([[center[0]], [1.0], [1.0]])
    row, column = divmod(patch, TRACT_PATCHES)
    half = TRACT_PATCHES / 2.0
    at = (column + 0.5 - half) / half, (row + 0.5 - half) / half
    coefficients = np.zeros((3, 6))
    coefficients[:, 0] = center + slope @ at
    coefficients[:, 1], coefficients[:, 3] = slope[:, 1] / TRACT_PATCHES, slope[:, 0] / TRACT_PATCHES
    return PsfField(coefficients, (PATCH_PIXELS, PATCH_PIXELS))


def _sampled(field: PsfField) -> Psf:
    """The contract's PSF of order 1 through a field's corners."""
    last = field.shape[1] - 1
    corners = [(u, v) for u in (-1.0, 1.0) for v in (-1.0, 1.0)]
    kernels = np.stack([field.kernel((u + 1) / 2 * last, (v + 1) / 2 * last, _PSF_SIZE) for u, v in corners])
    terms = np.array([(1.0, v, u) for u, v in corners])
    components = np.tensordot(np.linalg.pinv(terms), kernels, 1)
    return Psf(components.astype(np.float32), 1, field.shape)


def reference_catalogue(sky: ReferenceSky, ra: float, dec: float, radius: float) -> Table:
    """Reference stars (`REFCAT_DTYPE`), with their errors, within `radius` of a position (deg, ICRS)."""
    return sky.refcat(ra, dec, radius)
