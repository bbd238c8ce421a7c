from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.alert_production import score as module
from payloads.alert_production.detect import detect
from payloads.alert_production.measure import measure
from payloads.alert_production.score import (
    FEATURES,
    features,
    from_json,
    probability,
    roc,
    score,
    to_json,
    train,
)
from payloads.alert_production.stamps import make_stamps
from payloads.alert_production.subtract import Subtraction
from payloads.alert_production.trees import boost
from schemas.errors import BadData
from schemas.image import Stamp
from schemas.tables import Table, empty
from tests.payloads.alert_production.pairs import Pair

RNG = np.random.default_rng(6)


@pytest.fixture(scope="module")
def stamps(pair: Pair, subtraction: Subtraction, sources: Table) -> tuple[Stamp, ...]:
    return make_stamps(sources, pair.science, subtraction.warped, subtraction.difference)


def test_what_was_put_in_is_believed(pair: Pair, sources: Table, stamps: tuple[Stamp, ...]) -> None:
    scored = score(sources, stamps)
    real = (np.hypot(sources["x"][:, None] - pair.x, sources["y"][:, None] - pair.y) < 3).any(1)
    assert ((scored["reliability"] >= 0) & (scored["reliability"] <= 1)).all()
    assert (scored["reliability"][real] > 0.5).mean() > 0.95
    assert (scored["reliabilityVersion"] == module.installed_model().version).all()
    assert np.isnan(sources["reliability"]).all()  # the input is left as it was


def test_a_cosmic_ray_is_not_believed(pair: Pair, subtraction: Subtraction) -> None:
    image = np.nan_to_num(subtraction.difference.pixels.image)
    for k in range(8):
        image[600, 203 + 90 * k] += 900.0
        image[601, 204 + 90 * k] += 700.0
    pixels = replace(subtraction.difference.pixels, image=image)
    struck = replace(subtraction, difference=replace(subtraction.difference, pixels=pixels))
    rows = measure(detect(struck), struck, pair.science, visit=2026070500004, detector=1, processed=0.0)
    scored = score(rows, make_stamps(rows, pair.science, struck.warped, struck.difference))
    hit = np.abs(rows["y"] - 600.5) < 3
    assert hit.sum() >= 6
    assert (scored["reliability"][hit] < 0.3).mean() > 0.8


def test_what_lies_on_a_streak_is_not_believed(sources: Table, stamps: tuple[Stamp, ...]) -> None:
    crossed = sources.copy()
    crossed["pixelFlags_streakCenter"][::2] = True
    scored = score(crossed, stamps)
    assert (scored["reliability"][::2] == 0.0).all()
    assert (scored["reliability"][1::2] > 0.0).all()


def test_features_are_finite_and_one_row_a_source(sources: Table, stamps: tuple[Stamp, ...]) -> None:
    values = features(sources, stamps)
    assert values.shape == (sources.size, len(FEATURES))
    assert np.isfinite(values).all()


def test_sources_without_stamps_are_refused(sources: Table) -> None:
    with pytest.raises(BadData, match="0 stamps for"):
        features(sources, ())


def test_no_sources_have_no_scores() -> None:
    assert score(empty("DiaSource", 0), ()).size == 0


def rings(count: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A label that no line separates."""
    values = RNG.normal(size=(count, len(FEATURES)))
    return values, np.hypot(values[:, 0], values[:, 1]) < 1.0


def test_training_learns_what_no_line_separates() -> None:
    model = train(*rings(3000), "test", {})
    values, real = rings(1000)
    assert roc(probability(model, values), real)["auc"] > 0.97


def test_trees_are_grown_on_the_features_that_matter() -> None:
    values, real = rings(2000)
    grown = boost(values, real, np.ones(2000), 30)
    used = np.bincount(grown.feature[np.isfinite(grown.threshold)], minlength=len(FEATURES))
    assert used[:2].sum() > 0.5 * used.sum()


def test_a_model_is_the_same_after_it_was_written_and_read() -> None:
    model = train(*rings(500), "test", {"auc": 0.5})
    again = from_json(to_json(model))
    values, _ = rings(200)
    np.testing.assert_allclose(probability(again, values), probability(model, values), atol=1e-3)
    assert again.version == "test"


def test_a_model_of_other_features_is_refused() -> None:
    text = to_json(train(*rings(500), "test", {})).replace("log_snr", "colour")
    with pytest.raises(BadData, match="made for the features"):
        from_json(text)


def test_too_few_examples_are_refused() -> None:
    values, real = rings(100)
    real[:] = False
    with pytest.raises(BadData, match="too few to train on"):
        train(values, real, "test", {})


def test_the_area_under_the_curve_is_the_chance_that_a_real_one_ranks_higher() -> None:
    p, real = RNG.uniform(size=300), RNG.random(300) < 0.4
    expected = (p[real][:, None] > p[~real]).mean()
    assert roc(p, real)["auc"] == pytest.approx(expected)


def test_the_installed_model_was_measured_on_sources_left_out() -> None:
    measured = module.installed_model().measured
    assert measured["real"] > 300
    assert measured["bogus"] > 300
    assert measured["auc"] > 0.98
