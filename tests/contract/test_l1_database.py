"""What any L1 database promises: held by the one in PostgreSQL and by the one in memory."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from backbone.l1 import L1Database, Stored
from backbone.l1_memory import L1Memory
from backbone.l1_postgres import L1Postgres
from schemas.errors import BadData, Transient
from schemas.tables import Table, dtype_of, empty
from tests.backbone.l1_results import DEC, MJD, RA, filled, result

VISIT = 2026070500004
WIDE = 1.0


@pytest.fixture(params=["postgres", "memory"])
async def l1(request: pytest.FixtureRequest) -> AsyncIterator[L1Database]:
    if request.param == "memory":
        yield L1Memory()
        return
    database = await L1Postgres.open(request.getfixturevalue("dsn"))
    yield database
    tables = "visit_detector, mpc_orbits, journal, delivery"
    official = '"DiaSource", "DiaObject", "DiaObjectLast", "DiaForcedSource", "SSSource"'
    await database._pool.execute(f"TRUNCATE {tables}, {official}")
    await database.close()


def same(left: Table, right: Table) -> None:
    """Equal, NaN for NaN, in any order of rows."""
    names = left.dtype.names or ()
    key = names[0]
    left, right = np.sort(left, order=key), np.sort(right, order=key)
    for name in names:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


async def valid_in(l1: L1Database, ra: float, dec: float, radius_deg: float) -> Table:
    """The whole rows of the objects in a cone, whose last versions tell the same of them."""
    last = await l1.objects_in(ra, dec, radius_deg)
    whole = await l1.objects_of(last["diaObjectId"])
    for name in last.dtype.names or ():
        np.testing.assert_array_equal(last[name], whole[name], err_msg=name)
    return whole


class TestL1Database:
    async def test_objects_that_are_not_there_are_left_out(self, l1: L1Database) -> None:
        stored = result(VISIT)
        await l1.store(stored, [], 1.0)
        found = await l1.objects_of(np.array([7, stored.objects["diaObjectId"][3], 8]))
        same(found, stored.objects[3:4])
        assert len(await l1.objects_of(np.zeros(0, np.int64))) == 0

    async def test_what_is_stored_comes_back_value_for_value(self, l1: L1Database) -> None:
        stored = result(VISIT)
        assert await l1.store(stored, [], 1.0) is Stored.ADDED
        same(await valid_in(l1, RA, DEC, WIDE), stored.objects)
        sources, forced = await l1.history_of(stored.objects["diaObjectId"], 0.0)
        same(sources, stored.sources[:-1])
        same(forced, stored.forced)

    async def test_sources_of_a_visit_detector_are_all_of_its_own_and_no_others(self, l1: L1Database) -> None:
        for detector in (94, 95):
            await l1.store(result(VISIT, detector), [], 1.0)
        same(await l1.sources_of(VISIT, 95), result(VISIT, 95).sources)
        assert len(await l1.sources_of(VISIT, 96)) == 0

    async def test_a_cone_holds_what_is_in_it_and_no_more(self, l1: L1Database) -> None:
        stored = result(VISIT, n=300)
        await l1.store(stored, [], 1.0)
        for radius in (0.0003, 0.05, 0.09):
            found = await valid_in(l1, RA + 0.02, DEC, radius)
            x = (stored.objects["ra"] - RA - 0.02) * np.cos(np.radians(DEC))
            near = np.hypot(x, stored.objects["dec"] - DEC) <= radius  # flat: right to 1e-6 of the radius
            same(found, stored.objects[near])

    @pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (359.99999, -30.0), (12.0, 89.999), (200.0, -90.0)])
    async def test_cones_know_neither_the_edge_of_the_map_nor_the_poles(
        self, l1: L1Database, ra: float, dec: float
    ) -> None:
        stored = result(VISIT, n=5)
        stored.objects["ra"], stored.objects["dec"] = (ra + np.array([0.0, 0.01, -0.01, 180.0])) % 360.0, dec
        await l1.store(stored, [], 1.0)
        polar = abs(dec) > 89.0
        assert len(await l1.objects_in(ra, dec, 0.02)) == (4 if polar else 3)

    async def test_only_the_newest_version_of_an_object_is_valid(self, l1: L1Database) -> None:
        first = result(VISIT)
        await l1.store(first, [], 1.0)
        second = result(VISIT + 1, known=first.objects[:7], mjd=MJD + 1.0)
        second.objects["nDiaSources"][:7] = 1000
        await l1.store(second, [], 2.0)
        same(await valid_in(l1, RA, DEC, WIDE), np.concatenate([second.objects, first.objects[7:]]))
        counts = await l1.counts()
        assert counts[VISIT, 94].new_dia_objects == 19
        assert counts[VISIT + 1, 94].new_dia_objects == 12

    async def test_a_version_of_the_same_moment_takes_the_place_of_the_first(self, l1: L1Database) -> None:
        first = result(VISIT)
        await l1.store(first, [], 1.0)
        neighbour = result(VISIT, 95, known=first.objects[:2])
        await l1.store(neighbour, [], 1.0)
        same(await valid_in(l1, RA, DEC, WIDE), np.concatenate([neighbour.objects, first.objects[2:]]))

    async def test_a_version_older_than_the_current_one_is_refused_and_nothing_is_stored(self, l1: L1Database) -> None:
        first = result(VISIT)
        await l1.store(first, [], 1.0)
        late = result(VISIT - 1, known=first.objects[3:5], mjd=MJD - 1.0)
        with pytest.raises(Transient, match=f"visit {VISIT - 1} detector 94: .* that was read starts after"):
            await l1.store(late, [], 2.0)
        assert not await l1.contains(VISIT - 1, 94)
        same(await valid_in(l1, RA, DEC, WIDE), first.objects)

    async def test_what_was_made_of_a_version_that_is_no_longer_valid_is_refused(self, l1: L1Database) -> None:
        """The clock of the one that was slow is later: the start of its version would be no hint."""
        first = result(VISIT)
        await l1.store(first, [], 1.0)
        slow = result(VISIT + 2, known=first.objects[:7], mjd=MJD + 1.1)
        quick = result(VISIT + 1, known=first.objects[5:9], mjd=MJD + 1.0)
        await l1.store(quick, [], 2.0)
        lost = min(quick.objects["diaObjectId"][:2])
        with pytest.raises(Transient, match=f"visit {VISIT + 2} detector 94: DiaObject {lost} is not as it was read"):
            await l1.store(slow, [], 3.0)
        assert not await l1.contains(VISIT + 2, 94)
        same(await l1.objects_of(quick.objects["diaObjectId"]), quick.objects)
        known = np.concatenate([first.objects[:5], quick.objects[:2]])
        assert await l1.store(result(VISIT + 2, known=known, mjd=MJD + 1.1), [], 4.0) is Stored.ADDED

    async def test_an_object_that_is_not_there_is_not_changed_and_one_that_is_not_made_again(
        self, l1: L1Database
    ) -> None:
        first = result(VISIT)
        with pytest.raises(Transient, match="is not as it was read"):
            await l1.store(result(VISIT + 1, known=first.objects[:2], mjd=MJD + 1.0), [], 1.0)
        await l1.store(first, [], 2.0)
        known = result(VISIT + 1, known=first.objects[:2], mjd=MJD + 1.0)
        with pytest.raises(Transient, match=r"is not as it was read|changes the same object"):
            await l1.store(replace(known, read_starts=np.full(len(known.objects), np.nan)), [], 3.0)
        with pytest.raises(Transient, match=f"DiaObject {known.objects['diaObjectId'][0]} has ended meanwhile"):
            await l1.store(replace(known, objects=known.objects[1:], read_starts=known.read_starts[1:]), [], 4.0)
        with pytest.raises(BadData, match="19 objects, made of 18 versions"):
            await l1.store(replace(known, read_starts=known.read_starts[1:]), [], 5.0)
        assert not await l1.contains(VISIT + 1, 94)

    async def test_history_begins_at_the_time_asked_for(self, l1: L1Database) -> None:
        first = result(VISIT)
        await l1.store(first, [], 1.0)
        second = result(VISIT + 1, known=first.objects, mjd=MJD + 400.0)
        await l1.store(second, [], 2.0)
        ids = first.objects["diaObjectId"][:5]
        sources, forced = await l1.history_of(ids, MJD + 1.0)
        assert set(sources["visit"]) == set(forced["visit"]) == {VISIT + 1}
        assert sorted(sources["diaObjectId"]) == sorted(forced["diaObjectId"]) == sorted(ids)
        sources, _ = await l1.history_of(ids, MJD)
        assert len(sources) == 10
        assert sources["diaObjectId"].tolist() == sorted(sources["diaObjectId"])

    async def test_what_is_preloaded_is_at_least_what_will_be_read(self, l1: L1Database) -> None:
        first = result(VISIT, n=100)
        await l1.store(first, [], 1.0)
        await l1.store(result(VISIT + 1, n=100, known=first.objects, mjd=MJD + 400.0), [], 2.0)
        for radius, since in ((WIDE, 0.0), (WIDE, MJD + 1.0), (0.05, 0.0), (1e-9, 0.0)):
            ids = (await l1.objects_in(RA, DEC, radius))["diaObjectId"]
            wanted = 2 * len(ids) + sum(map(len, await l1.history_of(ids, since)))
            rows = await l1.preload(RA, DEC, radius, since)
            assert rows == wanted if radius == WIDE else wanted <= rows < 2 * 99 + 99 * 4

    async def test_no_objects_have_no_history(self, l1: L1Database) -> None:
        sources, forced = await l1.history_of(np.zeros(0, np.int64), 0.0)
        assert (len(sources), len(forced)) == (0, 0)
        assert sources.dtype == dtype_of("DiaSource")

    async def test_a_visit_detector_is_stored_once(self, l1: L1Database) -> None:
        stored = result(VISIT)
        assert not await l1.contains(VISIT, 94)
        await l1.store(stored, [], 1.0)
        assert await l1.contains(VISIT, 94)
        assert not await l1.contains(VISIT, 95)
        again = result(VISIT)
        again.sources["timeProcessedMjdTai"] += 0.01
        again.objects["validityStartMjdTai"] += 0.01
        assert await l1.store(again, [], 2.0) is Stored.EXISTS
        same(await valid_in(l1, RA, DEC, WIDE), stored.objects)

    async def test_another_content_for_a_stored_visit_detector_is_refused_by_name(self, l1: L1Database) -> None:
        await l1.store(result(VISIT), [], 1.0)
        other = result(VISIT)
        other.sources["psfFlux"][3] = 17.0
        with pytest.raises(BadData, match="visit 2026070500004 detector 94 is stored already, with another content"):
            await l1.store(other, [], 2.0)

    async def test_detectors_of_a_visit_can_be_stored_at_the_same_time(self, l1: L1Database) -> None:
        outcomes = await asyncio.gather(*(l1.store(result(VISIT, d), [], 1.0) for d in range(12)))
        assert outcomes == [Stored.ADDED] * 12
        assert len(await l1.objects_in(RA, DEC, WIDE)) == 12 * 19

    async def test_the_same_result_stored_twice_at_the_same_time_is_added_once(self, l1: L1Database) -> None:
        outcomes = await asyncio.gather(*(l1.store(result(VISIT), [], 1.0) for _ in range(3)))
        assert sorted(o.value for o in outcomes) == ["Added", "Exists", "Exists"]

    @pytest.mark.parametrize(
        ("table", "column", "value", "message"),
        [
            ("sources", "ra", np.nan, "ra of DiaSource is null in row 2"),
            ("objects", "dec", np.nan, "dec of DiaObject is null in row 2"),
            ("sources", "visit", 7, "DiaSource has rows of another visit"),
            ("forced", "detector", 7, "DiaForcedSource has rows of another detector"),
            ("sources", "band", "é", "band of DiaSource has a text that is not ASCII"),
        ],
    )
    async def test_rows_that_break_the_schema_are_refused_by_name(
        self, l1: L1Database, table: str, column: str, value: object, message: str
    ) -> None:
        bad = result(VISIT)
        getattr(bad, table)[column][2] = value
        with pytest.raises(BadData, match=f"visit {VISIT} detector 94: {message}"):
            await l1.store(bad, [], 1.0)
        assert not await l1.contains(VISIT, 94)

    async def test_ids_that_are_there_twice_and_alerts_about_nothing_are_refused(self, l1: L1Database) -> None:
        bad = result(VISIT)
        bad.sources["diaSourceId"][1] = bad.sources["diaSourceId"][0]
        with pytest.raises(BadData, match="is there twice"):
            await l1.store(bad, [], 1.0)
        with pytest.raises(BadData, match="the alert about 5 has no DiaSource"):
            await l1.store(replace(result(VISIT), alert_ids=np.array([5])), [], 1.0)
        with pytest.raises(BadData, match=r"other columns than apdb\.yaml"):
            await l1.store(replace(result(VISIT), sources=empty("DiaObject", 1)), [], 1.0)

    async def test_an_outbox_owes_each_alert_until_it_is_acknowledged(self, l1: L1Database) -> None:
        stored = result(VISIT)
        await l1.store(stored, [], 1.0)
        (outbox,) = await l1.unsent()
        assert (outbox.visit, outbox.detector, outbox.group, outbox.path) == (
            VISIT,
            94,
            f"group {VISIT}",
            stored.alert_path,
        )
        assert outbox.alert_ids.tolist() == stored.alert_ids.tolist()
        assert outbox.owed.all()
        times = np.where(np.arange(20) < 15, 100.0, np.nan)
        await l1.mark_sent(VISIT, 94, times, {"timed out": 5})
        (outbox,) = await l1.unsent()
        assert outbox.owed.sum() == 5
        assert outbox.failures == {"timed out": 5}
        await l1.mark_sent(VISIT, 94, np.where(np.arange(20) < 10, np.nan, 200.0), {})
        assert await l1.unsent() == []
        sent = await l1.outbox(VISIT, 94)
        assert sent is not None
        assert sent.acknowledged_at.tolist() == [100.0] * 15 + [200.0] * 5
        assert sent.failures == {}

    async def test_an_alert_is_keyed_by_its_object_or_by_its_solar_system_object(self, l1: L1Database) -> None:
        stored = result(VISIT)
        await l1.store(stored, [], 1.0)
        (outbox,) = await l1.unsent()
        assert outbox.alert_keys.tolist() == [77, *stored.sources["diaObjectId"][-2::-1].tolist()]

    async def test_unsent_alerts_come_in_the_order_of_their_storing(self, l1: L1Database) -> None:
        for at, visit in enumerate((VISIT + 2, VISIT, VISIT + 1)):
            await l1.store(result(visit), [], float(at))
        assert [o.visit for o in await l1.unsent()] == [VISIT + 2, VISIT, VISIT + 1]

    async def test_a_visit_detector_without_alerts_owes_nothing(self, l1: L1Database) -> None:
        await l1.store(replace(result(VISIT), alert_ids=np.zeros(0, np.int64)), [], 1.0)
        assert await l1.unsent() == []
        assert len(await l1.acknowledgements([VISIT])) == 0

    async def test_a_visit_detector_without_sources_can_be_stored(self, l1: L1Database) -> None:
        some = result(VISIT)
        bare = replace(
            some, sources=some.sources[:0], objects=some.objects[:0], forced=some.forced[:0],
            ss_sources=some.ss_sources[:0], alert_ids=some.alert_ids[:0], read_starts=some.read_starts[:0],
        )  # fmt: skip
        assert await l1.store(bare, [], 1.0) is Stored.ADDED
        assert await l1.contains(VISIT, 94)

    async def test_of_two_that_store_the_same_at_once_one_finds_it_there(self, l1: L1Database) -> None:
        answers = await asyncio.gather(*(l1.store(result(VISIT), [], at) for at in (1.0, 2.0, 3.0)))
        assert Counter(answers) == {Stored.ADDED: 1, Stored.EXISTS: 2}
        assert (await l1.counts())[VISIT, 94].dia_sources == 20

    async def test_of_two_that_store_different_things_at_once_one_is_refused(self, l1: L1Database) -> None:
        one, other = result(VISIT), result(VISIT)
        other.sources["psfFlux"][3] = 17.0
        answers = await asyncio.gather(*(l1.store(each, [], 1.0) for each in (one, other)), return_exceptions=True)
        (refused,) = [answer for answer in answers if isinstance(answer, BadData)]
        assert str(refused) == f"visit {VISIT} detector 94 is stored already, with another content"
        assert Stored.ADDED in answers

    async def test_acknowledgements_of_other_alerts_than_the_stored_ones_are_refused(self, l1: L1Database) -> None:
        await l1.store(result(VISIT), [], 1.0)
        with pytest.raises(BadData, match="has 20 alerts, 3 acknowledgements came"):
            await l1.mark_sent(VISIT, 94, np.zeros(3), {})
        with pytest.raises(BadData, match="visit 5 detector 94 is not stored"):
            await l1.mark_sent(5, 94, np.zeros(3), {})

    async def test_each_alert_has_its_own_acknowledgement_in_the_report(self, l1: L1Database) -> None:
        for detector in (95, 94):
            await l1.store(result(VISIT, detector), [], 1.0)
        times = np.arange(20.0)
        times[3] = np.nan
        await l1.mark_sent(VISIT, 95, times, {})
        await l1.store(result(VISIT + 1), [], 2.0)
        report = await l1.acknowledgements([VISIT])
        assert report["detector"].tolist() == [94] * 20 + [95] * 20
        assert report["diaSourceId"][20:].tolist() == result(VISIT, 95).alert_ids.tolist()
        np.testing.assert_array_equal(report["acknowledged_at"][20:], times)
        assert np.isnan(report["acknowledged_at"][:20]).all()
        assert set(report["readout_ended"]) == {1.5e9 + MJD}

    async def test_counts_say_what_a_visit_detector_has(self, l1: L1Database) -> None:
        await l1.store(result(VISIT), [], 1.0)
        await l1.mark_sent(VISIT, 94, np.where(np.arange(20) < 15, 100.0, np.nan), {})
        counts = (await l1.counts())[VISIT, 94]
        assert (counts.dia_sources, counts.new_dia_objects, counts.dia_forced_sources) == (20, 19, 19)
        assert (counts.alerts, counts.acknowledged) == (20, 15)

    async def test_orbits_come_back_as_loaded_and_a_new_catalogue_replaces_the_old(self, l1: L1Database) -> None:
        assert len(await l1.orbits()) == 0
        for rows in (50, 30):
            await l1.load_orbits(orbits(rows))
            same(await l1.orbits(), orbits(rows))

    async def test_an_orbit_without_a_designation_is_refused(self, l1: L1Database) -> None:
        nameless = orbits(3)
        nameless["designation"][1] = ""
        with pytest.raises(BadData, match="designation of mpc_orbits is null in row 1"):
            await l1.load_orbits(nameless)


def orbits(rows: int) -> Table:
    table = filled("mpc_orbits", rows, np.random.default_rng(rows))
    table["id"] = 1 + np.arange(rows)
    for i in range(rows):
        for column in (
            "designation",
            "packed_primary_provisional_designation",
            "unpacked_primary_provisional_designation",
        ):
            table[column][i] = f"2026 A{i}"
    for column in ("created_at", "updated_at", "fitting_datetime"):  # SQL's timestamps count microseconds
        table[column] = np.where(np.isnan(table[column]), np.nan, 1.7e9 + np.arange(rows) / 4.0)
    return table
