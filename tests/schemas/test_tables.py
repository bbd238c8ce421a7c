import numpy as np

from schemas.tables import EPHEMERIS_DTYPE, apdb_schema, dtype_of, empty, null_integer, nulls


def test_a_null_row_is_nan_zero_false_and_empty() -> None:
    row = empty("DiaSource", 1)[0]
    assert np.isnan(row["psfFlux"])
    assert np.isnan(row["timeWithdrawnMjdTai"])
    assert (row["diaObjectId"], row["isNegative"], row["band"]) == (0, False, "")


def test_columns_are_the_official_ones_in_their_order() -> None:
    names = dtype_of("DiaForcedSource").names
    assert names is not None
    assert names[:4] == ("diaForcedSourceId", "diaObjectId", "ra", "dec")
    assert dtype_of("DiaSource")["diaSourceId"] == np.int64


def test_where_zero_is_a_value_null_is_below_it() -> None:
    orbit = empty("mpc_orbits", 1)[0]
    assert [orbit[name] for name in ("u_param", "orbit_type_int", "nopp", "nobs_total", "nobs_total_sel")] == 5 * [-1]
    assert (empty("DiaSource", 1)["trailAlgorithm"][0], empty("SSSource", 1)["diaDistanceRank"][0]) == (-1, -1)
    assert [null_integer(name) for name in ("diaObjectId", "ssObjectId", "parentDiaSourceId", "psfNdata")] == 4 * [0]
    assert nulls(EPHEMERIS_DTYPE, 1)["ssObjectId"][0] == 0


def test_a_column_has_the_same_null_in_every_table_that_has_it() -> None:
    for columns in apdb_schema().values():
        for name, column in columns.items():
            if null_integer(name):
                assert column.get("nullable", True)
                assert "meta.id" not in str(column.get("ivoa:ucd"))
