import numpy as np

from schemas.tables import dtype_of, empty


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
