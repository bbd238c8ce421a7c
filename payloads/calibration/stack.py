"""The mean of many frames without what is in one of them only, made while the frames go by.

Each frame is a level times the same picture, plus noise. The sum of what is kept of all frames, over the sum of
their levels, is the picture's most likely value under photon noise: brighter frames count more. What is
kept differs from a reference, the median of the first frames, by less than 4.5 sigma of the noise that the detector
should have (photons and read noise), so that a cosmic ray is found however few frames there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numba
import numpy as np

from payloads.calibration.frames import Floats, Frame, Rejected, on_grid
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskPlane
from schemas.instrument import Detector

LEAST_FRAMES = 3
_REFERENCE_FRAMES = 5
"""Their median is spoilt where three of them are: at 0.5 % of pixels hit a frame, in one pixel of a million."""
_CLIP = 4.5
_CLIPPED_PART = 0.03
"""Of a frame's pixels: more are no cosmic rays."""
_NOISE_RATIO = 1.5
"""Read noise over that of the first frames: more is interference."""
_ROWS_TO_JUDGE = 8


@dataclass(frozen=True)
class Limits:
    """How far an amplifier of a frame may be off, on average: in units of its noise, or of its level.

    `photons`: whether a frame's signal is electrons of light or dark current, with their noise.
    """

    of_noise: float
    of_level: float
    photons: bool


@dataclass(frozen=True, eq=False)
class Stacked:
    """image, variance: float32 (ny, nx). mask: BAD where less than half of the exposure was kept."""

    image: Image
    variance: Image
    mask: MaskPlane
    used: tuple[int, ...]
    rejected: tuple[Rejected, ...]


@dataclass(eq=False)
class _Sums:
    """What is known while frames go by."""

    reference: Image
    noise: Floats
    total: Image
    weight: Image
    used: list[int] = field(default_factory=list)
    levels: float = 0.0


def stacked(frames: Iterable[Frame | Rejected], detector: Detector, limits: Limits, what: str) -> Stacked:
    """The clipped mean of frames, each looked at once; at most five are in memory.

    A frame that is not like the others is left out and named. Raises BadData, naming all that were, if fewer than
    three are left.
    """
    rejected: list[Rejected] = []
    stream = iter(frames)
    first = _first(stream, rejected)
    if len(first) < LEAST_FRAMES:
        raise BadData(_too_few(what, detector, len(first), rejected))
    sums = _begun(first)
    while first:
        _take(first.pop(0), sums, detector, limits, rejected)
    for frame in stream:
        if isinstance(frame, Rejected):
            rejected.append(frame)
        else:
            _take(frame, sums, detector, limits, rejected)
    if len(sums.used) < LEAST_FRAMES:
        raise BadData(_too_few(what, detector, len(sums.used), rejected))
    return _finished(sums, detector, limits, rejected)


def _first(stream: Iterable[Frame | Rejected], rejected: list[Rejected]) -> list[Frame]:
    found: list[Frame] = []
    for frame in stream:
        if isinstance(frame, Rejected):
            rejected.append(frame)
        else:
            found.append(frame)
        if len(found) == _REFERENCE_FRAMES:
            break
    return found


def _too_few(what: str, detector: Detector, left: int, rejected: list[Rejected]) -> str:
    why = "; ".join(each.why for each in rejected) or "no more came"
    return f"{what} of detector {detector.id}: {left} frames are left, {LEAST_FRAMES} are the least: {why}"


def _begun(first: list[Frame]) -> _Sums:
    odd = first[: len(first) - (len(first) + 1) % 2]
    reference = np.empty_like(odd[0].image)
    _median(tuple(frame.image for frame in odd), np.array([frame.level for frame in odd], np.float32), reference)
    noise = np.median([frame.noise for frame in first], axis=0)
    return _Sums(reference, noise, np.zeros_like(reference), np.zeros_like(reference))


def _take(frame: Frame, sums: _Sums, detector: Detector, limits: Limits, rejected: list[Rejected]) -> None:
    """Add a frame to the sums, or to those that are left out."""
    why = _unlike(frame, sums, detector, limits)
    if why:
        rejected.append(Rejected(frame.exposure, f"exposure {frame.exposure} detector {detector.id}: {why}"))
        return
    square = on_grid(sums.noise**2, detector).astype(np.float32)
    _add(frame.image, np.float32(frame.level), sums.reference, square, limits.photons, _CLIP, sums.total, sums.weight)
    sums.used.append(frame.exposure)
    sums.levels += frame.level


def _unlike(frame: Frame, sums: _Sums, detector: Detector, limits: Limits) -> str:
    """How a frame differs from the others, or nothing."""
    noisy = frame.noise > _NOISE_RATIO * sums.noise
    if noisy.any():
        return f"{detector.amplifiers[int(noisy.argmax())].name} has {_NOISE_RATIO} times the noise of the first frames"
    square = on_grid(sums.noise**2, detector).astype(np.float32)
    rows = slice(None, None, _ROWS_TO_JUDGE)
    told = _residuals(
        frame.image[rows], np.float32(frame.level), sums.reference[rows], square, limits.photons, _CLIP,
    )  # fmt: skip
    offset, level, clipped = told
    reach = limits.of_noise * np.sqrt(square) + limits.of_level * np.abs(level)
    if (clipped > _CLIPPED_PART).any():
        return f"{100.0 * clipped.max():.1f} % of an amplifier's pixels differ from the first frames'"
    if (np.abs(offset) > reach).any():
        return f"an amplifier is {np.abs(offset).max():.1f} off the first frames' level"
    return ""


def _finished(sums: _Sums, detector: Detector, limits: Limits, rejected: list[Rejected]) -> Stacked:
    variance, mask = np.empty_like(sums.total), np.zeros(sums.total.shape, np.uint16)
    square = on_grid(sums.noise**2, detector).astype(np.float32)
    _finish(
        sums.total, sums.weight, sums.reference, square, limits.photons, np.float32(sums.levels), len(sums.used),
        variance, mask,
    )  # fmt: skip
    return Stacked(sums.total, variance, mask, tuple(sums.used), tuple(rejected))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _median(images: tuple[Image, ...], levels: Image, out: Image) -> None:
    """Of each pixel over an odd number of images, each over its level."""
    n = len(images)
    inverse = np.float32(1.0) / levels
    values = np.empty(n, np.float32)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for k in range(n):
                value = images[k][y, x] * inverse[k]
                place = k
                while place > 0 and values[place - 1] > value:
                    values[place] = values[place - 1]
                    place -= 1
                values[place] = value
            out[y, x] = values[n // 2]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _residuals(
    image: Image, level: np.float32, reference: Image, square: Image, photons: bool, clip: float
) -> tuple[Floats, Floats, Floats]:
    """(2, 8) each: mean of what a frame's kept pixels are above the reference, of the reference, part clipped."""
    ny, nx = image.shape
    offset, mean, clipped = np.zeros((2, 8)), np.zeros((2, 8)), np.zeros((2, 8))
    width, reach = nx // 8, np.float32(clip * clip)
    for y in range(ny):
        half = 0 if 2 * y < ny else 1
        for k in range(8):
            total, expected, lost = 0.0, 0.0, 0
            for x in range(k * width, (k + 1) * width):
                signal = level * reference[y, x]
                above = image[y, x] - signal
                noise = square[half, k] + (max(signal, np.float32(0.0)) if photons else np.float32(0.0))
                kept = above * above <= reach * noise
                lost += not kept
                total += float(above) if kept else 0.0
                expected += float(signal)
            offset[half, k] += total
            mean[half, k] += expected
            clipped[half, k] += lost
    rows = np.array([(ny + 1) // 2, ny // 2], np.float64).reshape(2, 1)
    number = rows * width
    return offset / np.maximum(number - clipped, 1.0), mean / number, clipped / number


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _add(
    image: Image, level: np.float32, reference: Image, square: Image, photons: bool, clip: float, total: Image,
    weight: Image,
) -> None:  # fmt: skip
    ny, nx = image.shape
    width, reach, zero = nx // 8, np.float32(clip * clip), np.float32(0.0)
    part = np.float32(1.0) if photons else zero
    for y in range(ny):
        half = 0 if 2 * y < ny else 1
        for k in range(8):
            read = square[half, k]
            for x in range(k * width, (k + 1) * width):
                signal = level * reference[y, x]
                above = image[y, x] - signal
                kept = above * above <= reach * (read + part * max(signal, zero))
                total[y, x] += image[y, x] if kept else zero
                weight[y, x] += level if kept else zero


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _finish(
    total: Image, weight: Image, reference: Image, square: Image, photons: bool, levels: np.float32, n: int,
    variance: Image, mask: MaskPlane,
) -> None:  # fmt: skip
    """Turn sums into means, in place; where less than half was kept, the reference stands."""
    ny, nx = total.shape
    width, zero = nx // 8, np.float32(0.0)
    for y in range(ny):
        half = 0 if 2 * y < ny else 1
        for x in range(nx):
            kept = weight[y, x]
            if kept < np.float32(0.5) * levels:
                mask[y, x] |= np.uint16(_BAD)
                total[y, x] = reference[y, x]
                kept = np.float32(levels / np.float32(n))
            else:
                total[y, x] /= kept
            reads = np.float32(n) * kept / levels
            light = kept * max(total[y, x], zero) if photons else zero
            variance[y, x] = (reads * square[half, x // width] + light) / (kept * kept)


_BAD = int(Mask.BAD)
