"""A reference catalogue from a file: places and fluxes, whatever else it holds."""

from pathlib import Path

import numpy as np
from astropy.table import Table as AstropyTable

from schemas.errors import BadData
from schemas.tables import REFCAT_DTYPE, Table


def read_references(path: Path, band: str) -> Table:
    """Rows of `REFCAT_DTYPE` from a FITS, ECSV, CSV or Parquet table.

    It must have `ra`, `dec` (deg, ICRS) and `<band>_flux` (nJy); errors, proper motions (mas/yr, from J2016.0) and
    what else `REFCAT_DTYPE` has are taken where they are there. Raises BadData, naming the file.
    """
    try:
        table = AstropyTable.read(path)
    except (OSError, ValueError, TypeError) as error:
        raise BadData(f"{path} is no table that can be read: {error}") from error
    lacking = [name for name in ("ra", "dec", f"{band}_flux") if name not in table.colnames]
    if lacking:
        raise BadData(f"{path} has no column {', '.join(lacking)}")
    rows = np.zeros(len(table), REFCAT_DTYPE)
    rows["id"] = np.arange(len(rows))
    for name in set(REFCAT_DTYPE.names or ()) & set(table.colnames):
        rows[name] = np.asarray(table[name])
    return rows
