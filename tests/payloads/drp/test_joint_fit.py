import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.drp.joint_fit import Left, Links, Prior, excess, left, level_errors, solve

Floats = NDArray[np.float64]


def links(rng: np.random.Generator, frames: int = 5, stars: int = 30, p: int = 3) -> Links:
    seen = rng.random((frames, stars)) < 0.6
    frame, star = np.nonzero(seen)
    basis = np.column_stack([np.ones(len(frame)), rng.uniform(-1, 1, (len(frame), p - 1))])
    return Links(frame, star, basis, frames, stars)


def prior(rng: np.random.Generator, of: Links) -> Prior:
    anchor_weight = np.where(rng.random(of.n_stars) < 0.5, rng.uniform(0.1, 2.0, of.n_stars), 0.0)
    p = of.basis.shape[1]
    return Prior(
        rng.uniform(0.01, 0.1, (of.n_frames, p)),
        rng.normal(0, 1, (of.n_frames, p, 2)),
        rng.normal(0, 1, (of.n_stars, 2)),
        anchor_weight,
    )


def plain(of: Links, known: Prior) -> tuple[Floats, Floats]:
    """The whole design, a row for each observation, coefficient and star, and the weight of the latter two."""
    p = of.basis.shape[1]
    size = of.n_frames * p + of.n_stars
    design = np.zeros((len(of.frame), size))
    for k, (frame, star) in enumerate(zip(of.frame, of.star, strict=True)):
        design[k, frame * p : frame * p + p] = of.basis[k]
        design[k, of.n_frames * p + star] = 1.0
    return np.concatenate([design, np.eye(size)]), np.concatenate([known.weight.ravel(), known.anchor_weight])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_eliminating_the_stars_changes_nothing_of_the_least_squares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    of = links(rng)
    known, weight = prior(rng, of), rng.uniform(0.5, 5.0, len(of.frame))
    measured = rng.normal(0, 1, (len(of.frame), 2))
    made = solve(of, measured, weight, known, np.zeros((5, 3, 2)))
    design, of_priors = plain(of, known)
    root = np.sqrt(np.concatenate([weight, of_priors]))[:, None]
    values = np.concatenate([measured, known.target.reshape(-1, 2), known.anchor])
    expected = np.linalg.lstsq(design * root, values * root, rcond=None)[0]
    np.testing.assert_allclose(made.frames.reshape(-1, 2), expected[:15], atol=2e-6)
    np.testing.assert_allclose(made.stars, expected[15:], atol=2e-6)


def test_errors_of_levels_are_those_of_the_whole_covariance() -> None:
    rng = np.random.default_rng(4)
    of = links(rng, p=1)
    known, weight = prior(rng, of), rng.uniform(0.5, 5.0, len(of.frame))
    design, of_priors = plain(of, known)
    covariance = np.linalg.inv(design.T @ (design * np.concatenate([weight, of_priors])[:, None]))
    np.testing.assert_allclose(level_errors(of, weight, known), np.sqrt(np.diag(covariance)[:5]), rtol=1e-9)


def test_residuals_are_as_wide_as_the_errors_however_few_sightings_a_star_has() -> None:
    rng = np.random.default_rng(5)
    of = links(rng, frames=3, stars=4000, p=1)
    weight = np.full(len(of.frame), 4.0)
    nothing = Prior(np.full((3, 1), 1e-9), np.zeros((3, 1, 1)), np.zeros((4000, 1)), np.zeros(4000))
    measured = rng.normal(0, 0.5, (len(of.frame), 1))
    made: Left = left(of, measured, weight, nothing, solve(of, measured, weight, nothing, np.zeros((3, 1, 1))))
    sightings = np.bincount(of.star, minlength=4000)[of.star]
    assert np.isnan(made.seen[sightings == 1]).all()
    for n in (2, 3):
        assert made.seen[sightings == n].std() == pytest.approx(0.5, rel=0.03)


def test_what_scatters_more_than_its_errors_tells_how_much() -> None:
    rng = np.random.default_rng(6)
    errors = rng.uniform(0.1, 2.0, 60_000)
    values = rng.normal(0, np.hypot(errors, 0.7))[:, None]
    values[::200] = 1000.0
    assert excess(values, errors, 0.01) == pytest.approx(0.7, rel=0.06)
    assert excess(rng.normal(0, errors)[:, None] * 0.5, errors, 0.01) == pytest.approx(0.01, rel=0.01)
