"""The dark: electrons that gather in a pixel each second without light.

The sum of long exposures in the dark over the sum of their times. Cosmic rays, a few thousand pixels of each, are in
one frame only and clipped (the product is that of Plazas Malagon et al. 2024, arXiv:2404.14516).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from payloads.calibration.bias import Bias
from payloads.calibration.electronics import Electronics
from payloads.calibration.frames import Frame, Rejected, blank_with, each_of, name_of, reduced, spread_out
from payloads.calibration.stack import Limits, Stacked, stacked
from schemas.errors import BadData
from schemas.image import Raw
from schemas.instrument import Detector

LIMITS = Limits(of_noise=0.5, of_level=0.5, photons=True)


@dataclass(frozen=True, eq=False)
class Dark:
    """`pixels`: electrons/s, the bias' error in its variance. `seconds`: of all frames together."""

    detector: int
    pixels: Stacked
    seconds: float


def make_dark(raws: Iterable[Raw | Rejected], detector: Detector, bias: Bias, electronics: Electronics) -> Dark:
    """The dark of a detector. Raises BadData if fewer than three frames are good."""
    pattern = bias.in_electrons(electronics.gain, detector)
    calibration = blank_with(detector, bias=pattern, **electronics.parts())
    times: dict[int, float] = {}

    def frame(raw: Raw) -> Frame:
        exposure, seconds = raw.observation.exposure, raw.observation.exposure_time
        if seconds <= 0.0:
            raise BadData(f"{name_of(raw)}: a dark of {seconds} s")
        image = reduced(raw, detector, calibration, "dark").image
        times[exposure] = seconds
        return Frame(exposure, image, seconds, calibration.read_noise.astype(float))

    pixels = stacked(each_of(raws, frame), detector, LIMITS, "dark")
    seconds = sum(times[exposure] for exposure in pixels.used)
    # The bias' own error is in every frame: it does not average out.
    shared = bias.pixels.variance * np.square(spread_out(electronics.gain, detector))
    pixels.variance[:] += shared * np.float32((len(pixels.used) / seconds) ** 2)
    return Dark(detector.id, pixels, seconds)
