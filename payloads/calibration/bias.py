"""The bias: what an amplifier adds to every pixel, whatever light fell, above its overscan.

Frames of no exposure, each row less the mean of its overscan, averaged pixel by pixel with outliers clipped (the
product is that of Plazas Malagon et al. 2024, arXiv:2404.14516).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from payloads.calibration.frames import Floats, Frame, Rejected, blank, each_of, overscan_noise, reduced, spread_out
from payloads.calibration.stack import Limits, Stacked, stacked
from schemas.image import Image, Raw
from schemas.instrument import Detector

LIMITS = Limits(of_noise=0.5, of_level=0.0, photons=False)


@dataclass(frozen=True, eq=False)
class Bias:
    """`pixels`: ADU. `read_noise`: float64 (16,), ADU, rms over the frames of what the overscan shows of it."""

    detector: int
    pixels: Stacked
    read_noise: Floats

    def in_electrons(self, gain: Image, detector: Detector) -> Image:
        """(ny, nx), electrons, as a `Calibration` has it."""
        return self.pixels.image * spread_out(gain, detector)


def make_bias(raws: Iterable[Raw | Rejected], detector: Detector) -> Bias:
    """The bias of a detector. Ten frames leave 0.32 of one's read noise.

    Raises BadData if fewer than three frames are good.
    """
    noise: dict[int, Floats] = {}
    nothing = blank(detector)

    def frame(raw: Raw) -> Frame:
        image, exposure = reduced(raw, detector, nothing, "bias").image, raw.observation.exposure
        noise[exposure] = overscan_noise(raw, detector)
        return Frame(exposure, image, 1.0, noise[exposure])

    pixels = stacked(each_of(raws, frame), detector, LIMITS, "bias")
    read_noise = np.sqrt(np.mean([noise[exposure] ** 2 for exposure in pixels.used], axis=0))
    return Bias(detector.id, pixels, read_noise)
