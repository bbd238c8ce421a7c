"""A release called again: which run it goes on with; and what it refuses."""

import json
import os
import socket
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.batch.joining import Joined
from cluster.batch.run_folder import DONE, FAILED, Progress, RunFolder
from cluster.cli import app
from cluster.release import Campaign, beside, request_of, unfinished
from cluster.settings import Settings

REFUSED = 2
PLACE = "tract IN (7)"


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign(tmp_path / "butler", tmp_path / "batch", "LSSTCam", (94,), 20260628, 20260704, "drp/week")


def kept(campaign: Campaign, name: str, state: str, place: str = PLACE) -> RunFolder:
    """A run of a step that has come so far."""
    run = RunFolder.make(campaign.runs / name, request_of(campaign, "drp.yaml#step1", place))
    run.name_file.write_text(name, encoding="utf-8")
    run.tell(Progress(state=state, run=name))
    return run


def test_it_goes_on_with_the_run_that_was_cut_off_or_in_which_something_failed(campaign: Campaign) -> None:
    request = request_of(campaign, "drp.yaml#step1", PLACE)
    assert unfinished(campaign.runs, request) is None
    kept(campaign, "drp_week_1", DONE)
    assert unfinished(campaign.runs, request) is None
    failed = kept(campaign, "drp_week_2", FAILED)
    assert unfinished(campaign.runs, request) == failed


def test_runs_of_other_parts_nights_and_releases_are_let_be(campaign: Campaign) -> None:
    kept(campaign, "drp_week_1", FAILED, "tract IN (8)")
    kept(replace(campaign, last=20260705), "drp_week_2", FAILED)
    kept(replace(campaign, output="drp/other"), "drp_other_1", FAILED)
    assert unfinished(campaign.runs, request_of(campaign, "drp.yaml#step1", PLACE)) is None


def test_steps_after_the_end_of_the_night_are_done_on_a_ray_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert beside(None, Console()) is None
    settings = Settings(output=tmp_path)
    settings.plan_file.touch()
    assert beside(tmp_path, Console(soft_wrap=True)) is None
    assert f"{tmp_path}: no night runs there" in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", 0)) as ray:  # stands for the GCS of a night that is played
        joined = Joined(f"127.0.0.1:{ray.getsockname()[1]}", os.getpid())
        settings.join_file.write_text(json.dumps(asdict(joined)))
        assert beside(tmp_path, Console()) == tmp_path


def test_a_folder_in_which_no_night_was_played_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["templates", "--output", str(tmp_path / "n"), "--night", str(tmp_path / "misspelt")]
    )
    assert result.exit_code == REFUSED
    assert "misspelt" in result.stderr
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--archived", "20260704"), ("--archived", "20260704:20260628"), ("--archived", "june:july"), ("--filters", "k_1"),
     ("--detectors", "R99_S99")],
)  # fmt: skip
def test_what_cannot_be_released_is_refused_in_a_line_that_names_it(tmp_path: Path, option: str, value: str) -> None:
    result = CliRunner().invoke(app, ["drp", "--output", str(tmp_path / "n"), option, value])
    assert result.exit_code == REFUSED
    (line,) = result.stderr.splitlines()
    assert value.split(":", maxsplit=1)[0] in line
    assert not (tmp_path / "n").exists()
