"""Instrument signature removal: from a raw's amplifier segments to electrons on the assembled detector.

The order is that of the detector's chain run backwards: serial overscan, gain, crosstalk (all in readout
order), then, assembled, bias, non-linearity, dark and flat.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from payloads.imaging import mask_ops
from schemas.errors import BadData
from schemas.image import LINEARITY_ELECTRONS, LINEARITY_TERMS, Calibration, Image, Mask, MaskedImage, MaskPlane, Raw
from schemas.instrument import Detector, Format

Ints = NDArray[np.int64]

TRAILED_COLUMNS = 4
"""Overscan columns that follow the imaging area too closely: they hold its deferred charge."""

_SATURATED_FROM = 0.98
"""Part of the full well from which a pixel counts as saturated: read noise and gain's error scatter the clip
level."""

_SATURATION_GROWTH = (2, 1)
"""Pixels along and across columns; the ends of a bleed trail hold part of its charge."""


def remove_signature(raw: Raw, calibration: Calibration, detector: Detector) -> MaskedImage:
    """One snap in electrons, (ny, nx) of the assembled detector, with its sky.

    `image` and `variance` float32, `mask` uint16. The variance is that of the photons (all charge above bias)
    and of the read noise, divided by flat squared. Mask: the calibration's defects, SAT (grown by two rows
    and a column), and BAD|UNMASKED_NAN where a calibration has no finite value; such pixels are 0 with the
    read noise's variance.

    Raises BadData, naming exposure and detector, for segments or calibrations of the wrong shape or type.
    """
    _check(raw, calibration, detector)
    form = detector.format
    shape = (form.height, form.width)
    image, variance, mask = (
        np.empty(shape, np.float32),
        np.empty(shape, np.float32),
        np.empty(shape, np.uint16),
    )
    overscan = _overscan(raw.segments, form.amp_height, form.prescan + form.amp_width + TRAILED_COLUMNS)
    _assemble(
        raw.segments, overscan, _layout(detector), form.prescan, form.amp_width,
        calibration.gain.astype(np.float32), calibration.read_noise.astype(np.float32),
        (_SATURATED_FROM * calibration.saturation).astype(np.float32),
        calibration.crosstalk.astype(np.float32), _per_electron(calibration.linearity), raw.observation.exposure_time,
        calibration.bias, calibration.dark, calibration.flat, calibration.defects, image, variance, mask,
    )  # fmt: skip
    mask_ops.grow(mask, Mask.SAT, *_SATURATION_GROWTH)
    return MaskedImage(image, mask, variance)


def _check(raw: Raw, calibration: Calibration, detector: Detector) -> None:
    name = f"exposure {raw.observation.exposure} ({raw.observation.image_name}) detector {raw.detector}"
    form = detector.format
    if raw.detector != detector.id:
        raise BadData(f"{name}: processed as detector {detector.id}")
    if raw.segments.shape != form.raw_shape or raw.segments.dtype != np.int32:
        found = f"{raw.segments.dtype} {raw.segments.shape}"
        raise BadData(f"{name}: segments are {found}, an {form.vendor} CCD gives int32 {form.raw_shape}")
    for plane, expected in _expected(form).items():
        shape = getattr(calibration, plane).shape
        if shape != expected:
            raise BadData(f"{name}: calibration {plane} has shape {shape}, expected {expected}")
    for plane in ("gain", "read_noise", "saturation", "crosstalk", "linearity"):
        if not np.isfinite(getattr(calibration, plane)).all():
            raise BadData(f"{name}: calibration {plane} has a value that is not finite")


def _expected(form: Format) -> dict[str, tuple[int, ...]]:
    image: tuple[int, ...] = (form.height, form.width)
    amplifiers: tuple[int, ...] = (16,)
    return {
        **dict.fromkeys(("bias", "dark", "flat", "defects"), image),
        **dict.fromkeys(("gain", "read_noise", "saturation"), amplifiers),
        "crosstalk": (16, 16),
        "linearity": (16, LINEARITY_TERMS),
    }


def _per_electron(linearity: Image) -> Image:
    """(16, terms): the coefficients of powers of electrons."""
    powers = np.arange(1, LINEARITY_TERMS + 1)
    return (linearity / LINEARITY_ELECTRONS**powers).astype(np.float32)


def _layout(detector: Detector) -> Ints:
    """(16, 4): the segment's first x, the y of its first raw row, the step of y, whether x is flipped."""
    last = detector.format.amp_height - 1
    rows = [
        (a.x0, a.y0 + last if a.flip_y else a.y0, -1 if a.flip_y else 1, int(a.flip_x)) for a in detector.amplifiers
    ]
    return np.array(rows, np.int64)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _overscan(segments: NDArray[np.int32], height: int, first: int) -> Image:
    """(16, height): mean of each row's serial overscan, ADU, after one clip at 3 sigma."""
    amps, n = segments.shape[0], segments.shape[2] - first
    level = np.empty((amps, height), np.float32)
    above = np.empty(n, np.float32)
    for a in range(amps):
        for y in range(height):
            row = segments[a, y, first:]
            pedestal = row[0]
            total, squares = np.float32(0.0), np.float32(0.0)
            for x in range(n):
                above[x] = np.float32(row[x] - pedestal)
                total += above[x]
                squares += above[x] * above[x]
            mean = total / np.float32(n)
            # One ADU keeps a noiseless row from being clipped away.
            reach = np.float32(3.0 * np.sqrt(max(squares / n - mean * mean, 0.0)) + 1.0)
            kept, kept_total = np.float32(0.0), np.float32(0.0)
            for x in range(n):
                counts = np.float32(abs(above[x] - mean) <= reach)
                kept += counts
                kept_total += counts * above[x]
            level[a, y] = pedestal + kept_total / kept
    return level


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
def _assemble(
    segments: NDArray[np.int32], overscan: Image, layout: Ints, prescan: int, width: int,
    gain: Image, read_noise: Image, saturation: Image, crosstalk: Image, linearity: Image, exposure_time: float,
    bias: Image, dark: Image, flat: Image, defects: MaskPlane, image: Image, variance: Image, mask: MaskPlane,
) -> None:  # fmt: skip
    """Fill the planes, a raw row of all amplifiers at a time, so that crosstalk stays in cache."""
    amps = segments.shape[0]
    electrons = np.empty((amps, width), np.float32)
    clean = np.empty(width, np.float32)
    turned = np.empty(width, np.float32)
    seconds = np.float32(exposure_time)
    for y in range(overscan.shape[1]):
        for a in range(amps):
            _to_electrons(segments[a, y, prescan : prescan + width], overscan[a, y], gain[a], electrons[a])
        for a in range(amps):
            _subtract_crosstalk(electrons, crosstalk[a], a, clean)
            x0, row = layout[a, 0], layout[a, 1] + layout[a, 2] * y
            signal = clean
            if layout[a, 3]:
                _reverse(clean, turned)
                signal = turned
            noise = read_noise[a] * read_noise[a]
            _correct_row(
                signal, noise, linearity[a], seconds, bias[row, x0 : x0 + width], dark[row, x0 : x0 + width],
                flat[row, x0 : x0 + width], defects[row, x0 : x0 + width],
                image[row, x0 : x0 + width], variance[row, x0 : x0 + width], mask[row, x0 : x0 + width],
            )  # fmt: skip
            _mark_saturated(electrons[a], saturation[a], layout[a, 3] != 0, mask[row, x0 : x0 + width])


_SAT = int(Mask.SAT)
_INVALID = int(Mask.BAD | Mask.UNMASKED_NAN)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _to_electrons(adu: NDArray[np.int32], overscan: float, gain: float, electrons: Image) -> None:
    for x in range(electrons.size):
        electrons[x] = (np.float32(adu[x]) - overscan) * gain


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _reverse(row: Image, turned: Image) -> None:
    # An unsigned index cannot mean "from the end", which would keep the loop from being vectorised.
    last = np.uint64(row.size - 1)
    for x in range(row.size):
        turned[x] = row[last - np.uint64(x)]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
def _subtract_crosstalk(electrons: Image, coefficients: Image, victim: int, clean: Image) -> None:
    row = electrons[victim]
    for x in range(clean.size):
        clean[x] = row[x]
    # Four sources a pass: the loop is bound by loads and stores of `clean`.
    for first in range(0, electrons.shape[0], 4):
        k, e = coefficients[first : first + 4], electrons[first : first + 4]
        k0, k1, k2, k3 = k[0], k[1], k[2], k[3]
        e0, e1, e2, e3 = e[0], e[1], e[2], e[3]
        for x in range(clean.size):
            clean[x] -= (k0 * e0[x] + k1 * e1[x]) + (k2 * e2[x] + k3 * e3[x])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _mark_saturated(electrons: Image, full: float, backwards: bool, mask: MaskPlane) -> None:
    count = 0
    for x in range(electrons.size):
        count += electrons[x] >= full
    if count > 0:
        for x in range(electrons.size):
            if electrons[x] >= full:
                mask[electrons.size - 1 - x if backwards else x] |= np.uint16(_SAT)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
def _correct_row(
    signal: Image, noise: np.float32, linearity: Image, exposure_time: np.float32,
    bias: Image, dark: Image, flat: Image, defects: MaskPlane, image: Image, variance: Image, mask: MaskPlane,
) -> None:  # fmt: skip
    zero, one = np.float32(0.0), np.float32(1.0)
    first, second, third = linearity[0], linearity[1], linearity[2]
    for x in range(signal.size):
        shown = signal[x] - bias[x]
        charge = shown * (one + shown * (first + shown * (second + shown * third)))
        value = charge - exposure_time * dark[x]
        # False for NaN as well; infinities have no place in a calibration.
        good = flat[x] > zero and flat[x] < np.float32(1e30) and abs(value) < np.float32(1e30)
        inverse = one / flat[x] if good else one
        photons = charge if good and charge > zero else zero
        image[x] = value * inverse if good else zero
        variance[x] = (photons + noise) * inverse * inverse
        mask[x] = defects[x] if good else defects[x] | np.uint16(_INVALID)
