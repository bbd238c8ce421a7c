"""A night of which nothing is done promptly: all is handed over, and redone from the archive."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from access.report.collect import Collected
from access.report.write import write
from actors.ccd_worker import CcdWorker
from backbone.alert_spool import read_spool
from backbone.visit_stream import read_visit_spool
from cluster import inline_night
from cluster.options import NightOptions
from cluster.settings import Settings
from simulators.ocs.schedule import load_schedule
from tests.night.conftest import DETECTOR, SEED, VISITS, begun

pytestmark = [pytest.mark.night, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def handed_over(earlier: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Collected]:
    output = begun(earlier, tmp_path_factory.mktemp("handed_over") / "night")
    options = NightOptions(visits=VISITS, detectors=DETECTOR, seed=SEED, output=output, inline=True)
    plan = load_schedule("own", n=VISITS, cadence=None, n_snaps=None, seed=SEED, instrument="LSSTCam")
    settings = Settings(output=output, detectors=options.chosen_detectors(), workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CcdWorker, "_too_late", lambda _self, _seen: True)
        night = asyncio.run(inline_night.play_inline(options, plan, settings, Console(file=io.StringIO())))
    write(night, output)
    return output, night


def test_all_is_redone_and_reconciles(handed_over: tuple[Path, Collected]) -> None:
    balance = handed_over[1].report.balance
    assert balance.reconciles
    assert balance.redone == VISITS
    assert balance.failed == {}
    assert balance.visits == VISITS


def test_the_alerts_are_those_of_a_prompt_night(handed_over: tuple[Path, Collected], inline_night: Any) -> None:
    late = read_spool(handed_over[0] / "alerts.spool")
    prompt = read_spool(inline_night.output / "alerts.spool")
    assert [len(value) for value in late] == [len(value) for value in prompt]
    assert facts_of(handed_over[1], "alerts") == [f["alerts"] for f in inline_night.facts if f["kind"] == "AlertsReady"]


def facts_of(night: Collected, name: str) -> list[Any]:
    return [getattr(e.event, name) for e in night.journal if e.event.kind == "AlertsReady"]


def test_brokers_are_told_that_the_visit_was_amended(handed_over: tuple[Path, Collected]) -> None:
    notices = [json.loads(notice.value) for notice in read_visit_spool(handed_over[0] / "visits.jsonl")]
    ends = [n for n in notices if n["kind"] == "visit_ends"]
    amended = [n for n in notices if n["kind"] == "visit_amended"]
    assert [n["made"] for n in ends] == [0] * VISITS
    assert all(n["detectors"][0]["gaveUp"].startswith("overload: ") for n in ends)
    made = facts_of(handed_over[1], "alerts")
    assert [n["detector"]["acknowledged"] for n in amended] == made
    assert all(n["detector"]["gaveUp"] == "" and n["detector"]["digest"] for n in amended)
