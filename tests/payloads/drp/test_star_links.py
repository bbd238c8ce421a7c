import numpy as np
from numpy.typing import NDArray

from payloads.drp.star_links import Sightings, link, offsets

Floats = NDArray[np.float64]


def seen_of(frame: NDArray[np.int64], plane: Floats) -> Sightings:
    n = len(frame)
    return Sightings(frame, np.zeros((n, 2)), plane, np.full(n, 0.01), np.full(n, 1e4), np.full(n, 10.0))


def field(rng: np.random.Generator, stars: int, frames: int, size: float) -> tuple[Floats, Sightings]:
    """Stars 3 arcsec apart at least, seen by all frames with an error of 30 mas."""
    step = np.arange(0.0, size, 3.0)
    grid = np.stack(np.meshgrid(step, step), axis=-1).reshape(-1, 2)
    places = rng.permutation(grid)[:stars] + rng.uniform(0, 0.2, 2)
    plane = (places + rng.normal(0, 0.03, (frames, stars, 2))).reshape(-1, 2)
    return places, seen_of(np.repeat(np.arange(frames), stars), plane)


def test_sightings_of_a_star_are_one_star_whatever_cell_they_fall_into() -> None:
    places, seen = field(np.random.default_rng(1), 500, 7, 200.0)
    made = link(seen, places[::2])
    assert len(made.reference) == 500
    assert np.unique(np.bincount(made.star)).tolist() == [7]
    for star in range(500):
        nearest = np.hypot(*(places - made.sightings.plane[made.star == star].mean(axis=0)).T)
        assert nearest.min() < 0.1
        expected = nearest.argmin() // 2 if nearest.argmin() % 2 == 0 else -1
        assert made.reference[star] == expected


def test_a_deep_field_costs_no_more_than_its_sightings() -> None:
    places, seen = field(np.random.default_rng(2), 300, 500, 100.0)
    made = link(seen, np.zeros((0, 2)))
    assert len(made.reference) == len(places)
    assert len(made.star) == 300 * 500


def test_two_stars_that_a_frame_tells_apart_and_others_might_not_are_left_out() -> None:
    places, seen = field(np.random.default_rng(3), 20, 3, 100.0)
    plane = np.concatenate([seen.plane, places[:1] + 0.3])
    made = link(seen_of(np.concatenate([seen.frame, [2]]), plane), places)
    assert len(made.reference) == 19
    assert 0 not in made.reference


def test_what_is_seen_once_counts_only_if_it_is_known() -> None:
    places, seen = field(np.random.default_rng(4), 20, 1, 100.0)
    made = link(seen, places[:5])
    assert sorted(made.reference) == [0, 1, 2, 3, 4]
    assert len(link(seen, np.zeros((0, 2))).reference) == 0


def test_a_frame_beside_the_catalogue_is_told_how_far_and_one_elsewhere_that_it_is() -> None:
    places, seen = field(np.random.default_rng(5), 800, 3, 600.0)
    plane = seen.plane + np.array([[0.0, 0.0], [0.6, -0.3], [47.3, 22.1]])[seen.frame]
    shift, elsewhere = offsets(seen_of(seen.frame, plane), 4, places)
    assert elsewhere.tolist() == [False, False, True, False]
    np.testing.assert_allclose(shift[:2], [[0.0, 0.0], [-0.6, 0.3]], atol=0.01)
    assert not shift[2:].any()
