"""Gain, non-linearity and full well of each amplifier, from pairs of flats over a ladder of levels.

The photon transfer curve: the shot noise of q electrons has a variance of q, so that variance against level, in ADU,
has the slope 1 / gain (Astier et al. 2019, A&A 629, A36, whose higher terms, of charge that repels
charge, are taken as 0: neighbours that are alike in the difference of a pair would show them, and
`PhotonTransfer.correlation` says how alike they are). An amplifier that compresses its signal compresses the noise
by the square of the slope of the same curve.

All pairs and amplifiers are solved together for gains, curves, the light that each amplifier gets, and the lamp of
each pair, of which only the time is known and that it drifts by a percent: what the amplifiers show relative to one
another, levels tell to 1e-5; what they have in common, the curvature of the variance tells.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from payloads.calibration.bias import Bias
from payloads.calibration.crosstalk import Crosstalk
from payloads.calibration.electronics import Electronics
from payloads.calibration.frames import (
    AMPLIFIERS,
    Floats,
    Rejected,
    blank_with,
    each_of,
    name_of,
    reduced,
    told_apart,
)
from payloads.calibration.ladder import UNIT, Ladder, solve
from payloads.calibration.pairs import PairMoments, pair_moments
from schemas.errors import BadData
from schemas.image import LINEARITY_ELECTRONS, LINEARITY_TERMS, Calibration, Raw
from schemas.instrument import Detector

LEAST_PAIRS = LINEARITY_TERMS + 2
SATURATION_PART = 0.95
"""Of the full well: from here on a pixel counts as saturated."""
LAMP_OFF = 100.0
"""ADU."""
_FULL_NOISE = 0.5
"""Part of the usual variance at a level below which an amplifier's pixels are full."""
_BELOW_FULL = 0.985
"""Part of the full well below which all pixels of a block are, lest some were clipped, or got what others lost."""
_KEPT_PART = 0.5
"""Of the pixels of an amplifier, or block, that have to be like those of the other frame."""
_SAME_PART = 0.995
"""Of a block's pixels that have to count in every pair: where brighter ones are full, the rest has another mean."""


@dataclass(frozen=True, eq=False)
class PhotonTransfer:
    """float64 (16,) unless said.

    gain: electrons/ADU. read_noise, full_well: electrons, the latter of the signal, which is compressed. linearity:
    (16, terms), as in `Calibration`. gain_error, curve_error: relative, the latter of the charge at the highest level
    below the full well. reached: whether the ladder filled the amplifier. correlation: of neighbours, at that level.
    lamp (n,), residuals (n, 16): see `ladder`.
    """

    detector: int
    gain: Floats
    gain_error: Floats
    read_noise: Floats
    full_well: Floats
    reached: NDArray[np.bool_]
    linearity: Floats
    curve_error: Floats
    correlation: Floats
    lamp: Floats
    residuals: Floats
    used: tuple[int, ...]
    rejected: tuple[Rejected, ...]

    def electronics(self, crosstalk: Crosstalk) -> Electronics:
        """What ISR takes, with the crosstalk turned from ADU to electrons."""
        return Electronics(
            gain=self.gain.astype(np.float32),
            read_noise=self.read_noise.astype(np.float32),
            saturation=(SATURATION_PART * self.full_well).astype(np.float32),
            crosstalk=(crosstalk.matrix * self.gain[:, None] / self.gain[None, :]).astype(np.float32),
            linearity=self.linearity.astype(np.float32),
        )


def measure_photon_transfer(
    pairs: Iterable[tuple[Raw, Raw] | Rejected], detector: Detector, bias: Bias, crosstalk: Crosstalk
) -> PhotonTransfer:
    """Solve the ladder of a detector; one pair is in memory at a time.

    The highest pair should fill every amplifier: where none does, the full well is the highest level, a lower limit.
    Raises BadData, naming those left out, if fewer than five pairs below the full well are good.
    """
    calibration = blank_with(detector, bias=bias.pixels.image, crosstalk=crosstalk.matrix.astype(np.float32))

    def moments(pair: tuple[Raw, Raw]) -> tuple[int, tuple[float, PairMoments]]:
        seen = pair[0].observation
        return seen.exposure, (seen.exposure_time, _of_pair(pair, detector, calibration))

    found, rejected = told_apart(each_of(pairs, moments))
    if len(found) < LEAST_PAIRS:
        raise BadData(_too_few(detector, "of all", len(found), rejected))
    return _solved(detector, bias, dict(found), rejected)


def _of_pair(pair: tuple[Raw, Raw], detector: Detector, calibration: Calibration) -> PairMoments:
    one, other = pair
    if (
        one.observation.exposure_time != other.observation.exposure_time
        or one.observation.band != other.observation.band
    ):
        raise BadData(f"{name_of(one)} and {name_of(other)} are no pair: times or bands differ")
    first, second = (reduced(raw, detector, calibration, "flat").image for raw in pair)
    told = pair_moments(first, second, detector)
    light = np.median(told.level, axis=1)
    if (light < LAMP_OFF).any():
        name = detector.amplifiers[int(light.argmin())].name
        raise BadData(f"{name_of(one)}: {light.min():.0f} ADU of light in {name}: the lamp was off")
    kept = told.pixels.sum(axis=1) / (told.size * told.pixels.shape[1])
    if (kept < _KEPT_PART).any():
        name = detector.amplifiers[int(kept.argmin())].name
        raise BadData(f"{name_of(one)}: {100.0 * kept.min():.0f} % of {name} only is like the other frame")
    return told


def _solved(
    detector: Detector, bias: Bias, found: dict[int, tuple[float, PairMoments]], rejected: tuple[Rejected, ...]
) -> PhotonTransfer:
    order = sorted(found, key=lambda exposure: found[exposure][0])
    told = [found[exposure][1] for exposure in order]
    level, highest, pixels = (
        np.array([getattr(each, name) for each in told]) for name in ("level", "highest", "pixels")
    )
    # The mean of a row's overscan has noise of its own.
    read = bias.read_noise**2 * (1.0 + 1.0 / detector.format.serial_overscan)
    variance = np.array([each.variance for each in told]) - read[:, None]
    full, reached = _full_well(level, variance)
    fits = (pixels > _KEPT_PART * told[0].size) & (pixels > _SAME_PART * pixels.max(axis=0)) & (variance > 0.0)
    fits &= (highest < _BELOW_FULL * full[:, None]) | ~reached[:, None]
    left = fits.any(axis=2).sum(axis=0)
    if (left < LEAST_PAIRS).any():
        name = detector.amplifiers[int(left.argmin())].name
        raise BadData(_too_few(detector, f"below the full well of {name}", int(left.min()), rejected))
    seconds = np.array([found[exposure][0] for exposure in order])
    solution = solve(Ladder(seconds, level, variance, pixels, fits))
    gain = solution.gain
    powers = np.arange(1, LINEARITY_TERMS + 1)
    return PhotonTransfer(
        detector=detector.id, gain=gain, gain_error=solution.gain_error, read_noise=bias.read_noise * gain,
        full_well=full * gain, reached=reached,
        linearity=solution.curves * (LINEARITY_ELECTRONS / (gain[:, None] * UNIT)) ** powers,
        curve_error=solution.curve_error, correlation=_correlation(told, level, fits), lamp=solution.lamp,
        residuals=solution.residuals, used=tuple(order), rejected=rejected,
    )  # fmt: skip


def _too_few(detector: Detector, where: str, left: int, rejected: Iterable[Rejected]) -> str:
    why = "; ".join(each.why for each in rejected) or "no more came"
    return (
        f"photon transfer of detector {detector.id}: {left} pairs are left {where}, {LEAST_PAIRS} are the least: {why}"
    )


def _full_well(level: Floats, variance: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """(16,) ADU: the level at which the noise is gone; where none is, the highest, which was not full."""
    usual = np.median((variance / np.maximum(level, 1e-3))[: len(level) // 2 + 1], axis=0)
    full = variance < _FULL_NOISE * usual * level
    reached: NDArray[np.bool_] = np.any(full, axis=(0, 2))
    return np.where(full | ~reached[:, None], level, 0.0).max(axis=(0, 2)), reached


def _correlation(told: list[PairMoments], level: Floats, fits: NDArray[np.bool_]) -> Floats:
    """(16,): the mean over blocks of neighbours' correlation, in the pair that is brightest of those not full."""
    top = np.where(fits, level, 0.0).max(axis=2).argmax(axis=0)
    amplifiers = np.arange(AMPLIFIERS)
    along, across = (np.array([getattr(each, name) for each in told]) for name in ("along", "across"))
    both = [np.mean(each[top, amplifiers], axis=1, where=fits[top, amplifiers]) for each in (along, across)]
    return np.asarray(np.where(np.abs(both[0]) > np.abs(both[1]), *both))
