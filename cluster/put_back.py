"""Tells a broker that lost its memory what it had been told of the night: notices, alerts, lite alerts.

The same bytes as the first time. What was told and not yet noted as told is among it, and may come twice.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from backbone.alert_archive import AlertArchive
from backbone.alert_stream import AlertStream
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

AGAIN = os.EX_TEMPFAIL
"""Exit code: what was not acknowledged may be at the next try."""
FAILED = 2
"""Exit code: some of it cannot be told, and all the rest was."""


async def put_back(settings: Settings, day_obs: int, console: Console) -> None:
    """Do it. Raises Transient if the broker does not acknowledge it all, BadData for what cannot be told at all."""
    wanted, archive = Wanted(night=day_obs), AlertArchive(settings.alerts, alert_schema())
    l1 = await L1Postgres.open(settings.postgres, create=False)
    try:
        async with JournalView.opened(settings.postgres) as journal:
            notices = await journal.notices(StoredClock(settings.clock_file).began)
            outboxes = await outboxes_of(l1, wanted)
            whole = await chosen_of(l1, journal, wanted, outboxes)
    finally:
        await l1.close()
    acknowledged = [outbox.path for outbox in outboxes if not outbox.owed.any()]  # lite ones follow when all are
    lite = replace(whole, paths=acknowledged, lite=True)
    errors = [
        *await _notices(settings, notices, console),
        *await _alerts(settings, settings.alert_topic, archive, whole, console),
        *await _alerts(settings, settings.lite_topic, archive, lite, console),
    ]
    for error in sorted(errors, key=lambda each: isinstance(each, BadData)):  # what may be right next time comes first
        raise error


async def _notices(settings: Settings, told: Sequence[tuple[str, str]], console: Console) -> list[PachonError]:
    """Send them in their order; what went wrong."""
    key, sink = SigningKey.in_folder(settings.output), VisitStream(settings.kafka, settings.visit_topic)
    answers = await sink.send([Notice.signed(*notice, key) for notice in told])
    errors: list[PachonError] = [answer for answer in answers if answer is not None]
    console.print(f"{len(told) - len(errors)} of {len(told)} notices acknowledged on {settings.visit_topic}")
    return errors


async def _alerts(
    settings: Settings, topic: str, archive: AlertArchive, chosen: Chosen, console: Console
) -> list[PachonError]:
    """Send them; what went wrong."""
    sink = await AlertStream.open(settings.kafka, topic, StoredClock(settings.clock_file))
    tally = await replay(archive, chosen, sink, console)
    console.print(f"{tally.acknowledged} of {tally.alerts} alerts acknowledged on {topic}")
    try:
        tally.check(settings.kafka)
    except (BadData, Transient) as error:
        return [error]
    return []


def command(settings: Settings, day_obs: int) -> Sequence[str]:
    """What runs this in a process of its own."""
    return [sys.executable, "-m", "cluster.put_back", settings.model_dump_json(), str(day_obs)]


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="cluster.put_back", description="Tell a broker what it has forgotten.")
    parser.add_argument("settings", type=Settings.model_validate_json)
    parser.add_argument("day_obs", type=int)
    options = parser.parse_args()
    try:
        asyncio.run(put_back(options.settings, options.day_obs, Console(soft_wrap=True)))
    except PachonError as error:
        sys.stderr.write(f"{error}\n")
        return AGAIN if isinstance(error, Transient) else FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
