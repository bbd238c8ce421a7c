"""A night whose events come late, twice and in disorder: on real pixels, in one process."""

import asyncio
import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster import inline_night
from cluster.options import NightOptions
from cluster.settings import Settings
from schemas.events import (
    AlertsReady,
    DetectorReadOut,
    DiaSourcesReady,
    Event,
    NextVisit,
    RawArchived,
    ReadoutEnded,
    VisitDone,
    VisitRefused,
)
from simulators.ocs.schedule import PlannedVisit, load_schedule
from simulators.ocs.timeline import EXPOSE, Moment, canceled, timeline
from tests.night.conftest import DETECTOR, SEED, VISITS, begun

pytestmark = [pytest.mark.night, pytest.mark.timeout(600)]


def disordered(number: int, visit: PlannedVisit, moments: list[Moment]) -> list[Moment]:
    """The first visit: all twice, the second snap's readout before the first's, `nextVisit` after both, canceled last.

    The second: canceled before it was announced, and yet exposed.
    """
    announced, *others = moments
    if number == 2:
        return [canceled(visit, announced.tai), *moments]
    ended = [moment for moment in others if moment.kind.endswith("endReadout")]
    end = others[-1].tai
    said = [moment for moment in others if moment not in ended]
    twice = [moment for one in said for moment in (one, *([one] if one.kind != EXPOSE else []))]
    late = [ended[1], ended[1], ended[0], ended[0], announced, announced, canceled(visit, end)]
    return [*twice, *(moment._replace(tai=end + 0.01 * place) for place, moment in enumerate(late))]


@pytest.fixture(scope="module")
def facts(earlier: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Event]]:
    """By group, of two visits."""
    output = begun(earlier, tmp_path_factory.mktemp("disordered") / "night")
    options = NightOptions(visits=VISITS, detectors=DETECTOR, seed=SEED, output=output, inline=True)
    plan = load_schedule("own", n=VISITS, cadence=None, n_snaps=None, seed=SEED, instrument="LSSTCam")
    settings = Settings(output=output, detectors=options.chosen_detectors())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inline_night, "timeline", partial(timeline, change=disordered))
        night = asyncio.run(inline_night.play_inline(options, plan, settings, Console(file=io.StringIO())))
    return {v.group: [entry.event for entry in night.journal if entry.event.group == v.group] for v in plan}


def of(facts: list[Event], kind: type[Event]) -> list[Any]:
    return [fact for fact in facts if isinstance(fact, kind)]


def test_a_visit_told_backwards_and_twice_is_processed_as_if_told_in_order(
    facts: dict[str, list[Event]], inline_night: Any
) -> None:
    told = next(iter(facts.values()))
    kinds = [fact.kind for fact in told]
    assert [kinds.count(kind) for kind in ("NextVisit", "ReadoutEnded", "DetectorReadOut", "RawArchived")] == [
        1,
        2,
        2,
        2,
    ]
    assert [fact.snap for fact in of(told, ReadoutEnded)] == [1, 0]
    assert kinds.index("NextVisit") > kinds.index("ReadoutEnded")
    assert not of(told, VisitRefused)
    (done,) = of(told, VisitDone)
    assert [manifest.gave_up for manifest in done.detectors] == [""]
    in_order = [fact for fact in inline_night.facts if fact["group"] == done.group]
    counts = {fact["kind"]: fact for fact in in_order if fact["kind"] in {"DiaSourcesReady", "AlertsReady"}}
    assert [fact.count for fact in of(told, DiaSourcesReady)] == [counts["DiaSourcesReady"]["count"]]
    assert [fact.alerts for fact in of(told, AlertsReady)] == [counts["AlertsReady"]["alerts"]]
    assert counts["AlertsReady"]["alerts"] > 0


def test_a_visit_canceled_before_it_was_announced_is_refused_and_its_pixels_archived(
    facts: dict[str, list[Event]],
) -> None:
    _, told = facts.values()
    assert [fact.reason for fact in of(told, VisitRefused)] == ["it was canceled before it was announced"]
    assert [fact.observation.band for fact in of(told, DetectorReadOut)] == ["", ""]
    assert len(of(told, RawArchived)) == 2
    assert not of(told, DiaSourcesReady)
    assert len(of(told, NextVisit)) == 1
