import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.alert_production.alert_schema import fields_of
from payloads.alert_production.avro_rows import encode_rows, encoded_long
from schemas.errors import BadData
from schemas.tables import Table, dtype_of, empty
from tests.payloads.alert_production.plain_records import encoded_record, records
from tests.payloads.planes import generators

TABLES = {
    "diaSource": "DiaSource", "diaForcedSource": "DiaForcedSource", "diaObject": "DiaObject", "ssSource": "SSSource",
    "mpc_orbits": "mpc_orbits",
}  # fmt: skip
FLOATS = np.array([0.0, -0.0, 1.5, -1e30, 1e-30, np.inf, -np.inf, np.finfo("f4").max, 61041.25])
TEXTS = ("", "r", "2031 AB", "a b", "\u00e9\u20ac\U0001d11e", "\x7f\x80\u07ff\u0800\uffff\U00010000")


@st.composite
def tables(draw: st.DrawFn, record: str) -> Table:
    """Rows of any values that a column can have, up to the ends of its range; of the nullable ones some null."""
    rng, table = draw(generators()), empty(TABLES[record], draw(st.integers(0, 4)))
    nullable = {field.name for field in fields_of(record) if field.nullable}
    for name in table.dtype.names or ():
        table[name] = values(rng, table.dtype[name], len(table))
        if name in nullable and table.dtype[name].kind != "b":
            table[name][rng.random(len(table)) < 0.3] = empty(TABLES[record], 1)[name][0]
    for name in ("created_at", "updated_at", "fitting_datetime"):
        if name in nullable and name in (table.dtype.names or ()):
            table[name] = rng.choice([np.nan, 0.0, -1.5, 1.7e9, 1.7e9 + 0.1234565, 4e9 - 1e-7], len(table))
    return table


def values(rng: np.random.Generator, dtype: np.dtype[np.generic], n: int) -> np.ndarray:
    if dtype.kind == "i":
        ends = np.iinfo(dtype)
        drawn = rng.integers(ends.min, ends.max, n, dtype, endpoint=True) >> rng.integers(0, 8 * dtype.itemsize - 1, n)
        return np.where(
            rng.random(n) < 0.2, rng.choice(np.array([ends.min, ends.max, -1, 1, 63, -64], dtype), n), drawn
        )
    if dtype.kind == "f":
        return np.where(rng.random(n) < 0.5, rng.choice(FLOATS, n), rng.normal(0.0, 1e3, n))
    if dtype.kind == "b":
        return rng.random(n) < 0.5
    return rng.choice(TEXTS, n)


@pytest.mark.parametrize("record", TABLES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_rows_are_to_the_byte_what_fastavro_makes_of_them(record: str, data: st.DataObject) -> None:
    table = data.draw(tables(record))
    made = encode_rows(table, record)
    expected = [encoded_record(row, record) for row in records(table, record)]
    assert [bytes(made.rows(k, k + 1)) for k in range(len(table))] == expected
    assert bytes(made.rows(0, len(table))) == b"".join(expected)


def test_rows_of_a_slice_and_of_a_read_only_table_are_the_same() -> None:
    table = empty("DiaForcedSource", 9)
    table["diaForcedSourceId"], table["timeProcessedMjdTai"], table["midpointMjdTai"] = np.arange(9), 61041.5, 61041.0
    table["ra"], table["dec"] = 1.0, 2.0
    whole = encode_rows(table, "diaForcedSource")
    table.setflags(write=False)
    part = encode_rows(table[1::3], "diaForcedSource")
    assert [bytes(part.rows(k, k + 1)) for k in range(3)] == [bytes(whole.rows(k, k + 1)) for k in (1, 4, 7)]


@given(value=st.integers(-(2**63), 2**63 - 1))
def test_longs_are_avros(value: int) -> None:
    data, number = encoded_long(value), 0
    for k, byte in enumerate(data):
        number |= (byte & 0x7F) << (7 * k)
        assert (byte >= 0x80) == (k < len(data) - 1)
    assert (number >> 1) ^ -(number & 1) == value


def test_a_value_that_may_not_be_null_is_named() -> None:
    sources = empty("DiaSource", 3)
    for name in [field.name for field in fields_of("diaSource") if field.kind in ("double", "float")]:
        sources[name] = 1.0
    sources["diaSourceId"], sources["timeProcessedMjdTai"][1] = (7, 8, 9), np.nan
    with pytest.raises(BadData, match="timeProcessedMjdTai of diaSourceId 8 is NaN"):
        encode_rows(sources, "diaSource")


def test_a_record_that_the_schema_has_not_is_refused() -> None:
    with pytest.raises(BadData, match="the alert schema has no record diaNondetection"):
        encode_rows(empty("DiaSource", 0), "diaNondetection")


def test_a_column_of_another_type_is_refused_by_name() -> None:
    dtype = [
        (name, "f8" if name == "psfFlux" else kind) for name, (kind, _) in (dtype_of("DiaSource").fields or {}).items()
    ]
    with pytest.raises(BadData, match="diaSource has psfFlux as float64, where the schema has float"):
        encode_rows(np.zeros(1, dtype), "diaSource")
