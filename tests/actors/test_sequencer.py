from collections.abc import Callable, Sequence

import pytest

from actors.fan_out import OPEN_S
from actors.sequencer import Sequencer
from backbone.journal import MemoryJournal
from schemas.clock import ManualClock
from schemas.events import (
    AlertsReady,
    AssociationDue,
    DetectorFailed,
    DiaSourcesReady,
    Event,
    OfflineFailed,
    VisitAssigned,
)
from schemas.instrument import camera

Assigned = Callable[..., VisitAssigned]
Measured = Callable[..., DiaSourcesReady]
TOLD = 10.0


@pytest.fixture
def sequencer(journal: MemoryJournal) -> Sequencer:
    return Sequencer(camera=camera("LSSTCam"), chronicle=journal, clock=ManualClock(TOLD))


def due(events: Sequence[Event]) -> list[tuple[str, int]]:
    return [(e.group, e.detector) for e in events if isinstance(e, AssociationDue)]


def failed(group: str) -> DetectorFailed:
    return DetectorFailed(group=group, visit=None, detector=94, stage="ccd_worker", reason="NaN")


async def test_a_visit_alone_is_due_at_once(sequencer: Sequencer, assigned: Assigned, measured: Measured) -> None:
    await sequencer.react(assigned())
    assert due(await sequencer.react(measured())) == [("g1", 94)]


async def test_a_later_visit_of_the_same_sky_waits_for_the_earlier(
    sequencer: Sequencer, assigned: Assigned, measured: Measured
) -> None:
    await sequencer.react(assigned())
    await sequencer.react(assigned(group="g2", start=137.0))
    assert due(await sequencer.react(measured("g2", visit=2026070500003))) == []
    assert due(await sequencer.react(failed("g1"))) == [("g2", 94)]


async def test_a_visit_of_other_sky_waits_for_nobody(
    sequencer: Sequencer, assigned: Assigned, measured: Measured
) -> None:
    await sequencer.react(assigned())
    await sequencer.react(assigned(group="g2", start=137.0, ra=12.0))
    assert due(await sequencer.react(measured("g2", visit=2026070500003))) == [("g2", 94)]


async def test_detectors_of_one_visit_do_not_wait_for_one_another(
    sequencer: Sequencer, assigned: Assigned, measured: Measured
) -> None:
    await sequencer.react(assigned())
    await sequencer.react(assigned(93))
    assert due(await sequencer.react(measured(detector=93))) == [("g1", 93)]


async def test_a_new_sequencer_remembers_from_the_journal(
    journal: MemoryJournal, assigned: Assigned, measured: Measured
) -> None:
    await journal.append([assigned(), assigned(group="g2", start=137.0), failed("g1")], {}, 1.0)
    later = measured("g2", visit=2026070500003)
    await journal.append([later], {}, 2.0)
    new = Sequencer(camera=camera("LSSTCam"), chronicle=journal, clock=ManualClock(TOLD))
    assert due(await new.react(later)) == [("g2", 94)]


async def test_a_visit_of_more_than_two_days_ago_holds_nobody_up(
    journal: MemoryJournal, assigned: Assigned, measured: Measured
) -> None:
    await journal.append([assigned()], {}, TOLD)
    await journal.append([assigned(group="g2", start=137.0)], {}, TOLD + OPEN_S)
    later = measured("g2", visit=2026070500003)
    for days, expected in ((0.0, []), (1.0, [("g2", 94)])):
        clock = ManualClock(TOLD + OPEN_S + days)
        new = Sequencer(camera=camera("LSSTCam"), chronicle=journal, clock=clock)
        assert due(await new.react(later)) == expected


async def test_an_assignment_told_again_after_its_end_holds_nobody_up(
    sequencer: Sequencer, assigned: Assigned, measured: Measured
) -> None:
    await sequencer.react(assigned())
    await sequencer.react(failed("g1"))
    await sequencer.react(assigned())
    await sequencer.react(assigned(group="g2", start=137.0))
    assert due(await sequencer.react(measured("g2", visit=2026070500003))) == [("g2", 94)]


async def test_sources_told_again_are_due_again(sequencer: Sequencer, assigned: Assigned, measured: Measured) -> None:
    await sequencer.react(assigned())
    sources = measured()
    assert due(await sequencer.react(sources)) == [("g1", 94)]
    assert due(await sequencer.react(sources)) == [("g1", 94)]


async def test_what_had_failed_and_is_redone_gets_its_turn_and_says_that_it_is_late(
    sequencer: Sequencer, assigned: Assigned, measured: Measured
) -> None:
    await sequencer.react(assigned())
    await sequencer.react(failed("g1"))
    late = measured().model_copy(update={"redone": 1})
    (turn,) = await sequencer.react(late)
    assert isinstance(turn, AssociationDue)
    assert turn.redone == 1
    assert turn.event_id != AssociationDue(group="g1", visit=turn.visit, detector=94, sources=measured()).event_id


async def test_nobody_waits_for_what_was_redone_in_vain(
    sequencer: Sequencer, assigned: Assigned, measured: Measured
) -> None:
    await sequencer.react(failed("g1"))
    await sequencer.react(measured().model_copy(update={"redone": 1}))
    await sequencer.react(assigned(group="g2", start=137.0))
    assert due(await sequencer.react(measured("g2", visit=2026070500003))) == []
    again = OfflineFailed(group="g1", visit=2026070500001, detector=94, stage="associator", reason="NaN", redone=1)
    assert due(await sequencer.react(again)) == [("g2", 94)]


async def test_what_was_redone_does_not_push_in_beside_a_later_visit_that_is_under_way(
    sequencer: Sequencer, assigned: Assigned, measured: Measured
) -> None:
    await sequencer.react(failed("g1"))
    await sequencer.react(assigned(group="g2", start=137.0))
    later = measured("g2", visit=2026070500003)
    assert due(await sequencer.react(later)) == [("g2", 94)]
    assert due(await sequencer.react(measured().model_copy(update={"redone": 1}))) == []
    ended = DetectorFailed(group="g2", visit=None, detector=94, stage="associator", reason="NaN")
    assert due(await sequencer.react(ended)) == [("g1", 94)]


async def test_what_was_committed_after_all_holds_nobody_up_when_it_is_redone(
    sequencer: Sequencer, assigned: Assigned, measured: Measured
) -> None:
    await sequencer.react(assigned())
    await sequencer.react(measured())
    await sequencer.react(failed("g1"))
    committed = AlertsReady(
        group="g1", instrument="LSSTCam", visit=2026070500001, detector=94, readout_ended=1.0, dia_sources=1,
        new_dia_objects=1, alerts=1, path="", stages={},
    )  # fmt: skip
    await sequencer.react(committed)
    assert due(await sequencer.react(measured().model_copy(update={"redone": 1}))) == []
    await sequencer.react(assigned(group="g2", start=137.0))
    assert due(await sequencer.react(measured("g2", visit=2026070500003))) == [("g2", 94)]
