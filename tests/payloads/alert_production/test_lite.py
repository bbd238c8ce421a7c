import time
import timeit

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.alert_production.alert_schema import Record, alert_schema
from payloads.alert_production.avro_rows import encoded_long
from payloads.alert_production.lite import LEFT_OUT, field_ends, lite
from schemas.errors import BadData
from tests.backbone.l1_results import filled
from tests.payloads.alert_production.plain_records import decoded_alert, encoded_alert, encoded_record, records
from tests.payloads.alert_production.test_avro_rows import tables

RECORDS = {"diaObject": "diaObject", "ssSource": "ssSource", "mpc_orbits": "mpc_orbits"}
HISTORY = {"prvDiaSources": "diaSource", "prvDiaForcedSources": "diaForcedSource"}
NAMES = [field["name"] for field in alert_schema()["fields"]]


@st.composite
def alerts(draw: st.DrawFn) -> Record:
    """Any alert of the schema: all that may be null sometimes null, history of no, one or some rows."""
    alert: Record = {"diaSourceId": draw(st.integers(-(2**63), 2**63 - 1))}
    for name in ("observation_reason", "target_name"):
        alert[name] = draw(st.none() | st.text(max_size=20))
    alert["diaSource"] = draw(tables("diaSource").filter(len).map(lambda t: records(t, "diaSource")[0]))
    for name, record in HISTORY.items():
        alert[name] = draw(st.none() | tables(record).map(lambda t, r=record: records(t, r)))
    for name, record in RECORDS.items():
        alert[name] = draw(st.none() | tables(record).filter(len).map(lambda t, r=record: records(t, r)[0]))
    for name in NAMES[-3:]:
        alert[name] = draw(st.none() | st.binary(max_size=300))
    return alert


def without(alert: Record) -> Record:
    """The plain way."""
    return alert | dict.fromkeys(LEFT_OUT)


@given(alert=alerts())
@settings(max_examples=80, deadline=None)
def test_it_is_to_the_byte_what_fastavro_makes_of_the_alert_with_those_fields_null(alert: Record) -> None:
    assert lite(encoded_alert(alert)) == encoded_alert(without(alert))


@given(alert=alerts())
@settings(max_examples=30, deadline=None)
def test_each_field_lies_where_it_is_said_to(alert: Record) -> None:
    packet = encoded_alert(alert)
    ends = field_ends(packet)
    types = [field["type"] for field in fastavro.schema.expand_schema(alert_schema())["fields"]]
    for name, begin, end, kind in zip(NAMES, ends[:-1], ends[1:], types, strict=True):
        if name in {"diaSourceId", "observation_reason", "target_name", *NAMES[-3:]}:
            assert packet[begin:end] == encoded(kind, alert[name])
    assert (ends[0], ends[-1]) == (0, len(packet))


def encoded(kind: object, value: object) -> bytes:
    if kind == "long":
        assert isinstance(value, int)
        return encoded_long(value)
    if value is None:
        return b"\0"
    data = value.encode() if isinstance(value, str) else value
    assert isinstance(data, bytes)
    return b"\2" + encoded_long(len(data)) + data


@given(alert=alerts(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_packet_cut_short_or_with_something_behind_it_is_refused(alert: Record, data: st.DataObject) -> None:
    packet = encoded_alert(alert)
    cut = packet[: data.draw(st.integers(0, len(packet) - 1))]
    with pytest.raises(BadData, match=f"{len(cut)} bytes are no alert of schema"):
        lite(cut)
    with pytest.raises(BadData, match="behind its last field"):
        lite(packet + data.draw(st.binary(min_size=1, max_size=9)))


@given(alert=alerts(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_corrupt_is_refused_or_reads_the_same_as_what_is_left_of_it(alert: Record, data: st.DataObject) -> None:
    packet = bytearray(encoded_alert(alert))
    for _ in range(data.draw(st.integers(1, 4))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    refused_or_read_alike(bytes(packet))


@given(packet=st.binary(max_size=600))
@settings(max_examples=200, deadline=None)
def test_bytes_of_any_kind_are_refused_or_read_alike(packet: bytes) -> None:
    refused_or_read_alike(packet)


def refused_or_read_alike(packet: bytes) -> None:
    """By fastavro, that is, and with nothing more left out than should be."""
    try:
        short = lite(packet)
    except BadData:
        return
    try:
        whole = decoded_alert(packet)
    except (UnicodeDecodeError, OverflowError):  # within a text or a time, which are not looked into
        return
    assert encoded_alert(decoded_alert(short)) == encoded_alert(without(whole))


@pytest.fixture(scope="module")
def three_rows() -> Record:
    """An alert with a history of three rows, and little else."""
    rows = records(filled("DiaSource", 3, np.random.default_rng(1)), "diaSource")
    return dict.fromkeys(NAMES) | {"diaSourceId": 1, "diaSource": rows[0], "prvDiaSources": rows}


def with_history(alert: Record, array: bytes) -> bytes:
    """Its packet, `array` in place of its history."""
    packet = encoded_alert(alert)
    begin, end = field_ends(packet)[4:6]
    return packet[:begin] + b"\2" + array + packet[end:]


def rows_of(alert: Record) -> list[bytes]:
    return [encoded_record(row, "diaSource") for row in alert["prvDiaSources"]]


def test_history_in_several_blocks_with_or_without_their_sizes_is_cut_as_well(three_rows: Record) -> None:
    first, second, third = rows_of(three_rows)
    sized = encoded_long(-2) + encoded_long(len(first + second)) + first + second
    packet = with_history(three_rows, sized + encoded_long(1) + third + encoded_long(0))
    assert encoded_alert(decoded_alert(packet)) == encoded_alert(three_rows)
    assert lite(packet) == encoded_alert(without(three_rows))


@pytest.mark.parametrize("count", [4, 2**40, 2**63 - 1, -4, -(2**63)])
def test_a_history_that_says_it_is_longer_than_it_is_is_refused_at_once(three_rows: Record, count: int) -> None:
    array = encoded_long(count) + (encoded_long(9) if count < 0 else b"") + b"".join(rows_of(three_rows))
    started = time.perf_counter()
    with pytest.raises(BadData, match="prvDiaSources"):
        lite(with_history(three_rows, array))
    assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize("branch", [1, 3, 4, 0x80])
def test_a_branch_that_the_union_does_not_have_is_refused(three_rows: Record, branch: int) -> None:
    packet = bytearray(encoded_alert(three_rows))
    packet[-1] = branch
    with pytest.raises(BadData, match="cutoutTemplate"):
        lite(bytes(packet))


def test_a_length_beyond_the_packet_or_below_nothing_is_refused(three_rows: Record) -> None:
    packet = encoded_alert(three_rows)[:-1]
    for length in (5, 2**63 - 1, -1, -(2**63)):
        with pytest.raises(BadData, match="cutoutTemplate"):
            lite(packet + b"\2" + encoded_long(length) + b"four")
    with pytest.raises(BadData, match="cutoutTemplate"):
        lite(packet + b"\2" + b"\xff" * 11)


def test_twenty_pairs_of_history_take_microseconds() -> None:
    rng = np.random.default_rng(2)
    sources, forced = filled("DiaSource", 20, rng), filled("DiaForcedSource", 20, rng)
    rows = records(sources, "diaSource")
    alert = dict.fromkeys(NAMES) | {"diaSourceId": 1, "diaSource": rows[0], "prvDiaSources": rows}
    packet = encoded_alert(alert | {"prvDiaForcedSources": records(forced, "diaForcedSource")})
    lite(packet)
    assert min(timeit.repeat(lambda: lite(packet), number=200, repeat=9)) / 200 < 60e-6  # 9 us, machine to itself
