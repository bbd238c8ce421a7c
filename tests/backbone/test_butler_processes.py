"""Several processes write one archive at once, and some die: nothing is lost, doubled or half there."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backbone.butler import ButlerArchive
from backbone.sameness import same
from schemas.instrument import camera
from schemas.skymap import tract_at
from tests.backbone import kept_objects as kept

ROOT = Path(__file__).parents[2]
TRACT = tract_at(150.0, 2.2)
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ButlerArchive.create(tmp_path).register_camera(camera("LSSTCam"))
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start a writer, which waits for a line before it writes."""
    started: list[subprocess.Popen[str]] = []

    def writer(*said: int | str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.backbone.archive_writer", str(folder), *map(str, said)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield writer
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def assert_whole(folder: Path, detectors: list[int]) -> None:
    archive = ButlerArchive.open(folder)
    assert archive.query("raw", instrument="LSSTCam") == [kept.raw_id(d) for d in detectors]
    assert archive.query("template_patch") == [kept.patch_id(TRACT, d) for d in detectors]
    for detector in detectors:
        assert np.array_equal(archive.get(kept.raw_id(detector)).segments, kept.raw().segments)
        assert archive.get(kept.visit_id("visit_summary", detector)) == {"detector": detector}
        assert same(archive.get(kept.calibration_id(detector)), kept.calibration(seed=detector))
        assert archive.get(kept.patch_id(TRACT, detector)).pixels.mask[0, 0] == detector


def test_processes_that_put_the_same_and_other_things_at_once_all_succeed(folder: Path, start: Start) -> None:
    writers = [start(94, 90), start(94, 91)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert (writer.returncode, errors) == (0, "")
    assert_whole(folder, [90, 91, 94])
    assert list(folder.glob("incoming/*")) == []


def test_what_killed_writers_began_is_finished_by_the_next(folder: Path, start: Start) -> None:
    ends = {(90, 91): 3, (95, 96): 8, (97, 98): 12}
    writers = [start(*pair, "--die-at", last_breath) for pair, last_breath in ends.items()]
    for writer in writers:
        writer.communicate("go\n", timeout=120)
        assert writer.returncode == -signal.SIGKILL

    archive = ButlerArchive.open(folder)
    detectors = [90, 91, 95, 96, 97, 98]
    for detector in detectors:
        archive.put_raw(replace(kept.raw(), detector=detector))
        archive.put(kept.visit_id("visit_summary", detector), {"detector": detector})
        archive.put(kept.calibration_id(detector), kept.calibration(seed=detector))
        archive.put(kept.patch_id(TRACT, detector), kept.template_patch(TRACT, detector))
    assert_whole(folder, detectors)
