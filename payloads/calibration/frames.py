"""Calibration frames, one at a time: what is wrong with a raw, and its pixels on the assembled detector."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from payloads.imaging.isr import TRAILED_COLUMNS, remove_signature
from schemas.errors import BadData
from schemas.image import Calibration, Image, MaskedImage, Raw
from schemas.instrument import Amplifier, Detector

Floats = NDArray[np.float64]
Pixel = TypeVar("Pixel", bound=np.generic)
Exposed = TypeVar("Exposed", Raw, tuple[Raw, Raw])
Made = TypeVar("Made")

AMPLIFIERS = 16
_NEVER = np.float32(1e30)
_ROWS_FOR_NOISE = 4
"""Every fourth row of the overscan tells its noise to 0.5 %."""


@dataclass(frozen=True)
class Rejected:
    """An exposure that was left out of a product."""

    exposure: int
    why: str


@dataclass(frozen=True, eq=False)
class Frame:
    """An exposure to be stacked: `image` (ny, nx) = `level` times the product, with read noise `noise` (16,)."""

    exposure: int
    image: Image
    level: float
    noise: Floats


def each_of(given: Iterable[Exposed | Rejected], make: Callable[[Exposed], Made]) -> Iterator[Made | Rejected]:
    """What is made of each raw or pair. One of which nothing good can be made is left out, by its first exposure."""
    for exposed in given:
        if isinstance(exposed, Rejected):  # by whoever read it
            yield exposed
            continue
        try:
            yield make(exposed)
        except BadData as error:
            first = exposed if isinstance(exposed, Raw) else exposed[0]
            yield Rejected(first.observation.exposure, str(error))


def told_apart(each: Iterable[Made | Rejected]) -> tuple[list[Made], tuple[Rejected, ...]]:
    """What is good, and what was left out."""
    made: list[Made] = []
    rejected: list[Rejected] = []
    for one in each:
        if isinstance(one, Rejected):
            rejected.append(one)
        else:
            made.append(one)
    return made, tuple(rejected)


def name_of(raw: Raw) -> str:
    """As errors name it."""
    return f"exposure {raw.observation.exposure} ({raw.observation.image_name}) detector {raw.detector}"


def blank(detector: Detector) -> Calibration:
    """A calibration that changes nothing: pixels stay ADU above the overscan, only put in their places."""
    shape = (detector.format.height, detector.format.width)
    nothing, each = np.zeros(shape, np.float32), np.ones(AMPLIFIERS, np.float32)
    return Calibration(
        bias=nothing, dark=nothing, flat=np.ones(shape, np.float32), defects=np.zeros(shape, np.uint16),
        gain=each, read_noise=0.0 * each, saturation=_NEVER * each, crosstalk=np.zeros((16, 16), np.float32),
    )  # fmt: skip


def blank_with(detector: Detector, **parts: Image) -> Calibration:
    """A calibration that does as much as these parts, float32, say."""
    return Calibration(**(vars(blank(detector)) | parts))


def reduced(raw: Raw, detector: Detector, calibration: Calibration, image_type: str) -> MaskedImage:
    """A raw's pixels.

    Raises BadData, naming it, for another type, detector or shape, or an amplifier that is silent.
    """
    seen = raw.observation
    if seen.image_type != image_type:
        raise BadData(f"{name_of(raw)}: a {seen.image_type} exposure among those of {image_type}")
    if not (np.isfinite(seen.exposure_time) and seen.exposure_time >= 0.0):
        raise BadData(f"{name_of(raw)}: exposure time {seen.exposure_time} s")
    image = remove_signature(raw, calibration, detector)
    silent = [
        a.name for a, noise in zip(detector.amplifiers, overscan_noise(raw, detector), strict=True) if noise == 0.0
    ]
    if silent:
        raise BadData(f"{name_of(raw)}: no noise in the overscan of {', '.join(silent)}")
    return image


def overscan_noise(raw: Raw, detector: Detector) -> Floats:
    """(16,), ADU: the standard deviation of the serial overscan about the mean of its row."""
    form = detector.format
    first = form.prescan + form.amp_width + TRAILED_COLUMNS
    read = raw.segments[:, : form.amp_height : _ROWS_FOR_NOISE, first:].astype(np.float32)
    read -= read.mean(axis=2, keepdims=True)
    spread: Floats = np.sqrt(np.square(read).sum(axis=2, dtype=np.float64).mean(axis=1) / (read.shape[2] - 1))
    return spread


def part_of(image: NDArray[Pixel], amplifier: Amplifier, detector: Detector) -> NDArray[Pixel]:
    """An amplifier's part of an assembled image, in the order of readout; no copy."""
    form = detector.format
    part = image[amplifier.y0 : amplifier.y0 + form.amp_height, amplifier.x0 : amplifier.x0 + form.amp_width]
    return part[:: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1]


def on_grid(values: Floats | Image, detector: Detector) -> Floats:
    """(2, 8): amplifiers' values (16,) as they lie on the detector, bottom row first."""
    form, grid = detector.format, np.empty((2, 8))
    for amplifier in detector.amplifiers:
        grid[amplifier.y0 // form.amp_height, amplifier.x0 // form.amp_width] = values[amplifier.index]
    return grid


def spread_out(values: Floats | Image, detector: Detector) -> Image:
    """(ny, nx) float32: each pixel its amplifier's value (16,)."""
    form = detector.format
    rows: Image = on_grid(values, detector).repeat(form.amp_width, 1).astype(np.float32)
    return rows.repeat(form.amp_height, 0)
