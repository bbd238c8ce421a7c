import json
from pathlib import Path

import pytest
import yaml

from schemas.errors import BadData
from simulators.faults import (
    LIBRARY,
    Camera,
    Freeze,
    Kill,
    Observatory,
    Planned,
    ProcessFault,
    When,
    dump,
    load,
    planned,
    storm,
)

DETECTORS = (90, 94)


@pytest.mark.parametrize("name", LIBRARY)
def test_each_fault_of_the_library_is_of_this_night_whatever_its_length(name: str) -> None:
    for visits in (1, 6):
        found = planned(name, visits, DETECTORS)
        assert found
        assert {each.name for each in found} == {name}
        for each in found:
            visit = each.fault.at.visit if isinstance(each.fault, ProcessFault) else getattr(each.fault, "visit", 1)
            assert visit is None or 1 <= visit <= min(2, visits)


def test_a_storm_is_the_same_for_a_seed_and_another_for_another() -> None:
    assert planned("storm:7", 20, DETECTORS) == planned("storm:7", 20, DETECTORS)
    assert planned("storm:7", 20, DETECTORS) != planned("storm:8", 20, DETECTORS)


def test_a_long_storm_has_every_fault_before_any_comes_again() -> None:
    names = [each.name for each in storm(3, len(LIBRARY) - 2, DETECTORS)]
    assert set(LIBRARY) - {"rush", "clock-skew"} <= set(names)


def test_a_file_may_name_faults_and_write_them_out(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "- kill-archiver\n"
        "- {do: freeze, process: broker, seconds: 60, at: {visit: 3, fact: RawReady, detector: 94, after_s: 1.5}}\n"
        "- {do: observatory, what: late, visit: 1, message: nextVisit, seconds: 40}\n"
        "- {do: camera, what: cut, visit: 2, visits: 3}\n"
    )
    kill, freeze, late, cut = planned(str(path), 4, DETECTORS)
    assert kill.name == "kill-archiver"
    assert isinstance(kill.fault, Kill)
    at = When(visit=3, fact="RawReady", detector=94, after_s=1.5)
    assert freeze == Planned("bad 2", Freeze(process="broker", seconds=60.0, at=at))
    assert late.fault == Observatory(what="late", visit=1, message="nextVisit", seconds=40.0)
    assert cut.fault == Camera(what="cut", visit=2, visits=3)
    (tmp_path / "bad.json").write_text(json.dumps(yaml.safe_load(path.read_text())))
    assert planned(str(tmp_path / "bad.json"), 4, DETECTORS) == (kill, freeze, late, cut)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[{do: kill, process: toaster, at: {visit: 1}}]", "entry 1, kill.process: Input should be 'camera_reader'"),
        ("[kill-archiver, {do: kill, process: archiver}]", "entry 2, kill.at: Field required"),
        ("[{do: kill, process: archiver, at: {visit: 1, fact: Doomsday}}]", "no fact 'Doomsday' is ever told"),
        ("[{do: freeze, process: driver, seconds: 1, at: {visit: 1}}]", "entry 1, freeze.process: Input should be"),
        ("[{do: explode}]", "entry 1"),
        ("[kill-moon]", "entry 1, 'kill-moon', is none of kill-worker-before"),
        ("{a: 1}", "the whole: Input should be a valid list"),
        ("[", "no YAML"),
        ("[{do: camera, what: dark, visit: 9}]", "is of visit 9, and the night has 4"),
        ("[{do: camera, what: dark, visit: 1, detector: 5}]", "is of detector 5, which the night does not use"),
        ("[{do: kill, process: archiver, at: {fact: RawReady}}]", "waits for RawReady of no visit"),
    ],
)
def test_what_makes_no_sense_in_a_file_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(BadData) as caught:
        planned(str(path), 4, DETECTORS)
    assert str(path) in str(caught.value)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "why"),
    [("kill-moon", "none of kill-worker-before"), ("storm:x", "'x' is no seed"), ("/absent.yaml", "No such file")],
)
def test_what_is_no_fault_is_refused_by_name(asked: str, why: str) -> None:
    with pytest.raises(BadData, match=why):
        planned(asked, 2, DETECTORS)


def test_the_processes_read_what_was_written_for_them(tmp_path: Path) -> None:
    found = [each for name in LIBRARY for each in planned(name, 6, DETECTORS)]
    dump(tmp_path / "faults.json", found)
    assert load(tmp_path / "faults.json") == tuple(each.fault for each in found)
    (tmp_path / "faults.json").write_text("?")
    with pytest.raises(BadData, match=r"faults\.json"):
        load(tmp_path / "faults.json")
