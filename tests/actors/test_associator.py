"""The way from measured sources to committed rows, with the real database in memory and the real archive on disk."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backbone.journal import MemoryJournal
from backbone.l1 import Ids
from schemas.clock import mjd_from_tai
from schemas.errors import BadData, Transient
from schemas.events import AssociationDue
from schemas.identity import dia_source_id
from schemas.tables import Table, empty
from tests.actors.association_place import (
    LATER,
    N_ALERTS,
    PROCESSED,
    STARTED,
    VISIT,
    WCS,
    Place,
    Watched,
    products,
    ready,
)


async def test_the_fact_counts_what_is_committed(place: Place, due: Callable[..., AssociationDue]) -> None:
    event = await ready(place, due())
    fact = await place.react(event)
    assert (fact.group, fact.visit, fact.detector) == ("g1", VISIT, 94)
    assert (fact.dia_sources, fact.new_dia_objects, fact.alerts) == (4, 4, N_ALERTS)
    assert fact.readout_ended == event.sources.observation.readout_ended
    assert set(fact.stages) == {"associate", "forced_photometry", "make_packets"}
    counts = (await place.kept.l1.counts())[VISIT, 94]
    assert (counts.dia_sources, counts.new_dia_objects, counts.dia_forced_sources) == (4, 4, 4)
    assert (counts.alerts, counts.acknowledged) == (N_ALERTS, 0)


async def test_the_fact_is_committed_with_the_rows_and_the_pixels_are_dropped(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event = await ready(place, due())
    fact = await place.react(event)
    assert place.kept.l1.facts == [fact]
    assert await place.pixels.get(event.sources.products) is None


async def test_the_packets_are_those_of_the_believed_sources_in_the_outboxs_order(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    fact = await place.react(await ready(place, due()))
    outbox = await place.kept.l1.outbox(VISIT, 94)
    assert outbox is not None
    assert outbox.path == fact.path
    expected = [dia_source_id(VISIT, 94, n) for n in range(N_ALERTS)]
    assert [alert["diaSourceId"] for alert in place.alerts(fact)] == expected == list(outbox.alert_ids)


async def test_a_second_visit_finds_the_objects_of_the_first_and_tells_their_history(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    await place.react(await ready(place, due()))
    later = STARTED + 3600.0
    place.clock.set_to(later + 40.0)
    fact = await place.react(await ready(place, due("g2", LATER, later), later))
    assert fact.new_dia_objects == 0
    for n, alert in enumerate(place.alerts(fact)):
        before, forced = alert["prvDiaSources"], alert["prvDiaForcedSources"]
        assert isinstance(before, list)
        assert isinstance(forced, list)
        assert [row["diaSourceId"] for row in before] == [dia_source_id(VISIT, 94, n)]
        assert [row["visit"] for row in forced] == [VISIT]


async def test_the_file_is_whole_before_anything_is_committed(place: Place, due: Callable[..., AssociationDue]) -> None:
    await place.react(await ready(place, due()))
    assert place.kept.calls == ["written", "Added"]


async def test_a_file_that_cannot_be_written_leaves_nothing_committed(
    tmp_path: Path, journal: MemoryJournal, due: Callable[..., AssociationDue]
) -> None:
    (tmp_path / "file").touch()
    place = Place(Watched(tmp_path / "file", journal))
    event = await ready(place, due())
    with pytest.raises(Transient, match="2026070500001_094"):
        await place.associator().react(event)
    assert not await place.kept.l1.contains(VISIT, 94)
    assert await place.pixels.get(event.sources.products) is not None


async def test_a_database_that_does_not_answer_is_transient_and_the_next_attempt_commits(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event = await ready(place, due())
    place.kept.lost = True
    with pytest.raises(Transient, match="L1 database"):
        await place.associator().react(event)
    place.kept.lost = False
    fact = await place.react(event)
    assert place.kept.calls == ["written", "written", "Added"]
    assert len(place.alerts(fact)) == N_ALERTS


async def test_a_new_associator_says_what_was_committed_and_commits_nothing(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event = await ready(place, due())
    first = await place.react(event)
    place.clock.set_to(PROCESSED + 500.0)
    assert await place.react(event) == first
    assert place.kept.calls == ["written", "Added"]


async def test_pixels_left_by_a_death_after_the_commit_are_dropped_by_the_next(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event = await ready(place, due())
    first = await place.react(event)
    await ready(place, event)  # as if it had died before it dropped them
    assert await place.react(event) == first
    assert await place.pixels.get(event.sources.products) is None


@pytest.mark.parametrize("column", ["psfFlux", "ra", "x"])
async def test_the_same_visit_with_other_sources_is_bad_data_and_the_first_stands(
    place: Place, due: Callable[..., AssociationDue], column: str
) -> None:
    event = await ready(place, due())
    await place.react(event)
    before, other = await place.kept.l1.sources_of(VISIT, 94), products()
    other.sources[column][2] *= 1.0001
    await place.pixels.put(event.sources.products, other)
    with pytest.raises(
        BadData, match=f"visit {VISIT} detector 94 is stored already, with another {column} of its DiaSources"
    ):
        await place.associator().react(event)
    assert (await place.kept.l1.sources_of(VISIT, 94)).tobytes() == before.tobytes()
    assert place.kept.calls == ["written", "Added"]
    assert await place.pixels.get(event.sources.products) is None


async def test_the_same_visit_with_fewer_sources_is_bad_data(place: Place, due: Callable[..., AssociationDue]) -> None:
    event = await ready(place, due())
    await place.react(event)
    fewer = replace(products(), sources=products().sources[1:], stamps=products().stamps[1:])
    await place.pixels.put(event.sources.products, fewer)
    with pytest.raises(BadData, match="is stored already, with 4 DiaSources, not 3"):
        await place.associator().react(event)


async def test_the_same_sources_processed_later_in_another_order_are_what_is_stored(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event = await ready(place, due())
    first, again = await place.react(event), products()
    again.sources["timeProcessedMjdTai"] += 0.01
    await place.pixels.put(event.sources.products, replace(again, sources=again.sources[::-1]))
    assert await place.react(event) == first


async def test_the_same_visit_of_another_group_is_bad_data_also_without_its_pixels(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    await place.react(await ready(place, due()))
    for again in (await ready(place, due("g2")), due("g2")):
        with pytest.raises(BadData, match=f"visit {VISIT} detector 94 is stored already, of another group"):
            await place.associator().react(again)
    assert place.kept.calls == ["written", "Added"]


async def test_another_that_committed_meanwhile_is_believed(
    place: Place, due: Callable[..., AssociationDue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the same visit-detector, the first not yet dead: the second finds at the commit that it came late."""
    event = await ready(place, due())
    first = await place.react(event)
    await ready(place, event)

    async def not_yet(*_: object) -> bool:
        return False

    async def no_objects(*_: object) -> Table:
        return empty("DiaObjectLast", 0)

    async def no_history(*_: object) -> tuple[Table, Table]:
        return empty("DiaSource", 0), empty("DiaForcedSource", 0)

    monkeypatch.setattr(place.kept.l1, "contains", not_yet)
    monkeypatch.setattr(place.kept.l1, "objects_in", no_objects)
    monkeypatch.setattr(place.kept.l1, "history_of", no_history)
    assert await place.react(event) == first
    assert place.kept.calls == ["written", "Added", "written", "Exists"]
    assert (await place.kept.l1.counts())[VISIT, 94].dia_sources == 4


@pytest.mark.parametrize("other", [False, True])
async def test_another_whose_objects_it_has_read_is_believed_if_it_measured_the_same(
    place: Place, due: Callable[..., AssociationDue], monkeypatch: pytest.MonkeyPatch, *, other: bool
) -> None:
    """The second began before the first had committed, and read objects and history after that."""
    event = await ready(place, due())
    first, contains, asked = await place.react(event), place.kept.l1.contains, [False, True]
    measured = products()
    measured.sources["psfFlux"][2] *= 1.0001 if other else 1.0
    await place.pixels.put(event.sources.products, measured)

    async def later(visit: int, detector: int) -> bool:
        return asked.pop(0) and await contains(visit, detector)

    monkeypatch.setattr(place.kept.l1, "contains", later)
    if other:
        with pytest.raises(BadData, match="stored already, with another psfFlux"):
            await place.associator().react(event)
    else:
        assert await place.react(event) == first
    assert asked == []
    assert (await place.kept.l1.counts())[VISIT, 94].dia_sources == 4
    assert await place.pixels.get(event.sources.products) is None


async def test_pixels_that_are_gone_are_bad_data_and_named(place: Place, due: Callable[..., AssociationDue]) -> None:
    with pytest.raises(BadData, match=f"visit {VISIT} detector 94: its pixels are not in the pixel store"):
        await place.associator().react(due())
    assert place.kept.calls == []


async def test_a_source_outside_its_detector_is_bad_data_and_commits_nothing(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event, bad = due(), products()
    bad.sources["dec"][1] += 0.2
    await place.pixels.put(event.sources.products, bad)
    with pytest.raises(
        BadData, match=rf"DiaSource {dia_source_id(VISIT, 94, 1)} at ra .* 0\.2\d\d deg from the detector"
    ):
        await place.associator().react(event)
    assert not await place.kept.l1.contains(VISIT, 94)


async def test_photometry_is_not_forced_on_objects_not_seen_for_a_year(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event, made = due(), products()
    await place.pixels.put(event.sources.products, made)
    await place.react(event)
    objects = await place.kept.l1.objects_in(*WCS.crval, 1.0)
    for days, forced in ((300.0, 4), (400.0, 0)):
        visit = VISIT + int(days)
        later = due(f"g{visit}", visit, STARTED + days * 86400.0)
        empty_sky = products(visit, STARTED + days * 86400.0)
        empty_sky = replace(empty_sky, sources=empty_sky.sources[:0], stamps=())
        await place.pixels.put(later.sources.products, empty_sky)
        await place.react(later)
        _, found = await place.kept.l1.history_of(objects["diaObjectId"], mjd_from_tai(STARTED) + 1.0)
        assert np.count_nonzero(found["visit"] == visit) == forced


async def test_photometry_is_forced_on_an_object_seen_again_after_more_than_a_year(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    await place.react(await ready(place, due()))
    objects = await place.kept.l1.objects_in(*WCS.crval, 1.0)
    started = STARTED + 400.0 * 86400.0
    place.clock.set_to(started + 40.0)
    fact = await place.react(await ready(place, due("g2", LATER, started), started))
    assert fact.new_dia_objects == 0
    _, forced = await place.kept.l1.history_of(objects["diaObjectId"], mjd_from_tai(started))
    assert forced["diaObjectId"].tolist() == objects["diaObjectId"].tolist()


async def test_one_that_was_overtaken_is_made_again_and_no_source_is_lost(
    place: Place, due: Callable[..., AssociationDue], monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.react(await ready(place, due()))
    slow, quick = (due(f"g{visit}", visit, STARTED + 3600.0) for visit in (LATER, LATER + 2))
    for event in (slow, quick):
        await ready(place, event, STARTED + 3600.0)
    place.clock.set_to(STARTED + 3640.0)
    read = place.kept.l1.history_of

    async def overtaken(object_ids: Ids, since_mjd: float) -> tuple[Table, Table]:
        monkeypatch.setattr(place.kept.l1, "history_of", read)
        found = await read(object_ids, since_mjd)
        await place.react(quick)
        place.clock.set_to(STARTED + 3641.0)
        return found

    monkeypatch.setattr(place.kept.l1, "history_of", overtaken)
    with pytest.raises(Transient, match=f"visit {LATER} detector 94: DiaObject .* is not as it was read"):
        await place.associator().react(slow)
    await place.react(slow)
    objects = await place.kept.l1.objects_in(*WCS.crval, 1.0)
    assert objects["nDiaSources"].tolist() == [3] * 4


async def test_sources_without_a_position_are_bad_data_and_commit_nothing(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event, bad = due(), products()
    bad.sources["ra"][2] = np.nan
    await place.pixels.put(event.sources.products, bad)
    with pytest.raises(BadData, match=str(dia_source_id(VISIT, 94, 2))):
        await place.associator().react(event)
    assert not await place.kept.l1.contains(VISIT, 94)


async def test_a_source_nowhere_is_named_although_others_are_near(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    event, bad = due(), products()
    bad.sources["dec"][1] = np.nan
    bad.sources["dec"][3] += 0.2
    await place.pixels.put(event.sources.products, bad)
    with pytest.raises(
        BadData, match=rf"DiaSource {dia_source_id(VISIT, 94, 1)} at .* nowhere on the sky; there are 2"
    ):
        await place.associator().react(event)


async def test_versions_begin_after_those_of_a_clock_that_was_ahead(
    place: Place, due: Callable[..., AssociationDue]
) -> None:
    first = await place.react(await ready(place, due()))
    known = await place.kept.l1.objects_in(150.0, 2.2, 0.1)
    place.clock.set_to(PROCESSED - 86400.0)
    later = STARTED + 3600.0
    fact = await place.react(await ready(place, due("g2", LATER, later), later))
    assert (first.new_dia_objects, fact.new_dia_objects) == (4, 0)
    now = await place.kept.l1.objects_in(150.0, 2.2, 0.1)
    assert np.all(now["validityStartMjdTai"] > known["validityStartMjdTai"])
    assert now["nDiaSources"].tolist() == [2, 2, 2, 2]
