"""A reference catalogue from a file: places and fluxes, whatever else it holds."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from astropy.io.registry import IORegistryError
from astropy.table import Column
from astropy.table import Table as AstropyTable
from numpy.typing import NDArray

from schemas.errors import BadData
from schemas.tables import REFCAT_DTYPE, Table


def read_references(path: Path, band: str) -> Table:
    """Rows of `REFCAT_DTYPE` from a FITS, ECSV, CSV or Parquet table.

    It must have `ra`, `dec` (deg, ICRS) and `<band>_flux` (nJy); errors, proper motions (mas/yr, from J2016.0) and
    what else `REFCAT_DTYPE` has are taken where they are there. Raises BadData, naming the file.
    """
    try:
        table = _table(path)
    except (OSError, ValueError, TypeError, IORegistryError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadData(f"{path} is no table that can be read: {why}") from error
    lacking = [name for name in ("ra", "dec", f"{band}_flux") if name not in table.colnames]
    if lacking:
        raise BadData(f"{path} has no column {', '.join(lacking)}")
    rows = np.zeros(len(table), REFCAT_DTYPE)
    rows["id"] = np.arange(len(rows))
    for name in set(REFCAT_DTYPE.names or ()) & set(table.colnames):
        try:
            rows[name] = _values(table[name], REFCAT_DTYPE[name])
        except (ValueError, TypeError) as error:
            raise BadData(f"{path}: column {name} holds no numbers: {error}") from error
    return rows


def _table(path: Path) -> AstropyTable:
    if path.suffix != ".parquet":
        return AstropyTable.read(path)
    table = pq.read_table(path)  # astropy would have pandas do it
    return AstropyTable({name: table[name].to_numpy() for name in table.column_names})


def _values(column: Column, kind: np.dtype[np.generic]) -> NDArray[np.generic]:
    """A column as numbers, NaN where it has none; CSV's booleans are words."""
    if kind == np.bool_ and column.dtype.kind == "U":
        words: NDArray[np.generic] = np.char.lower(np.asarray(column)) == "true"
        return words
    masked = np.ma.asarray(column).astype(kind)
    values: NDArray[np.generic] = np.ma.filled(masked, np.nan if kind.kind == "f" else 0)
    return values
