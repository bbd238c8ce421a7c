import numpy as np

from schemas.drp_tables import OWN_COLUMNS, forced_source_dtype, light_curve_dtype, object_dtype
from schemas.tables import kind_of, official_schema


def test_every_column_is_official_and_of_the_official_type_but_a_few_named_ones() -> None:
    official = official_schema("drp_base.yaml")
    diaobject = {name[2:]: column for name, column in official["DiaObject"].items() if name.startswith("r_")}
    own: set[str] = set()
    for dtype, columns in (
        (object_dtype(), official["Object"]),
        (forced_source_dtype(), official["ForcedSource"]),
        (light_curve_dtype(), {**official["ForcedSource"], **diaobject}),
    ):
        for name in dtype.names or ():
            if name in columns and name not in {"psfFluxErr"} | OWN_COLUMNS.keys():
                assert dtype[name] == np.dtype(kind_of(columns[name])), name
            elif name not in columns:
                own.add(name)
    assert own == set(OWN_COLUMNS)
    assert not own & official["Object"].keys()


def test_each_band_has_the_same_columns() -> None:
    names = object_dtype().names or ()
    bands = {band: {name[2:] for name in names if name.startswith(f"{band}_")} for band in "ugrizy"}
    assert len(bands["r"]) > 30
    assert all(columns == bands["r"] for columns in bands.values())
