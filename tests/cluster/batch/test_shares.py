import pytest

from cluster.batch.shares import Asked, shared


def of(*asked: tuple[str, int, int], cpus: int = 8, turn: int = 0) -> dict[str, int]:
    return shared(cpus, {run: Asked(priority, wanted, 0.0) for run, priority, wanted in asked}, turn)


def test_a_higher_class_has_all_that_it_wants() -> None:
    assert of(("release", 5, 100), ("offline", 1, 6), ("ocs", 2, 1)) == {"offline": 6, "ocs": 1, "release": 1}


@pytest.mark.parametrize(
    ("wanted", "had"),
    [((100, 100), (4, 4)), ((1, 100), (1, 7)), ((100, 2), (6, 2)), ((0, 100), (0, 8)), ((2, 3), (2, 3))],
)
def test_equals_share_evenly_what_they_want(wanted: tuple[int, int], had: tuple[int, int]) -> None:
    assert tuple(of(("a", 5, wanted[0]), ("b", 5, wanted[1])).values()) == had


def test_equals_that_cannot_all_have_one_take_turns() -> None:
    runs = [("a", 5, 9), ("b", 5, 9), ("c", 5, 9)]
    had = [tuple(of(*runs, cpus=2, turn=turn).values()) for turn in range(3)]
    assert had == [(1, 1, 0), (0, 1, 1), (1, 0, 1)]


@pytest.mark.parametrize("turn", range(5))
@pytest.mark.parametrize("cpus", [0, 1, 7, 64, 1001])
def test_no_cpu_is_given_twice_and_none_is_left_that_is_wanted(cpus: int, turn: int) -> None:
    asked = [("a", 1, 3), ("b", 5, 40), ("c", 5, 2), ("d", 5, 900), ("e", 9, 1)]
    shares = of(*asked, cpus=cpus, turn=turn)
    assert sum(shares.values()) == min(cpus, sum(wanted for _, _, wanted in asked))
    assert all(0 <= shares[run] <= wanted for run, _, wanted in asked)
