"""`pachon status` and `pachon visit`, on a real database with a night of a few facts, and on what is no night."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from backbone.journal import Delivery, PostgresJournal
from backbone.journal_view import JournalView
from cluster import log_lines
from cluster.cli import app
from schemas.clock import NightClock
from schemas.errors import Transient
from schemas.events import Event, ReadoutEnded, VisitDone
from tests.access.small_night import (
    BEGAN,
    READOUT_ENDED,
    SPEED,
    VISIT,
    alerts_ready,
    archived,
    assigned,
    differenced,
    failed,
    good_visit,
    not_archived,
    plan,
    raw_ready,
    read_out,
    refused_input,
)

OPEN, OPEN_VISIT, EARLY, OLD = "g2", VISIT + 2, "g3", "g0"


def ended(group: str, visit: int, snap: int) -> ReadoutEnded:
    return ReadoutEnded(
        group=group, instrument="LSSTCam", exposure=visit + snap, image_name=f"MC_O_20260705_{visit + snap}", snap=snap,
        n_snaps=2, exposure_time=15.0, started=READOUT_ENDED - 36.0, readout_ended=READOUT_ENDED,
    )  # fmt: skip


OPEN_FACTS: Sequence[Event] = (
    plan(OPEN), assigned(94, OPEN), assigned(95, OPEN), ended(OPEN, OPEN_VISIT, 0), ended(OPEN, OPEN_VISIT, 1),
    *(read_out(raw_ready(d, 1, OPEN, OPEN_VISIT)) for d in (94, 95)), raw_ready(94, 1, OPEN, OPEN_VISIT),
    archived(raw_ready(94, 1, OPEN, OPEN_VISIT)), not_archived(raw_ready(95, 1, OPEN, OPEN_VISIT)),
    differenced(94, OPEN, OPEN_VISIT),
)  # fmt: skip


async def fill(dsn: str) -> None:
    """A visit that went well, one that is under way, one read out before its announcement."""
    journal = await PostgresJournal.open(dsn)
    await an_earlier_night(journal)
    good = [*good_visit(), ended("g1", VISIT, 1)]
    await journal.append(good, {good[0].event_id: ["fan_out"]}, READOUT_ENDED + 4.0)
    (owed,) = await journal.owed()
    await journal.complete(owed, [], {}, READOUT_ENDED + 5.0)
    for number, fact in enumerate(OPEN_FACTS):
        await journal.append([fact], {}, READOUT_ENDED + 2.0 * number)
    await journal.append([not_archived(raw_ready(94, 1, OPEN, OPEN_VISIT))], {}, READOUT_ENDED + 30.0)
    await journal.append([ended(EARLY, VISIT + 4, 0), refused_input(7)], {}, READOUT_ENDED + 31.0)
    ready, gone = alerts_ready(94, OPEN, OPEN_VISIT), read_out(raw_ready(95, 0, OPEN, OPEN_VISIT))
    await journal.append(
        [ready, gone], {ready.event_id: ["alert_emitter"], gone.event_id: ["camera_reader"]}, READOUT_ENDED + 40.0
    )
    again = await journal.retry(Delivery(ready, "alert_emitter"), "the broker [x] is silent", READOUT_ENDED + 42.0)
    await journal.retry(again, "the broker is still silent", READOUT_ENDED + 46.0)
    lost = failed(95, OPEN, "8 of 16 amplifiers")
    await journal.give_up(Delivery(gone, "camera_reader"), "8 of 16 amplifiers", [lost], {}, READOUT_ENDED + 44.0)
    await journal.close()


async def an_earlier_night(journal: PostgresJournal) -> None:
    """One that left a visit open, a raw missing, and an alert unsent."""
    stale = alerts_ready(94, OLD, VISIT - 100_000)
    facts = [plan(OLD), not_archived(raw_ready(94, 0, OLD, VISIT - 100_000)), stale]
    await journal.append(facts, {stale.event_id: ["alert_emitter"]}, BEGAN - 86400.0)
    await journal.give_up(Delivery(stale, "alert_emitter"), "all too large", [], {}, BEGAN - 86000.0, refused=True)


LOG = [
    {"utc": "2026-07-05T22:36:08.255", "level": "info", "process": "night", "event": "ready"},
    {"utc": "2026-07-05T22:36:09.255", "level": "warning", "process": "night", "event": "tried again", "pid": 7,
     "pool": "alert_emitter", "group": OPEN, "visit": OPEN_VISIT, "detector": 94, "error": "the broker is silent"},
    {"utc": "2026-07-05T22:36:10.255", "level": "error", "process": "ccd_worker-0", "event": "bug", "group": "g1",
     "exception": "Traceback\n  File x\nZeroDivisionError: division by zero"},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(dsn: str, module_folder: Path) -> Path:
    asyncio.run(fill(dsn))
    (module_folder / "clock.json").write_text(json.dumps(asdict(NightClock(0.0, BEGAN, SPEED))), "utf-8")
    lines = "".join(json.dumps(line) + "\n" for line in LOG)
    (module_folder / "log.jsonl").write_text(lines + '{"utc": "2026-07-0', "utf-8")
    return module_folder


def ask(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(argument) for argument in arguments])


def row(text: str, *cells: object) -> bool:
    """Whether a line has exactly these cells."""
    return any(line.split() == " ".join(map(str, cells)).split() for line in text.splitlines())


def test_status_tells_what_is_open_owed_given_up_missing_and_wrong(folder: Path, dsn: str) -> None:
    told = ask("status", "--output", folder, "--postgres", dsn)
    assert told.exit_code == 0, told.stderr
    shown = told.stdout
    assert "visits: announced 2, done 1, open 2" in shown
    since = next(line for line in shown.splitlines() if line.startswith(str(OPEN_VISIT))).split()[6]
    assert row(shown, OPEN_VISIT, OPEN, "snap 2/2 read out", since, "committed 1, failed 1")
    assert any(line.startswith(f"{VISIT + 4}") and EARLY in line for line in shown.splitlines())
    assert "alert_emitter" in shown
    assert "the broker is still silent" in shown
    assert "owed: alerts 4" in shown
    assert "given up: camera_reader 1; inputs refused: 1" in shown
    missing = next(line for line in shown.splitlines() if line.startswith("raws missing"))
    assert str(raw_ready(95, 1, OPEN, OPEN_VISIT).raw) in missing
    assert str(raw_ready(94, 1, OPEN, OPEN_VISIT).raw) not in missing  # archived, whatever was said of it besides
    assert row(shown, "22:36:10.255 error ccd_worker-0 bug ZeroDivisionError: division by zero")
    assert "info" not in shown


def test_status_is_told_to_machines_too(folder: Path, dsn: str) -> None:
    told = json.loads(ask("status", "--json", "--output", folder, "--postgres", dsn).stdout)
    assert told["owed"]["alerts"] == 4
    assert [(debt["pool"], debt["attempts"]) for debt in told["debts"]] == [("alert_emitter", 2)]
    assert [visit["group"] for visit in told["open_visits"]] == [OPEN, EARLY]
    assert told["open_visits"][0]["detectors"]["committed"] == 1


def test_status_is_of_the_present_night_unless_all_are_asked_for(folder: Path, dsn: str) -> None:
    tonight, every = (
        json.loads(ask("status", "--json", *more, "--output", folder, "--postgres", dsn).stdout)
        for more in ((), ("--all",))
    )
    old_raw, place = str(raw_ready(94, 0, OLD, VISIT - 100_000).raw), f"visit {VISIT - 100_000} detector 94"
    assert (tonight["visits"]["announced"], every["visits"]["announced"]) == (2, 3)
    assert OLD not in [visit["group"] for visit in tonight["open_visits"]]
    assert OLD in [visit["group"] for visit in every["open_visits"]]
    assert (old_raw in tonight["raws_missing"], old_raw in every["raws_missing"]) == (False, True)
    assert (tonight["given_up"], every["given_up"]) == ({"camera_reader": 1}, {"alert_emitter": 1, "camera_reader": 1})
    assert (tonight["alerts_refused"], every["alerts_refused"]) == ({}, {place: "all too large"})
    shown = ask("status", "--all", "--output", folder, "--postgres", dsn).stdout
    assert f"not sent, nor tried again unless `pachon retry-alerts` says so: {place}: all too large" in shown


def test_of_a_long_log_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"level": "error", "event": f"trouble {n:04d}"}) + "\n" for n in range(1000)]
    (tmp_path / "log.jsonl").write_text("".join(lines), "utf-8")
    monkeypatch.setattr(log_lines, "TAIL_BYTES", 3 * len(lines[0]) + 10)
    assert [line["event"][-4:] for line in log_lines.last_wrong(tmp_path / "log.jsonl", 8)] == ["0997", "0998", "0999"]


@pytest.mark.parametrize("which", [OPEN, OPEN_VISIT, "last"])
def test_a_visit_is_found_by_number_by_group_and_as_the_last(folder: Path, dsn: str, which: object) -> None:
    told = ask("visit", which, "--output", folder, "--postgres", dsn)
    assert told.exit_code == 0, told.stderr
    assert told.stdout.startswith(f"visit {OPEN_VISIT}, group {OPEN}")


def test_a_visit_is_told_with_its_times_attempts_stages_and_log(folder: Path, dsn: str) -> None:
    shown = ask("visit", OPEN, "--output", folder, "--postgres", dsn).stdout
    assert row(shown, "17:48:26.0 3.0 ReadoutEnded MC_O_20260705_2026070500003, snap 1 of 2")
    assert row(shown, "17:49:00.0 20.0 AlertsReady 94 4 alerts, 5 new DIAObjects")
    assert row(shown, 94, 7.0, 10.0, 20.0, 4)  # raw, differenced, committed; alerts
    assert row(shown, 95, "ccd_worker: 8 of 16 amplifiers")
    assert row(shown, "alert_emitter AlertsReady 94 owed 2")
    assert row(shown, "camera_reader DetectorReadOut 95 given up 1")
    assert row(shown, "17:49:02.0 21.0 alert_emitter AlertsReady 94 the broker [x] is silent")
    assert row(shown, "17:49:04.0 22.0 camera_reader DetectorReadOut 95 8 of 16 amplifiers")
    assert "tried again" in shown
    assert "ZeroDivisionError" not in shown


def test_a_visit_that_went_well_tells_no_failures(folder: Path, dsn: str) -> None:
    shown = ask("visit", VISIT, "--output", folder, "--postgres", dsn).stdout
    assert "8 alerts acknowledged, the last one 30.0 s after the last readout" in shown
    assert "1 of 1 deliveries done at the first attempt" in shown
    assert not any(title in shown for title in ("other deliveries", "failed attempts"))


@pytest.mark.parametrize("which", ["g9", 7, "last ", "9" * 40])
def test_a_visit_that_there_is_none_of_is_named(folder: Path, dsn: str, which: object) -> None:
    told = ask("visit", which, "--output", folder, "--postgres", dsn)
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == f"pachon: the journal has no visit {str(which)!r}\n"


def test_a_folder_of_no_night_a_dead_database_and_one_without_a_journal_are_named(
    folder: Path, dsn: str, tmp_path: Path
) -> None:
    assert "not the folder of a night" in ask("status", "--output", tmp_path).stderr
    dead = ask("status", "--output", folder, "--postgres", "postgresql://pachon@127.0.0.1:1/postgres")
    assert (dead.exit_code, "does not answer" in dead.stderr) == (2, True)
    asyncio.run(_make(dsn, "empty"))
    empty = ask("visit", "last", "--output", folder, "--postgres", dsn.replace("/postgres", "/empty"))
    assert (empty.exit_code, "no journal" in empty.stderr) == (2, True)


async def test_who_only_looks_cannot_write_and_a_server_that_goes_away_is_transient(dsn: str) -> None:
    async with JournalView.opened(dsn) as view:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await view._connection.execute("DELETE FROM delivery")
    with pytest.raises(Transient, match=r"the journal's database at .*connection"):
        await _counted_by_one_cut_off(dsn)


async def _counted_by_one_cut_off(dsn: str) -> None:
    async with JournalView.opened(dsn) as view:
        view._connection.terminate()
        await view.counts()


async def _make(dsn: str, name: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    await connection.close()


def test_nothing_is_written_by_looking(folder: Path, dsn: str) -> None:
    before = asyncio.run(_facts(dsn))
    ask("status", "--output", folder, "--postgres", dsn)
    assert asyncio.run(_facts(dsn)) == before
    assert VisitDone(group="g1", visit=VISIT, detectors=()) in before


def test_what_could_not_be_sent_of_this_night_is_owed_again_when_that_is_asked_for(folder: Path, dsn: str) -> None:
    owed = "alerts of {} visit-detectors are owed again, and sent when the night is next started\n"
    told = ask("retry-alerts", "--output", folder, "--postgres", dsn)
    assert (told.exit_code, told.stdout) == (0, owed.format(0)), told.stderr  # what there is, is of an earlier night
    asyncio.run(_refuse(dsn, alerts_ready(96, OPEN, OPEN_VISIT)))
    told = ask("retry-alerts", "--output", folder, "--postgres", dsn)
    assert told.stdout == f"visit {OPEN_VISIT} detector 96: all too large\n{owed.format(1)}"
    assert ask("retry-alerts", "--output", folder, "--postgres", dsn).stdout == owed.format(0)
    status = json.loads(ask("status", "--all", "--json", "--output", folder, "--postgres", dsn).stdout)
    assert list(status["alerts_refused"]) == [f"visit {VISIT - 100_000} detector 94"]
    assert status["owed"]["alerts"] == 8


async def _refuse(dsn: str, fact: Event) -> None:
    journal = await PostgresJournal.open(dsn)
    await journal.append([fact], {fact.event_id: ["alert_emitter"]}, BEGAN + 1.0)
    await journal.give_up(Delivery(fact, "alert_emitter"), "all too large", [], {}, BEGAN + 2.0, refused=True)
    await journal.close()


async def _facts(dsn: str) -> list[Event]:
    journal = await PostgresJournal.open(dsn)
    try:
        return await journal.facts()
    finally:
        await journal.close()
