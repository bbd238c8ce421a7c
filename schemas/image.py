"""Pixels and what belongs to them: raws, masked images, PSFs, calibrations, templates.

Arrays are C-ordered, indexed [y, x]; pixel (0, 0)'s centre is at x = y = 0.
"""

import hashlib
from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from schemas.wcs import Wcs

Image = NDArray[np.float32]
MaskPlane = NDArray[np.uint16]


class Mask(IntFlag):
    """Bits of the mask plane (uint16), from raw to alert. Names follow the alert schema's pixel flags."""

    BAD = 1 << 0
    SAT = 1 << 1
    INTRP = 1 << 2
    CR = 1 << 3
    EDGE = 1 << 4
    DETECTED = 1 << 5
    DETECTED_NEGATIVE = 1 << 6
    SUSPECT = 1 << 7
    NO_DATA = 1 << 8
    STREAK = 1 << 9
    INJECTED = 1 << 10
    INJECTED_TEMPLATE = 1 << 11
    SAT_TEMPLATE = 1 << 12
    HALO = 1 << 13
    UNMASKED_NAN = 1 << 14
    VIGNETTED = 1 << 15


@dataclass(frozen=True, eq=False)
class MaskedImage:
    """`image`, `variance` (its unit squared): float32 (ny, nx); `mask`: uint16 (ny, nx) of `Mask` bits."""

    image: Image
    mask: MaskPlane
    variance: Image

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        ny, nx = self.image.shape
        return ny, nx


SCIENCE = "science"
IMAGE_TYPES = (SCIENCE, "bias", "dark", "flat", "spot")
"""Spot: spots of light, one place of the readout lit in one amplifier at a time, for crosstalk."""


@dataclass(frozen=True)
class Observation:
    """What is known of an exposure when it is read out. Times TAI s; angles deg, ICRS."""

    instrument: str
    group: str
    visit: int
    exposure: int
    snap: int
    n_snaps: int
    image_name: str
    physical_filter: str
    band: str
    ra: float
    dec: float
    rotation: float
    """Position angle of the focal plane's +y, from north through east."""
    exposure_time: float
    started: float
    readout_ended: float
    survey: str = ""
    image_type: str = SCIENCE
    """What it was taken for: the observation types of LSST, of which `IMAGE_TYPES` are known here."""

    @property
    def midpoint(self) -> float:
        """Middle of the integration, TAI s."""
        return self.started + self.exposure_time / 2.0


@dataclass(frozen=True, eq=False)
class Raw:
    """One detector of one exposure as read. `segments`: int32 (16, rows, cols), ADU, laid out as in `Format`."""

    observation: Observation
    detector: int
    segments: NDArray[np.int32]
    sha256: str

    @classmethod
    def of(cls, observation: Observation, detector: int, segments: NDArray[np.int32]) -> "Raw":
        """A raw with the SHA-256 of its segments in C order."""
        return cls(observation, detector, segments, hashlib.sha256(segments.data).hexdigest())


@dataclass(frozen=True, eq=False)
class Psf:
    """A PSF that varies over an image as a polynomial.

    `components`: float32 (n, k, k), k odd, with n = (order + 1)(order + 2) / 2 terms u**i * v**j, in the order
    (0,0), (0,1), .. (0,order), (1,0), ..; u and v run from -1 to 1 over `shape` (ny, nx). Each `at` sums to one.
    """

    components: Image
    order: int
    shape: tuple[int, int]

    def at(self, x: float, y: float) -> Image:
        """The (k, k) kernel at pixel (x, y), sum 1, its centre in the middle pixel."""
        u, v = 2.0 * x / max(self.shape[1] - 1, 1) - 1.0, 2.0 * y / max(self.shape[0] - 1, 1) - 1.0
        terms = [u**i * v**j for i in range(self.order + 1) for j in range(self.order + 1 - i)]
        kernel = np.tensordot(np.asarray(terms, dtype=np.float64), self.components, 1)
        result: Image = (kernel / kernel.sum()).astype(np.float32)
        return result


LINEARITY_TERMS = 3
LINEARITY_ELECTRONS = 1e5


def _linear() -> Image:
    return np.zeros((16, LINEARITY_TERMS), np.float32)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `remove_signature` needs of a detector in a filter.

    bias, dark, flat: float32 (ny, nx): electrons, electrons/s, unitless with mean 1. defects: uint16 (ny, nx).
    gain (electrons/ADU), read_noise (electrons), saturation (electrons): (16,). crosstalk: (16, 16), the part of
    amplifier j's signal (electrons) that appears in amplifier i at [i, j], diagonal 0. linearity: (16,
    LINEARITY_TERMS), c: a signal above bias of s = x LINEARITY_ELECTRONS is a charge of s (1 + c0 x + c1 x^2 + ..).
    """

    bias: Image
    dark: Image
    flat: Image
    defects: MaskPlane
    gain: Image
    read_noise: Image
    saturation: Image
    crosstalk: Image
    linearity: Image = field(default_factory=_linear)


@dataclass(frozen=True, eq=False)
class VisitImage:
    """A calibrated image: nJy, background subtracted, with its WCS and PSF. `zero_point`: nJy per electron.

    `midpoint`: TAI s; `exposure_time`: s, of all snaps together.
    """

    pixels: MaskedImage
    wcs: Wcs
    psf: Psf
    zero_point: float
    band: str
    midpoint: float
    exposure_time: float
    background: Image = field(default_factory=lambda: np.zeros((0, 0), np.float32))


INPUT_BLOCK, INPUT_BITS = 32, 16
"""Pixels a side of the blocks of `Inputs.weight`; visits that a plane of `Inputs.taken` tells of."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """Of which visits the mean is, that an image is, and where.

    `weight`: (n, rows, columns), nJy**-2, of each of `visits` in blocks of 32 pixels; it falls towards a visit's edges.
    `taken`: (n / 16 rounded up, ny / 2, nx / 2), a bit for each visit, the first the lowest: whether it is in every
    other pixel.
    """

    visits: tuple[int, ...]
    weight: Image
    taken: MaskPlane

    def at(self, x: NDArray[np.int64], y: NDArray[np.int64]) -> Image:
        """(n, m): the weights of the visits at pixels x, y (m,) of the image; 0 where a visit was left out."""
        words = self.taken[:, y // 2, x // 2]
        bits = [words[k // INPUT_BITS] >> np.uint16(k % INPUT_BITS) & np.uint16(1) for k in range(len(self.visits))]
        result: Image = np.array(bits, np.float32) * self.weight[:, y // INPUT_BLOCK, x // INPUT_BLOCK]
        return result


@dataclass(frozen=True, eq=False)
class Template:
    """Deep sky in nJy, one band, in its own WCS (a tract's pixel grid, cropped), with one PSF.

    `inputs`: whose mean it is; None where nobody knows, or of a part.
    """

    pixels: MaskedImage
    wcs: Wcs
    psf: Psf
    band: str
    inputs: Inputs | None = None


@dataclass(frozen=True, eq=False)
class Difference:
    """Science less matched template, nJy. `psf`: the PSF of a point source in it. Same grid and WCS as science."""

    pixels: MaskedImage
    wcs: Wcs
    psf: Psf
    band: str
    midpoint: float
    exposure_time: float


@dataclass(frozen=True, eq=False)
class Stamp:
    """The three cutouts of a DIASource: each (k, k), and the local WCS and PSF of each. nJy."""

    science: MaskedImage
    template: MaskedImage
    difference: MaskedImage
    wcs: Wcs
    psf_science: Image
    psf_template: Image
    psf_difference: Image


@dataclass(frozen=True, eq=False)
class DiaProducts:
    """What alert production makes of a visit-detector, for association: measured sources, their stamps, and pixels.

    `sources`: `DiaSource` rows with their final ids, `diaObjectId` and `ssObjectId` still 0. `stamps`: one a source.
    """

    sources: NDArray[np.void]
    stamps: tuple[Stamp, ...]
    difference: Difference
    science: VisitImage
    summary: dict[str, float]
