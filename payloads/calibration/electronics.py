"""What is known of a detector's amplifiers once its flats were understood."""

from dataclasses import dataclass

import numpy as np

from payloads.calibration.frames import AMPLIFIERS
from schemas.image import LINEARITY_TERMS, Calibration, Image


@dataclass(frozen=True, eq=False)
class Electronics:
    """float32, as `schemas.image.Calibration` has them.

    gain (electrons/ADU), read_noise, saturation (electrons): (16,). crosstalk: (16, 16) of electrons. linearity:
    (16, LINEARITY_TERMS).
    """

    gain: Image
    read_noise: Image
    saturation: Image
    crosstalk: Image
    linearity: Image

    @classmethod
    def of(cls, calibration: Calibration) -> "Electronics":
        """Those that a calibration made earlier has: an afternoon's bias, dark and flat need no new ladder."""
        return cls(**{name: getattr(calibration, name) for name in cls.__dataclass_fields__})

    def parts(self) -> dict[str, Image]:
        """By name."""
        return dict(vars(self))

    def __post_init__(self) -> None:
        shapes = {name: np.shape(value) for name, value in vars(self).items()}
        assert shapes == {
            **dict.fromkeys(("gain", "read_noise", "saturation"), (AMPLIFIERS,)),
            "crosstalk": (AMPLIFIERS, AMPLIFIERS),
            "linearity": (AMPLIFIERS, LINEARITY_TERMS),
        }, shapes
