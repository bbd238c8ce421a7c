import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.child import FailedError, run
from bench.judge import Shape, Verdict, bright_stars, filtered, judged, moffat, shape_of
from bench.zogy import Known, point_flux
from simulators.pairs import SCIENCE, Pair, Recipe, View, _exposed, make_pair

RECIPE = Recipe(3, shape=(512, 512), stars=0, galaxies=0, transients=20, snr=(7.0, 40.0))
FWHM_PX = (5.5, 4.0)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(RECIPE)


def drawn(pair: Pair, noise: float) -> np.ndarray:
    """A difference with nothing but its transients and noise of its own."""
    image = np.random.default_rng(5).normal(0.0, noise, RECIPE.shape)
    for x, y, flux in zip(pair.truth["x"], pair.truth["y"], pair.truth["flux"], strict=True):
        at = np.mgrid[: RECIPE.shape[0], : RECIPE.shape[1]]
        core = FWHM_PX[0] / 2.0 / np.sqrt(2.0 ** (1.0 / 3.0) - 1.0)
        image += flux * 2.0 / np.pi / core**2 * (1.0 + ((at[1] - x) ** 2 + (at[0] - y) ** 2) / core**2) ** -3.0
    return image


def verdict_of(pair: Pair, image: np.ndarray, noise: float) -> Verdict:
    usable = np.ones(RECIPE.shape, bool)
    made = filtered(image, np.full(RECIPE.shape, noise**2), usable, moffat(Shape(FWHM_PX[0])))
    return judged(made, pair, bright_stars(pair))


@pytest.mark.parametrize("shape", [Shape(5.5), Shape(5.5, 4.5), Shape(5.5, 2.5, (0.13, 35.0))])
def test_the_simulated_psf_has_unit_flux_but_for_its_wings(shape: Shape) -> None:
    assert moffat(shape, 200).sum() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("view", [SCIENCE, replace(SCIENCE, fwhm_arcsec=0.6, beta=2.5, ellipticity=(0.257, 35.0))])
def test_the_psf_that_the_reference_is_told_is_the_one_that_stars_are_drawn_with(view: View) -> None:
    quiet, one = replace(view, sky=1.0, read_noise=0.1, gain=1.0, saturation=1e12), np.array([50.0])
    recipe, flux = Recipe(1, shape=(101, 101)), np.array([1e10])
    drawn_star = _exposed(recipe, quiet, one, one, flux, flux, np.random.default_rng(1))[30:71, 30:71] / flux
    expected = moffat(shape_of(view, recipe.pixel_arcsec))
    np.testing.assert_allclose(drawn_star, expected, rtol=0.02, atol=1e-3 * expected.max())


def test_a_perfect_difference_is_judged_perfect(pair: Pair) -> None:
    told = verdict_of(pair, drawn(pair, 40.0), 40.0)
    assert sum(n for n, _ in told.found) >= 0.95 * sum(there for _, there in told.found)
    assert told.false == 0
    assert abs(told.bias) < 2.0
    assert 0.75 < told.pull < 1.3
    assert 0.95 < told.width < 1.1  # bright wings widen it


def test_what_is_no_transient_is_counted_as_false(pair: Pair) -> None:
    image = drawn(pair, 40.0)
    x, y = np.mgrid[40:480:8, 40:480:8].reshape(2, -1)
    apart = np.hypot(x[:, None] - pair.truth["x"], y[:, None] - pair.truth["y"]).min(axis=1)
    image[y[apart.argmax()], x[apart.argmax()]] += 6000.0
    assert verdict_of(pair, image, 40.0).false == 1


def test_a_transient_found_with_the_wrong_sign_is_not_found(pair: Pair) -> None:
    assert sum(n for n, _ in verdict_of(pair, -drawn(pair, 40.0), 40.0).found) == 0


def test_too_small_a_noise_gains_nothing(pair: Pair) -> None:
    image = drawn(pair, 40.0)
    honest, bold = verdict_of(pair, image, 40.0), verdict_of(pair, image, 20.0)
    assert bold.found == honest.found
    assert bold.width == pytest.approx(2.0 * honest.width, rel=1e-3)


def test_the_reference_measures_a_point_with_the_error_that_it_tells() -> None:
    draw = np.random.default_rng(7)
    known = Known((Shape(FWHM_PX[0]), Shape(FWHM_PX[1])), (1400.0, 14_000.0), (8.0, 25.0), (1.6, 1.6), 10.0, 0.0)
    science, template = (draw.poisson(np.full((256, 256), sky)) + draw.normal(0.0, read, (256, 256))
                         for sky, read in zip(known.sky, known.read_noise, strict=True))  # fmt: skip
    science[108:149, 108:149] += 20_000.0 * moffat(Shape(FWHM_PX[0]))
    template[50:91, 50:91] += 200_000.0 * moffat(Shape(FWHM_PX[1]))
    flux, error = point_flux(science, template, known)
    assert flux[128, 128] == pytest.approx(20_000.0, abs=4.0 * error[128, 128])
    assert flux[70, 70] == pytest.approx(-20_000.0, abs=4.0 * error[70, 70])
    empty = (flux / error)[160:, 160:]
    assert 0.9 < empty.std() < 1.1


def test_a_child_that_fails_is_told_by_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match=r"ended with 3: no such star"):
        run(
            [sys.executable, "-c", "import sys; print('no such star', file=sys.stderr); sys.exit(3)"],
            tmp_path,
            30.0,
        )


def test_a_child_is_ended_at_its_deadline(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="not done after 1 s"):
        run([sys.executable, "-c", "import threading; threading.Event().wait(60)"], tmp_path, 1.0)


def test_a_childs_memory_is_its_own(tmp_path: Path) -> None:
    held = np.ones(30_000_000)
    spent = run([sys.executable, "-c", "pass"], tmp_path, 30.0)
    assert held.nbytes > 200e6
    assert 1.0 < spent.megabytes < 150.0
    assert spent.seconds > 0.0
