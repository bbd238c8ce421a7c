"""Whether a product may be used: figures of it against named limits.

A product of which a check fails is not to be certified (the order of things is that of DMTN-222). The limits are wide
enough for every detector of the camera on a usual day, and narrow enough that a lamp that flickered, a warm detector
or interference shows.
"""

from dataclasses import dataclass

import numpy as np

from payloads.calibration.bias import Bias
from payloads.calibration.crosstalk import Crosstalk
from payloads.calibration.dark import Dark
from payloads.calibration.defects import Defects
from payloads.calibration.flat import Flat
from payloads.calibration.frames import Floats
from payloads.calibration.photon_transfer import PhotonTransfer
from payloads.calibration.stack import Stacked
from schemas.image import Image, Mask

_BLOCK = 32
_LIMITS: dict[str, tuple[float, float]] = {
    "bias: frames left out, part": (0.0, 0.3),
    "bias: noise of a pixel, ADU": (0.3, 5.0),
    "bias: read noise, largest of the amplifiers, ADU": (1.0, 10.0),
    "bias: level, largest of blocks of 32 pixels, ADU": (0.0, 50.0),
    "bias: gradient over blocks of 32 pixels, rms, ADU": (0.0, 10.0),
    "dark: frames left out, part": (0.0, 0.3),
    "dark: noise of a pixel, electrons/s": (0.0, 0.5),
    "dark: current, median, electrons/s": (-0.02, 0.2),
    "dark: pixels that were lost, part": (0.0, 1e-3),
    "flat: frames left out, part": (0.0, 0.3),
    "flat: photon noise of a pixel": (0.0, 0.005),
    "flat: lowest of the blocks of 32 pixels": (0.1, 1.0),
    "flat: highest of the blocks of 32 pixels": (1.0, 2.0),
    "flat: pixels that were lost, part": (0.0, 1e-3),
    "defects: bad pixels, part": (0.0, 0.01),
    "defects: bad columns": (0.0, 200.0),
    "crosstalk: largest coefficient": (0.0, 5e-3),
    "crosstalk: largest error": (0.0, 5e-6),
    "crosstalk: exposures differ by, in errors": (0.0, 3.0),
    "photon transfer: pairs left out, part": (0.0, 0.3),
    "photon transfer: lowest gain, electrons/ADU": (1.0, 2.5),
    "photon transfer: highest gain, electrons/ADU": (1.0, 2.5),
    "photon transfer: gain's relative error, largest": (0.0, 0.005),
    "photon transfer: read noise, largest, electrons": (2.0, 13.0),
    "photon transfer: full well, smallest, electrons": (5e4, 2.5e5),
    "photon transfer: full well, largest, electrons": (5e4, 2.5e5),
    "photon transfer: amplifiers not filled": (0.0, 0.0),
    "photon transfer: non-linearity at the full well, largest": (0.0, 0.05),
    "photon transfer: linearity's error at the full well, largest": (0.0, 0.001),
    "photon transfer: residual non-linearity, largest": (0.0, 0.001),
    "photon transfer: neighbours' correlation, mean": (-0.002, 0.002),
    "photon transfer: lamp's drift, largest": (0.0, 0.1),
}


@dataclass(frozen=True)
class Check:
    """One figure; it passes from `low` to `high`, both included. NaN never passes."""

    name: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether it is inside."""
        return self.low <= self.value <= self.high


Product = Bias | Dark | Flat | Defects | Crosstalk | PhotonTransfer


def verify(product: Product) -> tuple[Check, ...]:
    """The report of a product, in a fixed order."""
    if isinstance(product, Bias):
        return _checks("bias", _of_bias(product))
    if isinstance(product, Dark):
        return _checks("dark", _of_dark(product))
    if isinstance(product, Flat):
        return _checks("flat", _of_flat(product))
    if isinstance(product, Defects):
        return _checks("defects", _of_defects(product))
    if isinstance(product, Crosstalk):
        return _checks("crosstalk", _of_crosstalk(product))
    return _checks("photon transfer", _of_photon_transfer(product))


def _checks(kind: str, figures: dict[str, float]) -> tuple[Check, ...]:
    return tuple(Check(name, float(value), *_LIMITS[name]) for name, value in _named(kind, figures).items())


def _named(kind: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{kind}: {name}": value for name, value in figures.items()}


def _left_out(rejected: int, used: int) -> float:
    return rejected / max(rejected + used, 1)


def _pixel_noise(pixels: Stacked) -> float:
    return float(np.sqrt(np.median(pixels.variance[::8, ::8])))


def _blocks(image: Image) -> Floats:
    """Medians of blocks of 32 x 32 pixels; what is left over at the ends is not looked at."""
    ny, nx = (max(1, n // _BLOCK) for n in image.shape)
    part = image[: ny * _BLOCK, : nx * _BLOCK].reshape(ny, -1, nx, image[:, : nx * _BLOCK].shape[1] // nx)
    return np.asarray(np.median(part, axis=(1, 3)), np.float64)


def _of_bias(bias: Bias) -> dict[str, float]:
    pixels = bias.pixels
    blocks = _blocks(pixels.image)
    return {
        "frames left out, part": _left_out(len(pixels.rejected), len(pixels.used)),
        "noise of a pixel, ADU": _pixel_noise(pixels),
        "read noise, largest of the amplifiers, ADU": bias.read_noise.max(),
        "level, largest of blocks of 32 pixels, ADU": np.abs(blocks).max(),
        "gradient over blocks of 32 pixels, rms, ADU": blocks.std(),
    }


def _of_dark(dark: Dark) -> dict[str, float]:
    pixels = dark.pixels
    return {
        "frames left out, part": _left_out(len(pixels.rejected), len(pixels.used)),
        "noise of a pixel, electrons/s": _pixel_noise(pixels),
        "current, median, electrons/s": np.median(pixels.image[::4, ::4]),
        "pixels that were lost, part": np.mean(pixels.mask != 0),
    }


def _of_flat(flat: Flat) -> dict[str, float]:
    pixels = flat.pixels
    blocks = _blocks(pixels.image)
    return {
        "frames left out, part": _left_out(len(pixels.rejected), len(pixels.used)),
        "photon noise of a pixel": _pixel_noise(pixels),
        "lowest of the blocks of 32 pixels": blocks.min(),
        "highest of the blocks of 32 pixels": blocks.max(),
        "pixels that were lost, part": np.mean(pixels.mask != 0),
    }


def _of_defects(defects: Defects) -> dict[str, float]:
    return {
        "bad pixels, part": np.mean(defects.plane & np.uint16(Mask.BAD) != 0),
        "bad columns": defects.columns,
    }


def _of_crosstalk(crosstalk: Crosstalk) -> dict[str, float]:
    return {
        "largest coefficient": np.abs(crosstalk.matrix).max(),
        "largest error": crosstalk.error.max(),
        "exposures differ by, in errors": crosstalk.agreement,
    }


def _of_photon_transfer(told: PhotonTransfer) -> dict[str, float]:
    top = (told.full_well / 1e5)[:, None] ** np.arange(1, told.linearity.shape[1] + 1)
    return {
        "pairs left out, part": _left_out(len(told.rejected), len(told.used)),
        "lowest gain, electrons/ADU": told.gain.min(),
        "highest gain, electrons/ADU": told.gain.max(),
        "gain's relative error, largest": told.gain_error.max(),
        "read noise, largest, electrons": told.read_noise.max(),
        "full well, smallest, electrons": told.full_well.min(),
        "full well, largest, electrons": told.full_well.max(),
        "amplifiers not filled": np.sum(~told.reached),
        "non-linearity at the full well, largest": np.abs((told.linearity * top).sum(axis=1)).max(),
        "linearity's error at the full well, largest": told.curve_error.max(),
        "residual non-linearity, largest": np.nanmax(np.abs(told.residuals)),
        "neighbours' correlation, mean": told.correlation.mean(),
        "lamp's drift, largest": np.abs(told.lamp).max(),
    }
