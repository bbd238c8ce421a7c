import os
from collections.abc import Sequence

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from actors.base import Actor
from cluster.host import Host, Verdict
from schemas.errors import BadData, Broken, PachonError, Transient
from schemas.events import Event, NextVisitCanceled, ReadoutEnded, VisitRefused

CANCELED = NextVisitCanceled(group="g1")
FOLLOWS = VisitRefused(group="g1", reason="as told")


class Told(Actor):
    """Answers as told: with an event, or by raising."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    async def on_next_visit_canceled(self, event: NextVisitCanceled) -> Sequence[Event]:  # noqa: ARG002 - as told
        if self.error is not None:
            raise self.error
        return [FOLLOWS]


async def test_what_followed_comes_back_with_what_it_cost() -> None:
    outcome = await Host(Told(), "told").handle(CANCELED)
    assert (outcome.verdict, outcome.events, outcome.error) == ("done", (FOLLOWS,), "")
    assert outcome.pid == os.getpid()
    assert outcome.wall_s >= 0.0
    assert outcome.cpu_s >= 0.0
    assert 10 * 2**20 < outcome.max_rss_bytes < 100 * 2**30


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (Transient("the DAQ does not answer"), "transient"),
        (BadData("8 of 16 amplifiers came"), "bad data"),
        (Broken("committed, and is not"), "broken"),
        (PachonError("of no class"), "bug"),
    ],
)
async def test_the_class_of_an_error_is_the_verdict(error: PachonError, verdict: Verdict) -> None:
    with capture_logs() as logs:
        outcome = await Host(Told(error), "told").handle(CANCELED)
    assert (outcome.verdict, outcome.events, outcome.error) == (verdict, (), str(error))
    assert logs == []  # whoever decides what becomes of it logs it


async def test_a_bug_is_told_with_its_place_and_logged_with_its_trace() -> None:
    with capture_logs(processors=[merge_contextvars]) as logs:
        outcome = await Host(Told(KeyError("band")), "told").handle(CANCELED)
    assert outcome.verdict == "bug"
    assert outcome.error.startswith("KeyError: 'band' (on_next_visit_canceled, line ")
    (line,) = logs
    assert (line["event"], line["exc_info"]) == ("bug", True)
    assert (line["pool"], line["event_kind"], line["group"]) == ("told", "NextVisitCanceled", "g1")


async def test_an_event_that_nobody_here_understands_is_a_bug() -> None:
    ended = ReadoutEnded(
        group="g1", instrument="LSSTCam", exposure=5, image_name="MC_O_20260705_000005", snap=0, n_snaps=1,
        exposure_time=15.0, started=1.0, readout_ended=18.0,
    )  # fmt: skip
    with capture_logs():
        outcome = await Host(Told(), "told").handle(ended)
    assert outcome.verdict == "bug"
    assert "on_readout_ended" in outcome.error


async def test_the_end_of_the_process_is_not_taken_for_a_bug() -> None:
    with pytest.raises(KeyboardInterrupt):
        await Host(Told(KeyboardInterrupt()), "told").handle(CANCELED)


async def test_a_host_goes_on_after_a_bug() -> None:
    actor = Told(ZeroDivisionError())
    host = Host(actor, "told")
    with capture_logs():
        assert (await host.handle(CANCELED)).verdict == "bug"
    actor.error = None
    assert (await host.handle(CANCELED)).verdict == "done"
