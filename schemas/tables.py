"""Tables as NumPy structured arrays, with the official column names and types of `apdb.yaml` (lsst-sdm-schemas).

What SQL or Avro calls null is NaN in a floating point column, "" in a text one, and in a nullable integer one what
`null_integer` says: 0 in an id, -1 in any other, where 0 is a value. Booleans are never null.
"""

from functools import cache
from importlib import resources

import numpy as np
import yaml
from numpy.typing import NDArray

from schemas.instrument import BANDS

Table = NDArray[np.void]
"""A one-dimensional structured array."""

_KINDS = {"long": "i8", "int": "i4", "short": "i2", "float": "f4", "double": "f8", "boolean": "?", "timestamp": "f8"}

REFCAT_DTYPE = np.dtype(
    [("id", "i8"), ("ra", "f8"), ("dec", "f8"), ("pm_ra", "f4"), ("pm_dec", "f4"), ("variable", "?")]
    + [(f"{band}_flux", "f4") for band in BANDS]
    + [(f"{band}_fluxErr", "f4") for band in BANDS]
)
"""Reference catalogue: deg ICRS at epoch J2016.0, proper motion mas/yr (pm_ra with cos dec), fluxes nJy."""

EPHEMERIS_DTYPE = np.dtype(
    [("ssObjectId", "i8"), ("designation", "U16")]
    + [
        (name, "f8")
        for name in ("ra", "dec", "rate_ra", "rate_dec", "v_mag", "topo_range", "helio_range", "phase_angle")
    ]
    + [("range_rate", "f8"), ("radius", "f8")]
)
"""Predicted Solar System objects of a visit: deg ICRS at its midpoint, rates deg/day (with cos dec), mag, au, deg;
`range_rate`: of `topo_range`, au/day; `radius`: match radius, arcsec."""


def apdb_schema() -> dict[str, dict[str, dict[str, object]]]:
    """Column descriptions (felis) of `apdb.yaml` by table and column, in order."""
    return official_schema("apdb.yaml")


@cache
def official_schema(name: str) -> dict[str, dict[str, dict[str, object]]]:
    """Column descriptions (felis) of a file of lsst-sdm-schemas by table and column, in order."""
    text = (resources.files("lsst.sdm.schemas") / name).read_text(encoding="utf-8")
    document = yaml.load(text, Loader=yaml.CSafeLoader)
    return {table["name"]: {c["name"]: c for c in table["columns"]} for table in document["tables"]}


@cache
def dtype_of(table: str) -> np.dtype[np.void]:
    """The structured dtype of an `apdb.yaml` table (`DiaSource`, `DiaObject`, ...), columns in official order."""
    return np.dtype([(name, kind_of(column)) for name, column in apdb_schema()[table].items()])


def kind_of(column: dict[str, object]) -> str:
    """NumPy's type of a column."""
    datatype = str(column["datatype"])
    if datatype in _KINDS:
        return _KINDS[datatype]
    return f"U{column.get('length', 64)}"


def empty(table: str, rows: int) -> Table:
    """`rows` rows of a table, every value null: NaN, "", `null_integer` or False."""
    return nulls(dtype_of(table), rows)


def nulls(dtype: np.dtype[np.void], rows: int) -> Table:
    """`rows` rows of a dtype, every value null: NaN, "", `null_integer` or False."""
    table = np.zeros(rows, dtype)
    for name in dtype.names or ():
        if dtype[name].kind == "f":
            table[name] = np.nan
        if dtype[name].kind == "i":
            table[name] = null_integer(name)
    return table


def null_integer(column: str) -> int:
    """What null is in an integer column of this name: no id is 0, no count, rank or kind -1 (U = 0 is a fine orbit)."""
    return -1 if column in _nullable_numbers() else 0


@cache
def _nullable_numbers() -> frozenset[str]:
    """The integer columns, of any table, that may be null and are no ids."""
    return frozenset(
        name
        for columns in apdb_schema().values()
        for name, column in columns.items()
        if kind_of(column)[0] == "i" and column.get("nullable", True) and not _is_id(column)
    )


def _is_id(column: dict[str, object]) -> bool:
    return str(column.get("ivoa:ucd", "")).startswith("meta.id")
