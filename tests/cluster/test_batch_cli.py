"""What `pachon batch` refuses and tells, in a line."""

import os
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.batch import commands, run_folder
from cluster.batch.request import BatchRequest
from cluster.batch.run_folder import Progress, RunFolder, Silence
from cluster.cli import app
from schemas.clock import REAL_TIME
from schemas.errors import Transient

PIPELINE = Path(__file__).parent / "batch" / "foreign" / "numbers.yaml"


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ("nombre: {memory_mb: 900}", "nombre: the steps of"),
        ("number: {memory: 900}", "number.memory: Extra inputs are not permitted"),
        ("number: {memory_mb: much}", "number.memory_mb: Input should be a valid integer"),
        ("[number]", "['number']: Input should be a valid dictionary"),
        ("number: {", "needs.yaml: while parsing"),
    ],
)
def test_needs_that_nobody_would_heed_are_named(tmp_path: Path, needs: str, said: str) -> None:
    (tmp_path / "needs.yaml").write_text(needs)
    given = ["batch", "submit", "--pipeline", str(PIPELINE), "--butler", str(tmp_path), "--input", "i", "--output", "o"]
    result = CliRunner().invoke(app, [*given, "--needs", str(tmp_path / "needs.yaml"), "--runs", str(tmp_path)])
    assert result.exit_code == 2
    assert said in result.output


def test_a_run_that_was_cut_off_tells_what_its_coordinator_said_last(tmp_path: Path) -> None:
    run = RunFolder.make(tmp_path / "run", BatchRequest(butler=tmp_path, pipeline="p", inputs=("i",), output="o"))
    run.name_file.write_text("o/now")
    run.log.write_text("a line\npachon: Ray on this machine does not start: no room\n")
    result = CliRunner().invoke(app, ["batch", "status", str(run.path)])
    assert "cut off" in result.output
    assert "said last: pachon: Ray on this machine does not start: no room" in result.output


def test_a_coordinator_that_is_silent_is_told(tmp_path: Path) -> None:
    run = RunFolder.make(tmp_path / "run", BatchRequest(butler=tmp_path, pipeline="p", inputs=("i",), output="o"))
    run.name_file.write_text("o/now")
    claim = run.claim()
    run.tell(Progress(updated=REAL_TIME.now() - 300.0))
    result = CliRunner().invoke(app, ["batch", "status", str(run.path)])
    os.close(claim)
    assert "has told nothing for 30" in result.output


def test_a_coordinator_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "HUNG_S", 0.1)
    run = RunFolder.make(tmp_path / "run", BatchRequest(butler=tmp_path, pipeline="p", inputs=("i",), output="o"))
    claim = run.claim()
    with pytest.raises(Transient, match=f"{run.path}: the run's coordinator has told nothing .* see {run.log}"):
        commands.wait(run, Console(quiet=True))
    os.close(claim)


def test_a_coordinator_that_tells_anything_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "HUNG_S", 0.1)
    silence = Silence()
    for updated in (1.0, 2.0, 3.0):
        time.sleep(0.15)
        assert not silence.too_long(Progress(updated=updated))
    time.sleep(0.15)
    assert silence.too_long(Progress(updated=3.0))
