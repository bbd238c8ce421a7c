"""Tells a broker that lost its memory what it had been told of the night: notices, alerts, lite alerts, dead letters.

The same bytes as the first time. What was told and not yet noted as told is among it, and may come twice. What the
broker has acknowledged is noted in a file, and not sent again until it dies again.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console

from actors import alert_emitter
from backbone.alert_archive import AlertArchive
from backbone.alert_stream import TWO_ROUNDS_S, Alert, AlertSink, AlertStream, Delivery
from backbone.dead_letters import DeadLetterTopic
from backbone.journal_view import JournalView
from backbone.l1_postgres import L1Postgres
from backbone.notices import Notice
from backbone.signing_key import SigningKey
from backbone.visit_stream import VisitStream
from cluster.replay_alerts import Chosen, Wanted, chosen_of, outboxes_of, replay
from cluster.settings import Settings
from cluster.stored_clock import StoredClock
from payloads.alert_production.alert_schema import alert_schema
from schemas.errors import BadData, PachonError, Transient
from schemas.events import Event, InputRefused

AGAIN = os.EX_TEMPFAIL
"""Exit code: what was not acknowledged may be at the next try."""
FAILED = 2
"""Exit code: some of it cannot be told, and all the rest was."""


class Lost(BaseModel):
    """What is to be put back, as a file tells it: the settings name the database with its password."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: Settings
    day_obs: int


class Acknowledged:
    """What the broker has of it since it came back: a line of a file for each part."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = set(file.read_text(encoding="utf-8").splitlines()) if file.exists() else set()

    def __contains__(self, part: str) -> bool:
        return part in self._known

    def note(self, part: str) -> None:
        """That it is acknowledged."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"\n{part}\n")  # apart from one of which a death let half a line stand


class SmallerSink:
    """Sends as the emitter does: what is too large with smaller cutouts."""

    def __init__(self, sink: AlertSink) -> None:
        self._sink = sink

    async def send(self, alerts: Sequence[Alert], within_s: float = TWO_ROUNDS_S) -> list[Delivery]:  # noqa: ARG002
        """See `AlertSink`; an attempt has `alert_emitter.ATTEMPT_S`."""
        _, deliveries, _ = await alert_emitter.send(self._sink, alerts)
        return deliveries


async def put_back(lost: Lost, known: Acknowledged, console: Console) -> None:
    """Do it. Raises Transient if the broker does not acknowledge it all, BadData for what cannot be told at all."""
    settings, wanted = lost.settings, Wanted(night=lost.day_obs)
    l1 = await L1Postgres.open(settings.postgres, create=False)
    try:
        async with JournalView.opened(settings.postgres) as journal:
            began = StoredClock(settings.clock_file).began
            notices, refused = await journal.notices(began), await journal.entries("InputRefused", since=began)
            outboxes = await outboxes_of(l1, wanted)
            whole = await chosen_of(l1, journal, wanted, outboxes)
    finally:
        await l1.close()
    acknowledged = [outbox.path for outbox in outboxes if not outbox.owed.any()]  # lite ones follow when all are
    lite = replace(whole, paths=acknowledged, lite=True)
    errors = [
        *await _notices(settings, notices, known, console),
        *await _alerts(settings, settings.alert_topic, whole, known, console),
        *await _alerts(settings, settings.lite_topic, lite, known, console),
        *await _letters(settings, [entry.event for entry in refused], known, console),
    ]
    for error in sorted(errors, key=lambda each: isinstance(each, BadData)):  # what may be right next time comes first
        raise error


async def _notices(
    settings: Settings, told: Sequence[tuple[str, str]], known: Acknowledged, console: Console
) -> list[PachonError]:
    """Send them in their order; what went wrong."""
    if settings.visit_topic in known:
        return []
    key, sink = SigningKey.in_folder(settings.output), VisitStream(settings.kafka, settings.visit_topic)
    answers = await sink.send([Notice.signed(*notice, key) for notice in told])
    errors: list[PachonError] = [answer for answer in answers if answer is not None]
    console.print(f"{len(told) - len(errors)} of {len(told)} notices acknowledged on {settings.visit_topic}")
    if not errors:
        known.note(settings.visit_topic)
    return errors


async def _alerts(
    settings: Settings, topic: str, chosen: Chosen, known: Acknowledged, console: Console
) -> list[PachonError]:
    """Send them; what went wrong."""
    archive = AlertArchive(settings.alerts, alert_schema())
    owed = replace(chosen, paths=[path for path in chosen.paths if f"{topic} {path}" not in known])
    try:
        sink = SmallerSink(await AlertStream.open(settings.kafka, topic, StoredClock(settings.clock_file)))
        tally = await replay(archive, owed, sink, console, lambda path: known.note(f"{topic} {path}"))
        console.print(f"{tally.acknowledged} of {tally.alerts} alerts acknowledged on {topic}")
        tally.check(settings.kafka)
    except (BadData, Transient) as error:
        return [error]
    return []


async def _letters(
    settings: Settings, refused: Sequence[Event], known: Acknowledged, console: Console
) -> list[PachonError]:
    """Write them in their order; what went wrong, with which it ends: the broker takes no further one then."""
    topic = DeadLetterTopic(settings.kafka)
    letters = [each for each in refused if isinstance(each, InputRefused) and each.event_id not in known]
    for letter in letters:
        try:
            with suppress(BadData):  # too large: it has never been there
                await topic.keep(letter)
        except Transient as error:
            return [error]
        known.note(letter.event_id)
    console.print(f"{len(letters)} dead letters are there again")
    return []


def command(lost: Path) -> Sequence[str]:
    """What runs this in a process of its own. `lost`: a file of `Lost`; beside it what is acknowledged is noted."""
    return [sys.executable, "-m", "cluster.put_back", str(lost)]


def noted(lost: Path) -> Path:
    """Where it is noted what the broker has again."""
    return lost.with_suffix(".acknowledged")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="cluster.put_back", description="Tell a broker what it has forgotten.")
    parser.add_argument("lost", type=Path)
    file: Path = parser.parse_args().lost
    try:
        lost = Lost.model_validate_json(file.read_bytes())
        asyncio.run(put_back(lost, Acknowledged(noted(file)), Console(soft_wrap=True)))
    except PachonError as error:
        sys.stderr.write(f"{error}\n")
        return AGAIN if isinstance(error, Transient) else FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
