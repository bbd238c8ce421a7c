"""The flat: how much of the light each pixel turns into electrons, in one band, over the detector's mean.

Frames under one lamp, all electronics undone, each with a level of its own (the lamp's): their sum over the sum of
levels, which is the most likely value where photons make the noise.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from payloads.calibration.bias import Bias
from payloads.calibration.dark import Dark
from payloads.calibration.electronics import Electronics
from payloads.calibration.frames import Frame, Rejected, blank_with, each_of, name_of, reduced
from payloads.calibration.stack import Limits, Stacked, stacked
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage, Raw
from schemas.instrument import Detector

LIMITS = Limits(of_noise=0.5, of_level=0.02, photons=True)
LAMP_OFF = 500.0
"""Electrons: a flat below is none."""
BRIGHTEST = 0.9
"""Of the lowest amplifier's saturation: scattered pixels of a brighter flat are full."""
_SAMPLED = 8
_FULL_PART = 1e-3


@dataclass(frozen=True, eq=False)
class Flat:
    """`pixels`: unitless, mean 1 over those not masked. `rate`: electrons/s where it is 1, over the frames."""

    detector: int
    band: str
    pixels: Stacked
    rate: float


def make_flat(
    raws: Iterable[Raw | Rejected], detector: Detector, band: str, bias: Bias, dark: Dark, electronics: Electronics
) -> Flat:
    """The flat of a detector in a band. Raises BadData if fewer than three frames are good."""
    pattern = bias.in_electrons(electronics.gain, detector)
    calibration = blank_with(detector, bias=pattern, dark=dark.pixels.image, **electronics.parts())
    seen: dict[int, tuple[float, float]] = {}

    def frame(raw: Raw) -> Frame:
        if (other := raw.observation.band) != band:
            raise BadData(f"{name_of(raw)}: a flat in {other!r} among those in {band!r}")
        made = reduced(raw, detector, calibration, "flat")
        level = _level(made, calibration.saturation, name_of(raw))
        seen[raw.observation.exposure] = raw.observation.exposure_time, level
        return Frame(raw.observation.exposure, made.image, level, calibration.read_noise.astype(float))

    pixels = stacked(each_of(raws, frame), detector, LIMITS, f"flat in {band}")
    mean = float(pixels.image.mean(where=pixels.mask == 0, dtype=np.float64))
    seconds, levels = np.sum([seen[exposure] for exposure in pixels.used], axis=0)
    return Flat(detector.id, band, _over(pixels, mean), mean * float(levels / seconds))


def _over(pixels: Stacked, mean: float) -> Stacked:
    pixels.image[:] /= np.float32(mean)
    pixels.variance[:] /= np.float32(mean * mean)
    return pixels


def _level(made: MaskedImage, saturation: Image, name: str) -> float:
    """Electrons: the median pixel's. Raises BadData if the lamp was off, or too bright."""
    level = float(np.median(made.image[::_SAMPLED, ::_SAMPLED]))
    full = float(np.mean(made.mask[::_SAMPLED, ::_SAMPLED] & np.uint16(Mask.SAT) != 0))
    if not level >= LAMP_OFF:
        raise BadData(f"{name}: a flat of {level:.0f} electrons: the lamp was off")
    if level > BRIGHTEST * float(saturation.min()) or full > _FULL_PART:
        raise BadData(f"{name}: a saturated flat of {level:.0f} electrons, {100.0 * full:.1f} % of its pixels full")
    return level
