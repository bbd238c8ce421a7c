"""From the parts of a detector and band to the `Calibration` that `remove_signature` takes."""

import numpy as np

from payloads.calibration.bias import Bias
from payloads.calibration.dark import Dark
from payloads.calibration.defects import Defects
from payloads.calibration.electronics import Electronics
from payloads.calibration.flat import Flat
from schemas.errors import BadData
from schemas.image import Calibration
from schemas.instrument import Detector


def assemble(
    detector: Detector, bias: Bias, dark: Dark, flat: Flat, defects: Defects, electronics: Electronics
) -> Calibration:
    """The calibration of a detector in the flat's band. Raises BadData, naming the part that is of another detector."""
    for part in (bias, dark, flat, defects):
        if part.detector != detector.id:
            raise BadData(
                f"calibration of detector {detector.id}: {type(part).__name__} is of detector {part.detector}"
            )
    shape = (detector.format.height, detector.format.width)
    for name, plane in (("bias", bias.pixels.image), ("dark", dark.pixels.image), ("flat", flat.pixels.image)):
        if plane.shape != shape or not np.isfinite(plane).all():
            raise BadData(f"calibration of detector {detector.id}: {name} is {plane.shape}, or not finite, not {shape}")
    return Calibration(
        bias=bias.in_electrons(electronics.gain, detector),
        dark=dark.pixels.image,
        flat=flat.pixels.image,
        defects=defects.plane,
        **electronics.parts(),
    )
