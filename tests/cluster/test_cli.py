"""What cannot be played is refused in one line, before anything is started."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click import unstyle
from click.testing import Result
from typer.testing import CliRunner

from cluster import run
from cluster.cli import app, main
from schemas.errors import BadData, Transient

REFUSED = 2


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was started: nothing is, whatever is asked for."""
    log: list[str] = []

    def refuse(*_: object) -> Any:
        log.append("a night")
        raise AssertionError("a night was started")

    for name in ("_live", "_inline"):
        monkeypatch.setattr(run, name, refuse)
    return log


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def the_line(result: Result) -> str:
    """The only line that was said, on stderr."""
    assert result.exit_code == REFUSED, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return str(line)


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--visits", 0, "greater than or equal to 1"),
        ("--speed", 0.0, "greater than 0"),
        ("--snaps", 9, "less than or equal to 4"),
        ("--seed", -1, "greater than or equal to 0"),
        ("--workers", 0, "greater than or equal to 1"),
        ("--metrics-port", 70000, "less than or equal to 65535"),
        ("--cadence", "-3.0", "greater than 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_option(
    started: list[str], tmp_path: Path, option: str, value: object, why: str
) -> None:
    output = tmp_path / "night"
    line = the_line(ask("night", "--output", output, option, value))
    assert line.startswith(f"pachon: {option} {value}: ")
    assert why in line
    assert not output.exists()
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--detectors", "R99"), "LSSTCam has no detector or raft 'R99'"),
        (("--detectors", "94,500"), "LSSTCam has no detector or raft '500'"),
        (("--instrument", "HSC"), "no instrument 'HSC'"),
        (("--schedule", "/absent/night.json"), "/absent/night.json: No such file"),
        (("--schedule", "/absent/baseline.db"), "/absent/baseline.db: No such file"),
        (("--schedule", "tonight"), "schedule 'tonight' is neither `own` nor a .json nor a .db file"),
        (("--cadence", "5"), "a cadence of 5.0 s is too short"),
        (("--visits", "2000", "--cadence", "90"), "2000 visits every 90 s do not fit"),
    ],
)
def test_what_there_is_none_of_is_refused_by_name(
    started: list[str], tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    output = tmp_path / "night"
    line = the_line(ask("night", "--output", output, *arguments))
    assert line.startswith("pachon: ")
    assert named in line
    assert not output.exists()
    assert started == []


def test_a_schedule_that_is_no_schedule_is_refused_by_name(started: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('[{"visit_id": "x"}]', "utf-8")
    sqlite3.connect(tmp_path / "bad.db").close()
    for name in ("bad.json", "bad.db"):
        line = the_line(ask("night", "--output", tmp_path / "night", "--schedule", tmp_path / name))
        assert f"schedule {tmp_path / name}: " in line
    assert started == []


def test_an_output_that_cannot_be_written_is_refused_by_name(started: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "night"
    line = the_line(ask("night", "--output", output))
    assert line == f"pachon: the output folder {output} cannot be written: Not a directory"
    assert started == []


@pytest.mark.parametrize(("option", "value"), [("--vists", "3"), ("--visits", "many")])
def test_what_is_no_option_or_no_number_is_refused_with_the_usage(started: list[str], option: str, value: str) -> None:
    result = ask("night", option, value)
    assert result.exit_code == REFUSED
    assert option in unstyle(result.stderr)  # typer colours it where it takes the place for a terminal
    assert started == []


def test_what_is_in_order_is_handed_on(started: list[str], tmp_path: Path) -> None:
    """Else the other tests would hold if no night were ever started."""
    result = ask("night", "--output", tmp_path / "night", "--detectors", "94", "--visits", 1)
    assert isinstance(result.exception, AssertionError)
    assert started == ["a night"]
    assert "1 visits, 1 detectors, seed 1; results in" in result.stdout


@pytest.mark.parametrize(
    "error",
    [
        Transient("the broker at localhost:1\ndoes not answer"),
        ExceptionGroup("all", [ExceptionGroup("deep", [Transient("the broker at localhost:1 does not answer")])]),
    ],
)
def test_an_error_of_the_night_is_one_line_however_deep_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> Any:
        raise error

    monkeypatch.setattr(run, "_inline", fail)
    result = ask("night", "--inline", "--output", tmp_path, "--detectors", "94", "--visits", 1)
    assert result.exit_code == REFUSED
    assert result.stderr == "pachon: the broker at localhost:1 does not answer\n"


def test_a_bug_is_not_made_to_look_like_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise ExceptionGroup("all", [ZeroDivisionError()])

    monkeypatch.setattr(run, "_inline", fail)
    result = ask("night", "--inline", "--output", tmp_path, "--detectors", "94", "--visits", 1)
    assert isinstance(result.exception, ExceptionGroup)
    assert result.exit_code == 1


def test_alerts_from_a_start_that_is_none_are_refused_by_name() -> None:
    line = the_line(ask("alerts", "--start", "yesterday", "--kafka", "127.0.0.1:1"))
    assert line == "pachon: --start 'yesterday' is neither `earliest` nor `latest` nor an offset"


def test_a_mixed_group_tells_the_known_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise ExceptionGroup("all", [ZeroDivisionError(), BadData("no room on the moon")])

    monkeypatch.setattr(run, "_inline", fail)
    result = ask("night", "--inline", "--output", tmp_path, "--detectors", "94", "--visits", 1)
    assert "no room on the moon" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["night", "--vists", "3"], "--vists"), (["night", "--visits", "many"], "--visits"), (["nigth"], "nigth")],
)
def test_an_option_or_command_that_is_none_is_named_in_one_line(
    started: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    named: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["pachon", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert (end.value.code, said.out, len(said.err.splitlines())) == (REFUSED, "", 1)
    assert named in said.err
    assert started == []


def test_what_the_other_commands_cannot_use_is_named_in_one_line(tmp_path: Path) -> None:
    absent, out, model = tmp_path / "absent.fits", tmp_path / "out", tmp_path / "no folder" / "model.json"
    pair = ("--science", absent, "--template", absent)
    assert str(absent) in the_line(ask("difference", *pair, "--out", out))
    training = ("train-reliability", "--version", "v")
    assert "--seeds '1,x'" in the_line(ask(*training, "--out", model, "--seeds", "1,x"))
    assert "1 seed:" in the_line(ask(*training, "--out", model, "--seeds", "1"))
    assert str(model) in the_line(ask(*training, "--out", model, "--seeds", "1,2"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--fault", "kill-moon"), "fault 'kill-moon' is no file"),
        (("--fault", "storm:x"), "'x' is no seed"),
        (("--fault", "/absent.yaml"), "faults /absent.yaml: No such file"),
        (("--fault", "kill-archiver", "--inline"), "play it without --inline"),
    ],
)
def test_a_fault_that_there_is_none_of_is_refused_by_name(
    started: list[str], tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    output = tmp_path / "night"
    assert named in the_line(ask("night", "--output", output, *arguments))
    assert not output.exists()
    assert started == []
