from dataclasses import replace

import numpy as np
import pytest

from payloads.calibration.bias import Bias, make_bias
from payloads.calibration.crosstalk import Crosstalk
from payloads.calibration.ladder import Ladder, _equations, _Places, solve
from payloads.calibration.pairs import _moments
from payloads.calibration.photon_transfer import PhotonTransfer, measure_photon_transfer
from schemas.errors import BadData
from tests.payloads.calibration.small_ccd import (
    SMALL,
    chip,
    linearity_error,
    pairs,
    raw,
    raws,
    spoilt,
    true_crosstalk_in_adu,
)

CHIP = chip()
LADDER = (0.1, 0.4, 1.0, 1.8, 2.6, 3.4, 4.3, 8.0)
CROSSTALK = Crosstalk(94, true_crosstalk_in_adu(CHIP), np.zeros((16, 16)), 1.0, (), ())


@pytest.fixture(scope="module")
def bias() -> Bias:
    return make_bias(raws("bias", 8), SMALL)


@pytest.fixture(scope="module")
def told(bias: Bias) -> PhotonTransfer:
    return measure_photon_transfer(pairs(LADDER), SMALL, bias, CROSSTALK)


def test_gains_are_the_simulators_within_their_errors(told: PhotonTransfer) -> None:
    pull = (told.gain / CHIP.gain - 1.0) / told.gain_error
    assert told.gain_error.max() < 0.007
    assert np.sqrt(np.mean(pull**2)) < 1.8
    np.testing.assert_allclose(told.read_noise, CHIP.read_noise, rtol=0.03)


def test_curves_are_the_simulators_within_their_errors(told: PhotonTransfer) -> None:
    error = linearity_error(CHIP, told.linearity)
    assert told.curve_error.max() < 0.003
    assert error.max() < 3.0 * told.curve_error.max()
    assert np.ptp(error) < 0.001  # relative to one another they are known far better
    assert np.nanmax(np.abs(told.residuals)) < 1e-3


def test_the_full_well_is_where_the_noise_ends(told: PhotonTransfer) -> None:
    assert told.reached.all()
    compressed = CHIP.full_well * (1.0 + CHIP.compression.sum(axis=1))
    np.testing.assert_allclose(told.full_well * CHIP.gain / told.gain, compressed, rtol=2e-3)
    assert np.isnan(told.residuals[-1]).all()


def test_a_ladder_that_ends_below_the_full_well_says_so(bias: Bias) -> None:
    short = measure_photon_transfer(pairs(LADDER[:-1]), SMALL, bias, CROSSTALK)
    assert not short.reached.any()
    assert np.all(short.full_well < CHIP.full_well)


def test_a_lamp_that_changes_between_the_two_does_not_add_noise(bias: Bias, told: PhotonTransfer) -> None:
    made = list(pairs(LADDER))
    made[4] = made[4][0], raw("flat", 60, LADDER[4], 2000)  # of another visit: the lamp is a percent off
    other = measure_photon_transfer(made, SMALL, bias, CROSSTALK)
    np.testing.assert_allclose(other.gain, told.gain, rtol=0.01)
    assert np.abs(other.residuals[4] - told.residuals[4]).max() < 1e-3


def test_a_pair_with_a_bad_frame_is_left_out_and_named(bias: Bias, told: PhotonTransfer) -> None:
    made = list(pairs(LADDER))
    dark = raw("flat", 61, 0.0001)
    empty = spoilt(made[2][1], np.zeros_like(made[2][1].segments))
    off = replace(dark, observation=replace(dark.observation, exposure_time=1.8))
    bad = [*made[:2], (made[2][0], empty), (off, off), (made[4][0], made[5][0]), *made[3:]]
    other = measure_photon_transfer(bad, SMALL, bias, CROSSTALK)
    assert [left.exposure for left in other.rejected] == [
        made[2][0].observation.exposure, off.observation.exposure, made[4][0].observation.exposure,
    ]  # fmt: skip
    reasons = [left.why for left in other.rejected]
    assert "no noise in the overscan" in reasons[0]
    assert "the lamp was off" in reasons[1]
    assert "are no pair: times or bands differ" in reasons[2]
    np.testing.assert_allclose(other.gain, told.gain, rtol=0.01)


def test_too_few_pairs_are_refused_by_name(bias: Bias) -> None:
    with pytest.raises(BadData, match=r"photon transfer of detector 94: 4 pairs are left of all, 5 are the least"):
        measure_photon_transfer(pairs(LADDER[:4]), SMALL, bias, CROSSTALK)
    full = [*LADDER[:3], 6.0, 7.0, 8.0, 9.0]
    with pytest.raises(BadData, match="3 pairs are left below the full well of C10"):
        measure_photon_transfer(pairs(tuple(full)), SMALL, bias, CROSSTALK)


def test_crosstalk_is_turned_into_that_of_electrons(told: PhotonTransfer) -> None:
    made = told.electronics(CROSSTALK)
    np.testing.assert_allclose(made.crosstalk, CHIP.crosstalk, rtol=0.03, atol=1e-9)
    np.testing.assert_allclose(made.saturation, 0.95 * told.full_well, rtol=1e-6)
    assert {part.dtype for part in made.parts().values()} == {np.dtype("f4")}


def test_the_moments_are_those_of_plain_numpy() -> None:
    rng = np.random.default_rng(1)
    one, other = (rng.normal(level, 30.0, (40, 50)).astype(np.float32) for level in (1000.0, 1010.0))
    one[3, 4], other[10, 11], one[20:25, 7] = 5000.0, 0.0, 400.0
    other[20:25, 7] = 400.0
    made = _moments(one, other, 1.005, 0.995, 1.0, 1005.0, 350.0, 200.0)
    mean, d = 0.5 * (one.astype(float) + other), 1.005 * one.astype(float) - 0.995 * other - 1.0
    kept = (np.abs(mean - 1005.0) <= 350.0) & (np.abs(d) <= 200.0)
    assert made[0] == kept.sum() == 40 * 50 - 7
    assert made[1] == pytest.approx(mean[kept].mean(), rel=1e-7)
    assert made[2] == pytest.approx(mean[kept].max(), rel=1e-6)
    assert made[3] == pytest.approx(0.5 * d[kept].var(ddof=1), rel=1e-5)
    along = (d[:, 1:] * d[:, :-1])[kept[:, 1:] & kept[:, :-1]].mean()
    across = (d[1:] * d[:-1])[kept[1:] & kept[:-1]].mean()
    assert made[4] == pytest.approx(along / d[kept].var(), abs=1e-5)
    assert made[5] == pytest.approx(across / d[kept].var(), abs=1e-5)


def made_up_ladder(seed: int) -> tuple[Ladder, np.ndarray, np.ndarray]:
    """Levels and variances of known gains and curves, with their noise."""
    rng = np.random.default_rng(seed)
    gain, curves = rng.normal(1.5, 0.05, 16), rng.normal(0.0, 0.01, (16, 3))
    seconds = np.linspace(0.1, 4.2, 9)
    lamp = rng.normal(1.0, 0.01, 9)
    charge = (seconds * lamp)[:, None, None] * rng.uniform(14e3, 15e3, (16, 4)) / gain[:, None]
    level = charge.copy()
    for _ in range(30):
        y = (level / 65536.0)[..., None] ** np.arange(1, 4)
        level = charge / (1.0 + (y * curves[:, None]).sum(axis=-1))
    slope = 1.0 + (np.arange(2, 5) * y * curves[:, None]).sum(axis=-1)
    pixels = np.full(level.shape, 2.5e5)
    variance = charge / gain[:, None] / slope**2 * rng.normal(1.0, np.sqrt(2.0 / pixels))
    level *= rng.normal(1.0, 1e-5, level.shape)
    return Ladder(seconds, level, variance, pixels, np.ones(level.shape, bool)), gain, curves


def test_the_ladder_is_solved_within_its_errors() -> None:
    pulls, curve_pulls = [], []
    for seed in range(5):
        ladder, gain, curves = made_up_ladder(seed)
        solution = solve(ladder)
        pulls.append((solution.gain / gain - 1.0) / solution.gain_error)
        top = ladder.level.max(axis=(0, 2)) / 65536.0
        off = ((solution.curves - curves) * top[:, None] ** np.arange(1, 4)).sum(axis=1)
        curve_pulls.append(off.mean() / solution.curve_error.mean())
        assert np.ptp(off) < 3e-4
    assert 0.5 < np.std(pulls) < 1.6
    assert np.abs(curve_pulls).max() < 3.0


def test_the_derivatives_are_those_of_differences() -> None:
    ladder, _, _ = made_up_ladder(7)
    at = _Places(*ladder.level.shape)
    rng = np.random.default_rng(3)
    values = np.log(np.abs(rng.normal(1.0, 0.01, at.size)))
    misfit, jacobian = _equations(values, ladder, at)
    for place in rng.choice(at.size, 25, replace=False):
        moved = values.copy()
        moved[place] += 1e-6
        difference = (_equations(moved, ladder, at)[0] - misfit) / 1e-6
        np.testing.assert_allclose(jacobian[:, place], difference, rtol=1e-3, atol=1e-3 * np.abs(jacobian).max())
