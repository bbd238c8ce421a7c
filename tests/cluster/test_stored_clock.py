import json
from pathlib import Path

import pytest

from cluster.stored_clock import StoredClock
from schemas.clock import NightClock
from schemas.errors import Broken

LINE = NightClock(1_800_000_000.0, 1_783_300_000.0, 2.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clock.json"


def test_another_process_shows_the_same_time(path: Path) -> None:
    begun = StoredClock(path).begin(LINE)
    other = StoredClock(path)
    assert begun == LINE
    assert other.wall_start == LINE.wall_start
    assert other.now() == pytest.approx(LINE.now(), abs=1.0)
    assert other.wall_seconds(10.0) == 5.0


def test_a_night_that_runs_keeps_its_own_time_when_it_is_begun_again(path: Path) -> None:
    StoredClock(path).begin(LINE)
    assert StoredClock(path).begin(NightClock(1.0, 2.0)) == LINE
    assert json.loads(path.read_text("utf-8")) == {"wall_start": 1.8e9, "night_start": 1783300000.0, "speed": 2.0}


def test_the_folder_holds_the_clock_and_no_part_of_one(path: Path) -> None:
    StoredClock(path).begin(LINE)
    assert [file.name for file in path.parent.iterdir()] == ["clock.json"]


def test_a_part_that_a_crash_left_is_no_clock_and_no_hindrance(path: Path) -> None:
    path.with_suffix(".part").write_text('{"wall_st', "utf-8")
    with pytest.raises(Broken, match="has not begun"):
        StoredClock(path).now()
    assert StoredClock(path).begin(LINE) == LINE


def test_a_night_that_has_not_begun_is_named(path: Path) -> None:
    with pytest.raises(Broken, match=rf"{path.parent} has not begun: there is no clock\.json"):
        StoredClock(path).now()


def test_it_is_read_when_it_is_first_asked_not_when_it_is_made(path: Path) -> None:
    early = StoredClock(path)
    StoredClock(path).begin(LINE)
    assert early.wall_start == LINE.wall_start


@pytest.mark.parametrize("content", ["", '{"wall_start": 1.0', '{"wall": 1.0}', "[1.0, 2.0]", '{"wall_start": "x"}'])
def test_a_damaged_clock_is_named(path: Path, content: str) -> None:
    path.write_text(content, "utf-8")
    with pytest.raises(Broken, match=f"{path} holds no clock"):
        StoredClock(path).now()
