import dataclasses
import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.clock import day_obs_of
from schemas.errors import BadData
from schemas.instrument import camera
from schemas.wcs import separation_arcsec
from simulators.ocs import site
from simulators.ocs.schedule import PlannedVisit, dump_plan, load_plan, load_schedule, plan_own

DATA = Path(__file__).parents[4] / "shared" / "data"
NIGHT, OPSIM = DATA / "nights" / "visits_2026-07-05.json", DATA / "opsim" / "schedview_sample_opsim.db"

LOGGED = {
    "visit_id": 2026070500004, "fieldRA": 216.8, "fieldDec": -54.0, "band": "i", "rotSkyPos": 222.5,
    "visitExposureTime": 30.0, "observationStartDatetime64": "2026-07-05T22:36:08.255",
}  # fmt: skip
NEXT = LOGGED | {"visit_id": 2026070500005, "observationStartDatetime64": "2026-07-05T22:36:42.801"}


def _night(path: Path, *rows: object) -> Path:
    path.write_text(json.dumps(rows))
    return path


def _opsim(path: Path, **columns: object) -> Path:
    row = {
        "fieldRA": 10.0, "fieldDec": -20.0, "observationStartMJD": 61226.9, "visitExposureTime": 30.0,
        "numExposures": 2, "rotSkyPos": 5.0, "band": "r", "science_program": "BLOCK-407",
    } | columns  # fmt: skip
    row = {name: value for name, value in row.items() if value != "absent"}
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE observations ({', '.join(row)})")
        places = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO observations VALUES ({places})", tuple(row.values()))  # noqa: S608
    connection.close()
    return path


def _assert_in_sequence(plan: Sequence[PlannedVisit]) -> None:
    assert len({visit.group for visit in plan}) == len(plan)
    for before, after in itertools.pairwise(plan):
        assert after.start_tai >= before.start_tai + before.duration - 1e-6
        if after.day_obs == before.day_obs:
            assert after.seq_num >= before.seq_num + before.n_snaps


def test_the_own_night_is_six_visits_of_two_fields_in_turns_each_in_its_band() -> None:
    plan = load_schedule("own", seed=3)
    assert [visit.physical_filter for visit in plan] == ["r_57", "i_39"] * 3
    assert [visit.start_tai - plan[0].start_tai for visit in plan] == [37.0 * i for i in range(6)]
    assert [(visit.n_snaps, visit.exposure_time, visit.seq_num) for visit in plan[:2]] == [
        (2, 15.0, 1),
        (2, 15.0, 3),
    ]
    for field in (plan[0::2], plan[1::2]):
        apart = separation_arcsec([v.ra for v in field], [v.dec for v in field], field[0].ra, field[0].dec)
        assert np.all(apart < 120.0)
        assert len({(v.ra, v.rotation) for v in field}) == 3
        turns = [(v.rotation - field[0].rotation + 180.0) % 360.0 - 180.0 for v in field]
        assert np.all(np.abs(turns) < 8.0)
    assert 1.0 < separation_arcsec(plan[0].ra, plan[0].dec, plan[1].ra, plan[1].dec) / 3600.0 < 6.0
    _assert_in_sequence(plan)


def test_the_own_night_is_dark_high_and_out_of_the_milky_way_and_often_near_the_ecliptic() -> None:
    near = 0
    for seed in range(40):
        plan = plan_own(seed, 30)
        ra, dec = np.array([v.ra for v in plan]), np.array([v.dec for v in plan])
        hours = [site.hour_angle(v.ra, v.start_tai) / 15.0 for v in plan]
        assert np.all(np.abs(hours) < 3.2)
        assert np.all((dec > -60.0) & (dec < 5.0))
        assert np.all(np.abs(site.galactic_latitude(ra, dec)) > 19.9)
        assert np.all(site.sun_altitude([v.start_tai for v in plan]) < -18.0)
        assert len({(round(v.ra / np.cos(np.radians(v.dec))), round(v.dec)) for v in plan}) >= 8
        near += int(np.mean(np.abs(site.ecliptic_latitude(ra, dec)) < 15.0) > 0.5)
    assert near > 30


def test_the_same_seed_gives_the_same_night_and_another_seed_another() -> None:
    assert plan_own(5) == plan_own(5)
    assert plan_own(5) != plan_own(6)
    assert {day_obs_of(v.start_tai) for v in plan_own(5, day_obs=20261001)} == {20261001}


def test_a_night_longer_than_the_dark_is_refused() -> None:
    with pytest.raises(BadData, match=r"2000 visits every 37 s do not fit 1\d\.\d dark hours"):
        plan_own(0, 2000)


def test_an_observation_names_its_exposure_and_foretells_its_end() -> None:
    first, second = (plan_own(0)[1].observation(snap) for snap in (0, 1))
    assert (first.visit, first.exposure, second.visit, second.exposure) == tuple(
        2026070500000 + i for i in (3, 3, 3, 4)
    )
    assert (first.image_name, first.band, second.snap, second.n_snaps) == ("MC_O_20260705_000003", "i", 1, 2)
    assert first.readout_ended - first.started == second.started - first.started == 18.0
    assert plan_own(0, instrument="LATISS")[0].observation(0).image_name == "AT_O_20260705_000001"


@pytest.mark.skipif(not NIGHT.exists(), reason="the real night's log is not beside the repository")
def test_a_real_night_keeps_its_times_numbers_and_groups() -> None:
    plan = load_schedule(str(NIGHT))
    assert len(plan) == 916
    first = plan[0]
    assert (first.group, first.physical_filter, first.n_snaps) == ("2026-07-05T22:36:08.255", "i_39", 1)
    assert first.observation(0).exposure == 2026070500004
    # the log's own midpoint, MJD in TAI: half the exposure and half a second of shutter after the start
    assert abs(first.start_tai + 15.5 - (61226.9419412325 - 40587.0) * 86400.0) < 0.1
    assert Counter(v.physical_filter for v in plan) == {"i_39": 527, "z_20": 227, "r_57": 156, "g_6": 6}
    _assert_in_sequence(plan)


@pytest.mark.skipif(not NIGHT.exists(), reason="the real night's log is not beside the repository")
def test_a_real_night_can_be_cut_hurried_and_split_into_snaps() -> None:
    plan = load_schedule(str(NIGHT), n=20, cadence=39.0, n_snaps=2)
    assert len(plan) == 20
    assert [v.start_tai - plan[0].start_tai for v in plan] == pytest.approx([39.0 * i for i in range(20)])
    assert {v.n_snaps for v in plan} == {2}
    assert plan[0].exposure_time == pytest.approx(15.0, abs=0.01)
    _assert_in_sequence(plan)
    slower = load_schedule(str(NIGHT), n=100, n_snaps=3)
    _assert_in_sequence(slower)


@pytest.mark.skipif(not OPSIM.exists(), reason="the opsim sample is not beside the repository")
def test_an_opsim_database_is_a_schedule() -> None:
    plan = load_schedule(str(OPSIM))
    assert len(plan) == 554
    assert (plan[0].survey, plan[0].physical_filter, plan[0].seq_num, plan[1].seq_num) == (
        "BLOCK-407",
        "r_57",
        1,
        2,
    )
    _assert_in_sequence(plan)


def test_snaps_of_an_opsim_visit_share_its_exposure_time(tmp_path: Path) -> None:
    (visit,) = load_schedule(str(_opsim(tmp_path / "a.db")))
    assert (visit.n_snaps, visit.exposure_time, visit.group) == (2, 15.0, "2026-07-05T21:36:00.000")


def test_a_filter_that_the_camera_lacks_keeps_its_name(tmp_path: Path) -> None:
    (visit,) = load_schedule(str(_night(tmp_path / "n.json", LOGGED | {"band": "w"})))
    assert visit.physical_filter == visit.observation(0).band == "w"
    with pytest.raises(BadData, match="no filter 'w'"):
        camera("LSSTCam").band_of(visit.physical_filter)


def test_a_plan_is_the_same_after_its_file(tmp_path: Path) -> None:
    plan = plan_own(1)
    dump_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fieldRA": None}, "visit 1, fieldRA"),
        ({"fieldDec": 91.0}, "visit 1, fieldDec"),
        ({"fieldDec": float("nan")}, "visit 1, fieldDec"),
        ({"rotSkyPos": "12"}, "visit 1, rotSkyPos"),
        ({"band": 3}, "visit 1, band"),
        ({"visitExposureTime": 0.0}, "visit 1, visitExposureTime"),
        ({"visit_id": True}, "visit 1, visit_id"),
        ({"observationStartDatetime64": "yesterday"}, "'yesterday' is no ISO 8601 time"),
        (
            {"observationStartDatetime64": LOGGED["observationStartDatetime64"]},
            "2 visits of the group 2026-07-05T22:36",
        ),
    ],
)
def test_a_night_with_a_broken_visit_is_refused_by_file_visit_and_column(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    path = _night(tmp_path / "night.json", LOGGED, NEXT | change)
    with pytest.raises(BadData, match=reason) as refusal:
        load_schedule(str(path))
    assert str(path) in str(refusal.value)


def test_a_night_without_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="visit 0, band: Field required"):
        load_schedule(str(_night(tmp_path / "night.json", {k: v for k, v in LOGGED.items() if k != "band"})))


@pytest.mark.parametrize("content", [b"", b"[1, 2", b"\x00\xff", b"{}", b"[]", b"[3]"])
def test_a_file_that_is_no_night_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "night.json"
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"night\.json"):
        load_schedule(str(path))
    with pytest.raises(BadData, match=r"night\.json"):
        load_plan(path)


@pytest.mark.parametrize("name", ["absent.json", "absent.db", "night.txt", "folder.db", "folder.json"])
def test_a_schedule_that_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(BadData, match=name):
        load_schedule(str(tmp_path / name))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("band", "absent"),
        ("fieldRA", None),
        ("fieldDec", "south"),
        ("numExposures", 0),
        ("visitExposureTime", -1.0),
    ],
)
def test_an_opsim_database_with_a_broken_column_is_refused(tmp_path: Path, column: str, value: object) -> None:
    with pytest.raises(BadData, match=f"a.db: visit 0, {column}"):
        load_schedule(str(_opsim(tmp_path / "a.db", **{column: value})))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"not a database, though long enough to be taken for one" * 20)
    with pytest.raises(BadData, match="not an opsim database"):
        load_schedule(str(tmp_path / "a.db"))
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(BadData, match="no such table"):
        load_schedule(str(tmp_path / "empty.db"))


@pytest.mark.parametrize("options", [{"n": 0}, {"n_snaps": 0}, {"cadence": -1.0}, {"n": -2}, {"cadence": 20.0}])
def test_options_that_make_no_night_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    for source in ("own", str(_night(tmp_path / "night.json", LOGGED, NEXT))):
        with pytest.raises(BadData, match=r"positive|too short"):
            load_schedule(source, **options)


def test_a_plan_with_a_broken_visit_is_refused(tmp_path: Path) -> None:
    rows = [dataclasses.asdict(visit) for visit in plan_own(0)]
    rows[2]["n_snaps"] = "two"
    (tmp_path / "plan.json").write_text(json.dumps(rows))
    with pytest.raises(BadData, match="visit 2, n_snaps"):
        load_plan(tmp_path / "plan.json")
