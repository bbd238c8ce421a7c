"""The files of a report, and the figures on the screen."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from access.report import plots
from access.report.model import FaultRow, Report, Witnessed
from access.report.page import page
from access.report.write import show, write
from schemas.events import NextVisitCanceled, NoticeFailed, VisitRefused, read_event
from tests.access.seen import Seen
from tests.access.small_night import (
    READOUT_ENDED,
    VISIT,
    SmallNight,
    assigned,
    failed,
    good_visit,
    not_archived,
    not_lite,
    plan,
    raw_ready,
    refused_input,
    sent,
)

SCRIPT = "<script>alert('x')</script>"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_report_json_has_the_keys_that_others_read(good: SmallNight, tmp_path: Path) -> None:
    write(await good.collected(), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert {"latency", "balance", "truth", "stages"} <= set(report)
    assert {"median_s", "p98_s", "max_s", "within_60s"} <= set(report["latency"])
    assert {"visits", "raws", "dia_sources", "alerts_made", "alerts_sent", "alerts_acknowledged", "failed"} <= set(
        report["balance"]
    )
    assert report["latency"]["median_s"] == pytest.approx(35.0, abs=1e-5)
    assert report["balance"]["alerts_acknowledged"] == 8
    assert report["stages"]["subtract"] == 4.0


async def test_report_json_is_read_back_as_the_same_report(good: SmallNight, tmp_path: Path) -> None:
    collected = await good.collected()
    write(collected, tmp_path)
    text = (tmp_path / "report.json").read_text("utf-8")
    assert Report.model_validate_json(text) == collected.report


async def test_facts_jsonl_holds_every_fact_as_it_was_told(good: SmallNight, tmp_path: Path) -> None:
    collected = await good.collected()
    write(collected, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "facts.jsonl").read_text("utf-8").splitlines()]
    told = [(line.pop("at"), read_event(line.pop("kind"), json.dumps(line))) for line in lines]
    assert told == [(entry.at, entry.event) for entry in collected.journal]
    assert [event for _, event in told] == good_visit()


async def test_a_report_takes_the_place_of_an_older_one_and_leaves_no_part_behind(
    good: SmallNight, tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text("older", encoding="utf-8")
    write(await good.collected(), tmp_path)
    assert names(tmp_path) == ["facts.jsonl", "report.html", "report.json"]
    json.loads((tmp_path / "report.json").read_text("utf-8"))


async def test_the_page_has_all_its_plots_inside_and_needs_nothing_beside_it(good: SmallNight) -> None:
    seen = Seen(page(await good.collected()))
    assert seen.tags["svg"] == seen.tags["figure"] == len(plots.ALL) == 6
    assert seen.loaded == []
    for title in ("Balance", "Against the truth", "Troubles", "counts reconcile"):
        assert title in seen.text
    assert seen.text.count("None.") == 1  # no troubles


async def test_the_page_and_report_of_a_night_without_an_alert_are_written(
    empty_night: SmallNight, tmp_path: Path
) -> None:
    await empty_night.tell([plan(), NextVisitCanceled(group="g1")])
    write(await empty_night.collected(), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["latency"] == {"alerts": 0, "median_s": None, "p98_s": None, "max_s": None, "within_60s": None}
    assert report["truth"]["purity"] is None
    seen = Seen((tmp_path / "report.html").read_text("utf-8"))
    assert seen.tags["svg"] == 6
    assert "canceled" in seen.text


async def test_the_page_of_a_night_whose_alerts_were_never_acknowledged_is_written(empty_night: SmallNight) -> None:
    await empty_night.tell(good_visit())
    await empty_night.store(latencies=(np.nan,) * 4)
    text = page(await empty_night.collected())
    assert Seen(text).tags["svg"] == 6
    assert "within 60 s<b class=bad>0.0 %" in text
    assert "counts reconcile<b class=bad>no" in text


@pytest.mark.parametrize("group", [SCRIPT, f"2026-07-05 {SCRIPT}", "2026-07-05 $\\oops$", "2026-07-05 --><b>-->"])
async def test_what_comes_from_outside_is_shown_and_not_obeyed(empty_night: SmallNight, group: str) -> None:
    usual = Seen(page(await empty_night.collected())).tags
    await empty_night.tell(
        [plan(group, filters=SCRIPT), *good_visit(group)[1:], VisitRefused(group="g2" + SCRIPT, reason=SCRIPT)]
    )
    await empty_night.tell([assigned(96, group), failed(96, group, SCRIPT), refused_input(1, SCRIPT)])
    await empty_night.tell([not_archived(raw_ready(97, 0, group), SCRIPT)])
    await empty_night.store()
    seen = Seen(page(await empty_night.collected()))
    assert seen.tags["script"] == usual["script"] == 0
    assert (seen.tags["b"], seen.tags["svg"]) == (usual["b"], usual["svg"])
    assert group in seen.text
    assert len(re.findall(re.escape(SCRIPT), seen.text)) >= 6


async def test_every_trouble_stands_on_the_page_with_what_it_concerns_and_why(good: SmallNight) -> None:
    await good.tell([VisitRefused(group="g2", reason="no template"), assigned(96), failed(96), refused_input(1)])
    await good.tell([not_archived(raw_ready(97, 0))])
    text = page(await good.collected())
    for row in (
        "<td>visit refused</td><td>g2</td><td>no template</td>",
        f"<td>raw not archived</td><td>raw/LSSTCam/{VISIT}/97</td><td>the disk is full</td>",
        "<td>message refused</td><td>1 times</td><td>nextVisit: no JSON</td>",
        "<td>detector failed</td><td>g1 96</td><td>ccd_worker: no stars</td>",
    ):
        assert row in text


async def test_what_became_of_alerts_and_notices_stands_there_only_where_it_is_not_what_should(
    good: SmallNight,
) -> None:
    usual = page(await good.collected())
    assert not any(word in usual for word in ("smaller cutouts", "not sent lite", "notice", "alerts reduced"))
    await good.tell([sent(96, reduced=2), not_lite(96, "timed out"), sent(97)])
    await good.tell([NoticeFailed(group="g1", about="visit_ends/g1", reason="too large")])
    collected, screen = await good.collected(), io.StringIO()
    show(collected.report, Console(file=screen, width=120))
    for what, which, why in (
        ("sent with smaller cutouts", "2 alerts", "refused as too large"),
        ("not sent lite", "3 alerts", "timed out"),
        ("not sent lite", "4 alerts", "still owed when the night ended"),
    ):
        assert f"<td>{what}</td><td>{which}</td><td>{why}</td>" in page(collected)
        assert f"{which} {what}: {why}" in screen.getvalue()
    assert "<td>notice failed</td><td>visit_ends/g1 g1</td><td>too large</td>" in page(collected)
    assert "notice visit_ends/g1 g1 failed: too large" in screen.getvalue()


async def test_a_planned_visit_of_which_nothing_was_told_is_named(empty_night: SmallNight) -> None:
    collected, screen = await empty_night.collected(), io.StringIO()
    show(collected.report, Console(file=screen, width=120))
    assert "<td>visit planned</td><td>g1</td><td>nothing was told of it</td>" in page(collected)
    assert "visit g1 was planned, nothing was told of it" in screen.getvalue()
    await empty_night.tell([plan()])
    assert (await empty_night.collected()).report.unheard == []


async def test_what_was_still_owed_when_the_night_ended_is_told(good: SmallNight) -> None:
    assert "not finished" not in page(await good.collected())
    late = sent(96)
    await good.journal.append([late], {late.event_id: ["lite_emitter"]}, READOUT_ENDED)
    collected, screen = await good.collected(), io.StringIO()
    show(collected.report, Console(file=screen, width=120))
    assert collected.report.owed == {"lite_emitter": 1}
    why = "owed until the night is started again"
    assert f"<td>not finished</td><td>1 of lite_emitter</td><td>{why}</td>" in page(collected)
    assert f"1 of lite_emitter not finished: {why}" in screen.getvalue()


async def test_the_screen_shows_the_figures_and_names_what_was_refused_letter_for_letter(good: SmallNight) -> None:
    await good.tell([VisitRefused(group="[red]g2[/nonsense]", reason="no template"), assigned(96), failed(96)])
    screen = io.StringIO()
    show((await good.collected()).report, Console(file=screen, width=120))
    text = re.sub(r" +", " ", screen.getvalue())
    assert "alerts made / acknowledged │ 8 / 8" in text
    assert "latency median / p98 / max │ 35.00 s / 100.00 s / 100.00 s" in text
    assert "alerts within 60 s │ 75.0 %" in text
    assert "visit [red]g2[/nonsense] refused: no template" in text
    assert "visit g1 detector 96 failed: ccd_worker: no stars" in text


async def test_what_was_made_to_go_wrong_and_what_a_consumer_saw_is_told(good: SmallNight) -> None:
    usual = await good.collected()
    assert "Faults" not in page(usual)
    saw = Witnessed(messages=9, alerts=8, differing=0, missing=1, unknown=0, within_60s=0.75, max_s=100.0)
    faults = [
        FaultRow(name="a", what="kill gcs", state="missed", visit=3, at=12.5, reason="RawReady never came"),
        FaultRow(name="b", what="freeze broker", state="ended", visit=4, at=20.0, until=80.25),
    ]
    report = usual.report.model_copy(update={"faults": faults, "witnessed": saw})
    text, screen = page(replace(usual, report=report)), io.StringIO()
    show(report, Console(file=screen, width=160))
    at = "1970-01-01T00:00:12.5"
    assert f"<td>kill gcs</td><td>3</td><td>missed</td><td>{at}</td><td></td><td>RawReady never came</td>" in text
    assert f"fault a: kill gcs in visit 3, missed at {at}: RawReady never came" in screen.getvalue()
    while_it_was = "from 1970-01-01T00:00:20.0 to 1970-01-01T00:01:20.2"
    assert f"fault b: freeze broker in visit 4, ended, {while_it_was}" in screen.getvalue()
    for told in (text, screen.getvalue()):
        assert "8 alerts in 9 messages, 75.0 % within 60 s; 1 missing, 0 unknown, 0 with other bytes" in told
    assert usual.report.reconciles == usual.report.balance.reconciles
    assert not report.reconciles
    assert "counts reconcile<b class=bad>no" in text
    assert re.search(r"counts reconcile\W+NO", screen.getvalue())
