"""The log, as a process of the system writes it: JSON lines that say what they are about."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from actors.base import Actor
from cluster import log_lines, logs
from cluster.host import Host
from schemas.events import Event, RawReady
from tests.access.small_night import VISIT, failed, raw_ready, refused_input
from tests.backbone.full_disk import files_of_at_most

_HERE = "from tests.cluster.test_logs import main; main()"


class Talkative(Actor):
    """Logs from whatever module, also in a thread, and then fails."""

    async def on_raw_ready(self, event: RawReady) -> Sequence[Event]:
        structlog.get_logger().info("here")
        await asyncio.to_thread(structlog.get_logger().warning, "in a thread", detector=event.detector)
        logging.getLogger("aiokafka").error("a library, %s", "loudly")
        raise ZeroDivisionError


def main() -> None:
    logs.configure(Path(sys.argv[1]), "worker-0")
    asyncio.run(Host(Talkative(), "talkative").handle(raw_ready(94, 1)))
    structlog.get_logger().info("after")


def test_whatever_is_logged_during_a_reaction_says_what_it_is_about(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    subprocess.run([sys.executable, "-c", _HERE, str(path)], check=True, timeout=60, cwd=Path(__file__).parents[2])
    lines: list[dict[str, Any]] = list(log_lines.lines_of(path))
    assert [line["event"] for line in lines] == ["here", "in a thread", "a library, loudly", "bug", "after"]
    *during, after = lines
    for line in during:
        about = {name: line[name] for name in ("process", "pool", "event_kind", "group", "visit", "detector")}
        assert about == {
            "process": "worker-0", "pool": "talkative", "event_kind": "RawReady", "group": "g1", "visit": VISIT,
            "detector": 94,
        }  # fmt: skip
    assert (lines[2]["level"], lines[2]["logger"]) == ("error", "aiokafka")
    assert lines[3]["exception"].endswith("ZeroDivisionError")
    assert not {"pool", "group", "visit", "detector"} & set(after)
    assert [line["event"] for line in log_lines.last_wrong(path, 2)] == ["a library, loudly", "bug"]
    assert log_lines.about(path, "g1", None) == during == log_lines.about(path, "other", VISIT)


def test_an_event_says_what_it_is_about_as_far_as_there_is_something() -> None:
    assert logs.subject(failed(95)) == {"group": "g1", "visit": VISIT, "detector": 95}
    assert logs.subject(refused_input(1)) == {}


def test_a_log_that_is_not_there_has_no_lines_and_a_half_one_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert list(log_lines.lines_of(path)) == []
    path.write_text(json.dumps({"event": "whole"}) + '\n{"event": "ha', "utf-8")
    assert list(log_lines.lines_of(path)) == [{"event": "whole"}]


def test_what_was_said_again_and_again_is_told_once_with_how_often(tmp_path: Path) -> None:
    path, wrong = tmp_path / "log.jsonl", {"level": "warning", "event": "tried again", "error": "busy"}
    lines = [wrong | {"utc": "1"}, {"level": "error", "event": "bug"}, {"level": "info", "event": "ready"}, wrong]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    assert [log_lines.told(line) for line in log_lines.last_wrong(path, 8)] == [
        "bug",
        "tried again error=busy (2 times)",
    ]
    assert [line["event"] for line in log_lines.last_wrong(path, 1)] == ["tried again"]


def fill_the_disk() -> None:
    logs.configure(Path(sys.argv[1]), "worker-0")
    log = structlog.get_logger()
    log.info("before")
    with files_of_at_most(Path(sys.argv[1]).stat().st_size):
        log.info("lost")
        log.info("lost, too")
    log.info("after")
    log.info("and on")


def test_a_full_disk_costs_lines_which_are_counted_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    command = "from tests.cluster.test_logs import fill_the_disk; fill_the_disk()"
    subprocess.run([sys.executable, "-c", command, str(path)], check=True, timeout=60, cwd=Path(__file__).parents[2])
    lines = list(log_lines.lines_of(path))
    assert [line["event"] for line in lines] == ["before", "after", "log lines lost", "and on"]
    assert lines[2]["lines"] == 2
