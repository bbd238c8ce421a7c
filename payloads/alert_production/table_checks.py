"""What a table must have before anything is computed from it; the error names the table and the row."""

from collections.abc import Iterable

import numpy as np

from schemas.errors import BadData
from schemas.tables import Table


def require_columns(table: Table, columns: Iterable[str], name: str) -> None:
    """Raise BadData, naming the columns that `table` (called `name`) lacks."""
    missing = sorted(set(columns) - set(table.dtype.names or ()))
    if missing:
        raise BadData(f"{name} has no column {', '.join(missing)}")


def require_unique(table: Table, column: str, name: str) -> None:
    """Raise BadData, naming the first value of `column` that occurs twice."""
    values, counts = np.unique(table[column], return_counts=True)
    if np.any(counts > 1):
        raise BadData(f"{name} holds {column} {values[counts > 1][0]} more than once")


def require_positions(table: Table, id_column: str, name: str) -> None:
    """Raise BadData, naming the first row whose `ra`, `dec` (deg) is no position on the sky."""
    bad = ~(np.isfinite(table["ra"]) & (np.abs(table["dec"]) <= 90.0))
    if np.any(bad):
        row = table[bad][0]
        raise BadData(f"{name} {row[id_column]} has no position: ra {row['ra']}, dec {row['dec']}")
