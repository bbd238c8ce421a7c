import dataclasses
import io
import pathlib
import struct

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from lsst.alert.packet import Schema
from lsst.alert.packet.schema import get_latest_schema_version

from payloads.alert_production.alert_schema import Record, alert_schema, fields_of, frame, schema_id
from payloads.alert_production.dia_objects import update
from payloads.alert_production.packets import alertable, make_packets
from schemas.errors import BadData
from schemas.image import MaskedImage, Observation, Stamp
from schemas.tables import Table, empty
from schemas.wcs import Wcs
from tests.payloads.alert_production.plain_records import decoded_alert, encoded_alert, records

REAL = pathlib.Path(__file__).parents[3].parent / "shared/data/alerts/rubin_alerts_v10_0.parquet"
MJD = 61041.25
OBSERVATION = Observation(
    "LSSTCam", "2025-12-31T06:00:00", 2025123100245, 2025123100245, 0, 1, "MC_O_20251231_000245", "i_39", "i",
    63.4, -46.6, 33.2, 30.0, 0.0, 32.0, "BLOCK-407",
)  # fmt: skip


def _filled(name: str, rows: int, seed: int) -> Table:
    """Values in every column, a fifth of those that may be null null."""
    rng, table = np.random.default_rng(seed), empty(name, rows)
    for column in table.dtype.names:
        kind = table.dtype[column].kind
        draw = {
            "f": rng.normal(0, 9, rows),
            "b": rng.random(rows) < 0.5,
            "i": rng.integers(0, 5, rows),
            "U": "r",
        }[kind]
        table[column] = draw
        if kind == "f" and column not in _never_null(name):
            table[column][rng.random(rows) < 0.2] = np.nan
    if "timeWithdrawnMjdTai" in table.dtype.names:
        table["timeWithdrawnMjdTai"] = np.nan
    return table


def _never_null(name: str) -> set[str]:
    record = {"DiaSource": "diaSource", "DiaObject": "diaObject", "DiaForcedSource": "diaForcedSource",
              "SSSource": "ssSource", "mpc_orbits": "mpc_orbits"}[name]  # fmt: skip
    return {field.name for field in fields_of(record) if not field.nullable}


def _stamp(seed: int) -> Stamp:
    rng = np.random.default_rng(seed)
    cutouts = [
        MaskedImage(rng.normal(size=(31, 31)).astype("f4"), np.zeros((31, 31), "u2"), np.ones((31, 31), "f4"))
        for _ in range(3)
    ]
    wcs = Wcs((63.48, -46.61), (15.2, 15.4), np.array([[-4.6e-5, 3e-5], [3e-5, 4.6e-5]]))
    return Stamp(*cutouts, wcs, *rng.random((3, 21, 21)).astype("f4"))


@dataclasses.dataclass
class _Visit:
    """Four sources: object 10 (with history), object 20 (new), body 71, object 30."""

    sources: Table
    objects: Table
    history: Table
    forced: Table
    ss_sources: Table
    orbits: Table
    stamps: list[Stamp]

    def packets(self) -> list[Record]:
        return [decoded_alert(packet) for packet in self.encoded()]

    def encoded(self) -> list[bytes]:
        return make_packets(
            self.sources, self.stamps, objects=self.objects, history=self.history, forced_history=self.forced,
            ss_sources=self.ss_sources, orbits=self.orbits, observation=OBSERVATION,
        )  # fmt: skip


@pytest.fixture
def visit() -> _Visit:
    sources = _filled("DiaSource", 4, 1)
    sources["diaSourceId"], sources["diaObjectId"], sources["ssObjectId"] = (
        (1, 2, 3, 4),
        (10, 20, 0, 30),
        (0, 0, 71, 0),
    )
    sources["midpointMjdTai"], sources["ra"], sources["dec"] = MJD, 63.4, -46.6
    objects = _filled("DiaObject", 4, 2)
    objects["diaObjectId"] = 30, 99, 10, 20
    history = _filled("DiaSource", 7, 3)
    history["diaSourceId"], history["diaObjectId"] = (
        (101, 102, 103, 104, 105, 106, 1),
        (10, 10, 10, 10, 30, 98, 10),
    )
    history["midpointMjdTai"] = MJD - np.array([5.0, 9.0, 364.0, 366.0, 1.0, 1.0, 0.0])
    forced = _filled("DiaForcedSource", 4, 4)
    forced["diaForcedSourceId"], forced["diaObjectId"] = (201, 202, 203, 204), (10, 10, 30, 98)
    forced["midpointMjdTai"] = MJD - np.array([0.0, 400.0, 3.0, 3.0])
    ss_sources, orbits = _filled("SSSource", 1, 5), _filled("mpc_orbits", 2, 6)
    ss_sources["diaSourceId"], ss_sources["ssObjectId"], ss_sources["designation"] = 3, 71, "2031 AB"
    orbits["designation"], orbits["created_at"], orbits["updated_at"] = ("2031 AA", "2031 AB"), 1.7e9, np.nan
    return _Visit(sources, objects, history, forced, ss_sources, orbits, [_stamp(k) for k in range(4)])


def test_the_schema_is_the_newest_official_one() -> None:
    assert alert_schema()["name"] == "lsst.v{}_{}.alert".format(*get_latest_schema_version())
    assert schema_id() == Schema.from_uri().get_schema_id()


def test_every_alert_is_what_the_official_schema_and_fastavro_make_of_it(visit: _Visit) -> None:
    schema = Schema.from_uri()
    for packet in visit.encoded():
        alert = schema.deserialize(packet)
        assert schema.validate(alert)
        assert packet == schema.serialize(alert) == encoded_alert(alert)


def test_every_alert_comes_back_from_an_avro_container(visit: _Visit) -> None:
    file = io.BytesIO()
    fastavro.writer(file, alert_schema(), visit.packets())
    file.seek(0)
    assert list(fastavro.reader(file)) == visit.packets()


def test_the_frame_is_confluents(visit: _Visit) -> None:
    payload = visit.encoded()[0]
    magic, number = struct.unpack(">bI", frame(payload)[:5])
    assert (magic, number) == (0, schema_id())
    assert frame(payload)[5:] == payload


def test_a_source_carries_its_values_and_null_for_what_is_none(visit: _Visit) -> None:
    visit.sources["raErr"][0], visit.sources["parentDiaSourceId"][0], visit.sources["band"][0] = np.nan, 0, ""
    visit.sources["psfFlux"][0], visit.sources["isNegative"][0] = 12.5, False
    source = visit.packets()[0]["diaSource"]
    assert source["raErr"] is source["parentDiaSourceId"] is source["band"] is source["ssObjectId"] is None
    assert (source["psfFlux"], source["isNegative"], source["diaObjectId"]) == (12.5, False, 10)
    assert set(source) == {field.name for field in fields_of("diaSource")}


def test_what_is_0_in_an_orbit_is_0_in_the_packet_and_what_is_unknown_null(visit: _Visit) -> None:
    orbits, names = visit.orbits, ("u_param", "nopp", "orbit_type_int", "nobs_total", "nobs_total_sel")
    for name, value in zip(names, (0, -1, 0, 0, -1), strict=True):
        orbits[name] = value
    visit.ss_sources["diaDistanceRank"] = -1
    alert = Schema.from_uri().deserialize(visit.encoded()[2])
    assert [alert["mpc_orbits"][name] for name in names] == [0, None, 0, 0, None]
    assert alert["ssSource"]["diaDistanceRank"] is None


def test_history_is_a_years_and_not_the_source_itself(visit: _Visit) -> None:
    first, new, _, last = visit.packets()
    assert [row["diaSourceId"] for row in first["prvDiaSources"]] == [103, 102, 101]
    assert [row["diaForcedSourceId"] for row in first["prvDiaForcedSources"]] == [201]
    assert new["prvDiaSources"] == new["prvDiaForcedSources"] == []
    assert [row["diaSourceId"] for row in last["prvDiaSources"]] == [105]


def test_withdrawn_history_is_not_told(visit: _Visit) -> None:
    visit.history["timeWithdrawnMjdTai"][1] = MJD - 2.0
    assert [row["diaSourceId"] for row in visit.packets()[0]["prvDiaSources"]] == [103, 101]


def test_an_alert_is_of_a_dia_object_or_of_a_solar_system_object(visit: _Visit) -> None:
    alerts = visit.packets()
    assert [alert["diaObject"] and alert["diaObject"]["diaObjectId"] for alert in alerts] == [
        10,
        20,
        None,
        30,
    ]
    assert [alert["ssSource"] and alert["ssSource"]["ssObjectId"] for alert in alerts] == [
        None,
        None,
        71,
        None,
    ]
    assert alerts[2]["mpc_orbits"]["designation"] == "2031 AB"
    assert alerts[2]["mpc_orbits"]["created_at"].timestamp() == 1.7e9
    assert alerts[2]["mpc_orbits"]["updated_at"] is None
    assert alerts[2]["prvDiaSources"] is alerts[2]["prvDiaForcedSources"] is None


def test_the_cutouts_are_the_stamps(visit: _Visit) -> None:
    alert, stamp = visit.packets()[1], visit.stamps[1]
    for name in ("science", "template", "difference"):
        hdus = fits.open(io.BytesIO(alert[f"cutout{name.capitalize()}"]))
        assert np.array_equal(hdus[0].data, getattr(stamp, name).image)
        assert np.array_equal(hdus["PSFIMAGE"].data, getattr(stamp, f"psf_{name}"))
        assert hdus[0].header["ROTPA"] == OBSERVATION.rotation


def test_the_survey_is_the_reason_of_the_observation(visit: _Visit) -> None:
    assert {alert["observation_reason"] for alert in visit.packets()} == {"BLOCK-407"}
    assert {alert["target_name"] for alert in visit.packets()} == {None}


def test_no_sources_no_alerts(visit: _Visit) -> None:
    none = dataclasses.replace(visit, sources=visit.sources[:0], stamps=[])
    assert none.packets() == []


def test_what_a_packet_lacks_is_named(visit: _Visit) -> None:
    cases = {
        "there are 3 stamps for 4 DIASources": {"stamps": visit.stamps[:3]},
        "DiaSource 4 is of DiaObject 30, which is not": {"objects": visit.objects[1:]},
        "DiaSource 3 is of SSSource 3, which is not": {"ss_sources": visit.ss_sources[:0]},
        "DiaSource 3 is of mpc_orbits 2031 AB, which is not": {"orbits": visit.orbits[:1]},
        "the table for diaObject has no column": {"objects": visit.objects[["diaObjectId"]]},
    }
    for message, change in cases.items():
        with pytest.raises(BadData, match=message):
            dataclasses.replace(visit, **change).packets()


def _detected(rows: int) -> Table:
    sources = empty("DiaSource", rows)
    sources["reliability"], sources["exposureTime"] = 0.9, 30.0
    return sources


@pytest.mark.parametrize(
    ("column", "value", "kept"),
    [
        ("reliability", 0.51, True), ("reliability", 0.49, False), ("reliability", np.nan, False),
        ("pixelFlags_saturatedCenter", True, False), ("pixelFlags_edge", True, False),
        ("pixelFlags_offimage", True, False), ("pixelFlags_nodataCenter", True, False),
        ("pixelFlags_crCenter", True, False), ("pixelFlags_saturated", True, True),
        ("pixelFlags_cr", True, True),
        ("trailLength", 12.4, True), ("trailLength", 12.6, False), ("trailLength", np.nan, True),
    ],
)  # fmt: skip
def test_which_sources_are_told(column: str, value: float | bool, kept: bool) -> None:
    sources = _detected(2)
    sources[column][1] = value
    assert alertable(sources).tolist() == [True, kept]


def test_the_limit_of_reliability_can_be_moved() -> None:
    sources = _detected(2)
    sources["reliability"] = 0.4, 0.6
    assert alertable(sources, min_reliability=0.5).tolist() == [False, True]


@pytest.fixture
def real_alerts() -> list[Record]:
    if not REAL.exists():
        pytest.skip(f"no real alerts at {REAL}")
    import pyarrow.parquet as pq  # noqa: PLC0415 - for this test alone

    return pq.read_table(REAL).to_pylist()


def _table_of(rows: list[Record], name: str) -> Table:
    table = empty(name, len(rows))
    for k, row in enumerate(rows):
        for column in set(row) & set(table.dtype.names):
            if row[column] is not None:
                table[column][k] = row[column]
    return table


def test_real_alerts_are_told_again_as_rubin_told_them(real_alerts: list[Record]) -> None:
    """Every field that both versions of the schema have; Rubin writes 0 for ids that are none."""
    sources = [alert["diaSource"] for alert in real_alerts]
    for real, ours in zip(sources, records(_table_of(sources, "DiaSource"), "diaSource"), strict=True):
        common = set(real) & set(ours)
        assert len(common) > 95
        for name in common:
            assert ours[name] == (None if name.endswith("Id") and real[name] == 0 else real[name]), name


def test_real_objects_of_one_source_are_what_ours_would_be(real_alerts: list[Record]) -> None:
    """Rubin's own statistics of objects that the source began; it leaves out the first and last time."""
    born = [alert for alert in real_alerts if alert["diaObject"]["diaObjectId"] == alert["diaSourceId"]]
    assert len(born) == 8
    for alert in born:
        source, objects = _table_of([alert["diaSource"]], "DiaSource"), empty("DiaObject", 1)
        objects["diaObjectId"], objects["ra"], objects["dec"] = (
            alert["diaSourceId"],
            source["ra"],
            source["dec"],
        )
        processed = alert["diaObject"]["validityStartMjdTai"]
        updated = update(objects, empty("DiaSource", 0), source, empty("DiaForcedSource", 0), processed)
        ours = records(updated, "diaObject")[0]
        for name, real in alert["diaObject"].items():
            if name not in {"firstDiaSourceMjdTai", "lastDiaSourceMjdTai"}:
                expected = None if real is None else pytest.approx(real, rel=1e-5)
                assert ours[name] == expected, name


def test_real_stamps_and_ours_have_the_same_layout(real_alerts: list[Record], visit: _Visit) -> None:
    theirs = fits.open(io.BytesIO(real_alerts[0]["cutoutDifference"]))
    ours = fits.open(io.BytesIO(visit.packets()[0]["cutoutDifference"]))
    assert {hdu.name for hdu in theirs} <= {hdu.name for hdu in ours}
    assert theirs["UNCERT"].header["UTYPE"] == ours["UNCERT"].header["UTYPE"]
    assert theirs[0].header["BUNIT"] == ours[0].header["BUNIT"]
    assert "ROTPA" in theirs[0].header
