from dataclasses import replace

import numpy as np
import pytest

from payloads.calibration.bias import Bias, make_bias
from payloads.calibration.crosstalk import BRIGHT, Crosstalk, _gather, measure_crosstalk
from schemas.errors import BadData
from tests.payloads.calibration.small_ccd import SMALL, chip, raw, raws, spoilt, true_crosstalk_in_adu

OFF = ~np.eye(16, dtype=bool)
SECONDS = 2.0


@pytest.fixture(scope="module")
def bias() -> Bias:
    return make_bias(raws("bias", 8), SMALL)


@pytest.fixture(scope="module")
def crosstalk(bias: Bias) -> Crosstalk:
    return measure_crosstalk(raws("spot", 4, SECONDS), SMALL, bias)


def test_the_matrix_is_what_the_simulator_put_in(crosstalk: Crosstalk) -> None:
    off = crosstalk.matrix - true_crosstalk_in_adu(chip())
    assert 0.8 < np.std(off[OFF] / crosstalk.error[OFF]) < 1.8
    assert np.abs(off).max() < 2.5e-5
    assert np.all(np.diag(crosstalk.matrix) == 0.0)
    assert len(crosstalk.used) == 4
    assert 0.7 < crosstalk.agreement < 1.5


def test_rays_do_not_pull_it(bias: Bias, crosstalk: Crosstalk) -> None:
    rng, struck = np.random.default_rng(1), []
    for taken in raws("spot", 4, SECONDS):
        segments = taken.segments.copy()
        segments[rng.random(segments.shape) < 2e-3] += 800
        segments[..., SMALL.format.prescan + SMALL.format.amp_width :] = taken.segments[
            ..., SMALL.format.prescan + SMALL.format.amp_width :
        ]
        struck.append(spoilt(taken, segments))
    again = measure_crosstalk(struck, SMALL, bias)
    assert np.abs(again.matrix - crosstalk.matrix).max() < 1.5 * crosstalk.error[OFF].max()


def test_the_normal_equations_are_those_of_plain_numpy() -> None:
    rng = np.random.default_rng(2)
    segments = rng.normal(10.0, 3.0, (16, 12, 20)).astype(np.float32)
    for place in range(60):
        segments[rng.integers(16), place % 12, rng.integers(20)] = 30_000.0 + place
    start, base = rng.normal(0.0, 1e-4, (16, 16)), np.full(16, 10.0)
    np.fill_diagonal(start, 0.0)
    far = rng.random((12, 20)) < 0.5
    reach = np.full(16, 7.0)
    made = np.zeros((16, 17, 17)), np.zeros((16, 17)), np.zeros(16), np.zeros(16)
    _gather(segments, BRIGHT, far, start, base, reach, *made)
    lit = segments > BRIGHT
    sources = np.where(lit, segments, 0.0).reshape(16, -1).astype(np.float64)
    above = segments.reshape(16, -1) - base[:, None] - start @ sources
    counts = (lit.any(axis=0) | far).reshape(-1) & (np.abs(above) <= reach[:, None])
    design = np.concatenate([np.ones((1, 240)), sources])
    for i in range(16):
        chosen = design[:, counts[i]]
        np.testing.assert_allclose(made[0][i], chosen @ chosen.T, rtol=1e-6)
        np.testing.assert_allclose(made[1][i], chosen @ above[i, counts[i]], rtol=1e-4, atol=1.0)
    np.testing.assert_allclose(made[2], np.where(counts, above**2, 0.0).sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(made[3], counts.sum(axis=1))


def test_a_spot_exposure_without_spots_is_left_out_and_named(bias: Bias) -> None:
    dim = raw("bias", 0)
    dim = replace(dim, observation=replace(dim.observation, image_type="spot"))
    made = measure_crosstalk([dim, *raws("spot", 2, SECONDS)], SMALL, bias)
    assert len(made.used) == 2
    assert "C10 has 0 bright pixels of its own" in made.rejected[0].why
    with pytest.raises(BadData, match=r"crosstalk of detector 94: no exposure is left: exposure 2026070500004 .*C10"):
        measure_crosstalk([dim], SMALL, bias)
    with pytest.raises(BadData, match="no exposures came"):
        measure_crosstalk([], SMALL, bias)
