import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.options import NightOptions, make_output
from schemas.errors import BadData

Usage = namedtuple("Usage", ["total", "used", "free"])  # noqa: PYI024 - as shutil's


def with_free(monkeypatch: pytest.MonkeyPatch, megabytes: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**15, 0, megabytes * 2**20))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("visits", 0),
        ("visits", 2001),
        ("cadence", 0.0),
        ("snaps", 5),
        ("speed", -1.0),
        ("speed", 1001.0),
        ("seed", -1),
        ("workers", 0),
        ("metrics_port", 65536),
        ("linger", -0.1),
        ("vists", 3),
    ],
)
def test_a_value_out_of_range_is_refused_under_its_options_name(option: str, value: float) -> None:
    with pytest.raises(ValidationError) as caught:
        NightOptions.model_validate({"output": "x", option: value})
    assert [error["loc"] for error in caught.value.errors()] == [(option,)]


def test_the_default_detectors_are_four_of_the_central_raft() -> None:
    assert NightOptions(output=Path("x")).chosen_detectors() == (90, 91, 93, 94)


@pytest.mark.parametrize(
    ("instrument", "detectors", "named"),
    [("LSSTCam", "R22_S11,R99", "R99"), ("LATISS", "R22_S11", "LATISS"), ("HSC", "all", "HSC"), ("LSSTCam", ",", ",")],
)
def test_a_detector_or_camera_that_there_is_none_of_is_refused_by_name(
    instrument: str, detectors: str, named: str
) -> None:
    options = NightOptions(output=Path("x"), instrument=instrument, detectors=detectors)
    with pytest.raises(BadData, match=named):
        options.chosen_detectors()


def test_the_output_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    output = tmp_path / "nights" / "one"
    make_output(NightOptions(output=output, detectors="94"), 1, 1)
    assert list(output.iterdir()) == []


def test_what_an_earlier_night_left_stays(tmp_path: Path) -> None:
    (tmp_path / "clock.json").write_text("{}", "utf-8")
    make_output(NightOptions(output=tmp_path, detectors="94"), 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["clock.json"]


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_output_that_is_a_file_or_lies_under_one_is_refused_by_name(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / below
    with pytest.raises(BadData, match=f"the output folder {output} cannot be written: "):
        make_output(NightOptions(output=output, detectors="94"), 1, 1)


def test_a_disk_without_room_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = NightOptions(output=tmp_path, detectors="93,94")
    need = 2 * (3 * 2 * 45 + 200 + 420)
    with_free(monkeypatch, need - 1)
    with pytest.raises(BadData, match=f"{tmp_path} has {need - 1} MB free; this night needs about {need} MB"):
        make_output(options, 3, 2)
    with_free(monkeypatch, need)
    make_output(options, 3, 2)
