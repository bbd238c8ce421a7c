import os
import threading
from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from schemas.errors import BadData
from simulators.camera.buffer import KEPT_SECONDS, Catalogue, Raster, Rasters
from tests.simulators.camera.conftest import STARTED, exposed, wait_until


def test_a_catalogue_survives_its_process(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path, STARTED)
    catalogue.add(exposed(0), (94, 95), STARTED)
    catalogue.add(exposed(1), (94, 95), STARTED)
    reopened = Catalogue(tmp_path, STARTED + 100.0)
    assert list(reopened.entries(STARTED)) == list(catalogue.entries(STARTED))
    assert reopened.find(2026070500005, 95).recipe.observation == exposed(1)


def test_snaps_of_a_visit_share_an_epoch_and_visits_do_not(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path, STARTED)
    entries = [catalogue.add(exposed(snap), (94,), STARTED) for snap in (0, 1)]
    other = catalogue.add(replace(exposed(visit=2026070500008), started=STARTED + 40.0), (94,), STARTED)
    assert [e.recipe.epoch for e in entries] == [STARTED + 7.5, STARTED + 7.5]
    assert other.recipe.epoch == STARTED + 47.5


def test_two_days_are_kept_and_no_more(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path, STARTED)
    catalogue.add(exposed(), (94,), STARTED)
    later = STARTED + KEPT_SECONDS
    assert len(list(catalogue.entries(later))) == 1
    assert not list(catalogue.entries(later + 20.0))
    assert not list(Catalogue(tmp_path, later + 20.0).entries(later))


def test_the_same_exposure_twice_is_held_once(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path, STARTED)
    assert catalogue.add(exposed(), (94,), STARTED) is catalogue.add(exposed(), (95,), STARTED)
    assert (tmp_path / "exposures.jsonl").read_text().count("\n") == 1


def test_a_line_cut_short_by_a_crash_is_let_go(tmp_path: Path) -> None:
    Catalogue(tmp_path, STARTED).add(exposed(), (94,), STARTED)
    with (tmp_path / "exposures.jsonl").open("a") as file:
        file.write('{"recipe": {"obs')
    catalogue = Catalogue(tmp_path, STARTED)
    catalogue.add(exposed(1), (94,), STARTED)
    assert len(list(Catalogue(tmp_path, STARTED).entries(STARTED))) == 2


def test_a_line_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "exposures.jsonl").write_text('{"epoch": 3}\n')
    with pytest.raises(BadData, match="not an entry of the buffer"):
        Catalogue(tmp_path, STARTED)


def test_what_is_not_held_is_named(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path, STARTED)
    catalogue.add(exposed(), (94,), STARTED)
    with pytest.raises(KeyError, match="exposure 2026070500004 detector 7"):
        catalogue.find(2026070500004, 7)


def raster_of(exposure: int, detector: int) -> Raster:
    return Raster(np.array([exposure, detector], np.int32), "")


class Darkroom:
    """Makes rasters and notes which; holds each up until it may go on."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.made: list[tuple[int, int]] = []
        self.niceness: dict[tuple[int, int], int] = {}
        self.may_go_on = threading.Event()

    def make(self, exposure: int, detector: int) -> Raster:
        self.begun.append((exposure, detector))
        assert self.may_go_on.wait(10.0)
        if detector == 666:
            raise BadData("the plate broke")
        self.made.append((exposure, detector))
        self.niceness[exposure, detector] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return raster_of(exposure, detector)


def test_what_is_asked_for_comes_before_what_is_made_ahead() -> None:
    darkroom = Darkroom()
    rasters = Rasters(darkroom.make, size=10, threads=1)
    rasters.prepare(1, (1, 2, 3, 4))
    wait_until(lambda: rasters.counts()["making"] == 1)
    asked: list[Raster] = []
    reader = threading.Thread(target=lambda: asked.append(rasters.get((1, 4), monotonic() + 10.0)))
    reader.start()
    wait_until(lambda: rasters.counts()["making"] == 2)
    darkroom.may_go_on.set()
    reader.join(10.0)
    rasters.get((1, 3), monotonic() + 10.0)
    rasters.close()
    assert asked[0].segments[1] == 4
    assert darkroom.begun[:2] == [(1, 1), (1, 4)]
    assert darkroom.niceness[1, 1] >= 5 + darkroom.niceness[1, 4]
    assert len(darkroom.made) == len(set(darkroom.made))


def test_no_more_is_held_than_fits_and_the_rest_is_made_again() -> None:
    darkroom = Darkroom()
    darkroom.may_go_on.set()
    rasters = Rasters(darkroom.make, size=2, threads=2)
    rasters.prepare(1, (1, 2, 3, 4))
    for detector in (4, 3, 2, 1, 4):
        assert rasters.get((1, detector), monotonic() + 10.0).segments[1] == detector
        assert rasters.counts()["held"] <= 2
    rasters.close()


def test_an_older_exposure_makes_room_unread() -> None:
    darkroom = Darkroom()
    darkroom.may_go_on.set()
    rasters = Rasters(darkroom.make, size=2, threads=1)
    rasters.prepare(1, (1, 2))
    rasters.get((1, 2), monotonic() + 10.0)
    wait_until(lambda: rasters.counts()["held"] == 2)
    rasters.prepare(2, (1, 2))
    assert rasters.get((2, 1), monotonic() + 10.0).segments[0] == 2
    assert rasters.get((2, 2), monotonic() + 10.0).segments[0] == 2
    rasters.close()
    assert len(darkroom.made) == 4


def test_a_deadline_is_kept_and_a_failure_is_told() -> None:
    darkroom = Darkroom()
    rasters = Rasters(darkroom.make, size=2, threads=1)
    with pytest.raises(TimeoutError, match="exposure 1 detector 1"):
        rasters.get((1, 1), monotonic() + 0.05)
    darkroom.may_go_on.set()
    for _ in range(2):
        with pytest.raises(BadData, match="the plate broke"):
            rasters.get((1, 666), monotonic() + 10.0)
    rasters.close()
    with pytest.raises(ConnectionError, match="shutting down"):
        rasters.get((1, 2), monotonic() + 10.0)
