"""`pachon archived-alerts`: alerts out of a night's archive, by their DIASource or their object."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastavro

from access.alert_line import Record, line
from access.stamp_picture import write_picture
from backbone.alert_archive import AlertArchive
from backbone.alert_objects import AlertsOfObjects, KeptAlert
from schemas.errors import BadData


def show(archive: AlertArchive, dia_sources: Sequence[int], key: int | None, stamps: Path | None) -> int:
    """Print one line an alert, and with `stamps` write its cutouts as `<diaSourceId>.png` there; 0 at the end.

    `key`: a `diaObjectId` or `ssObjectId`, of which all alerts are shown, oldest first. Raises BadData for what is not
    there, or is corrupt.
    """
    if bool(dia_sources) == (key is not None):
        raise BadData("give either --dia-source or --object")
    if key is None:
        kept = [KeptAlert(number, archive.holder(number)) for number in dia_sources]
    elif not (kept := AlertsOfObjects(archive).find(key)):
        raise BadData(f"{archive.folder}: there is no alert about object {key}")
    if stamps is not None:
        stamps.mkdir(parents=True, exist_ok=True)
    for each in kept:
        alert = _decoded(archive, each)
        sys.stdout.write(line(alert) + "\n")
        if stamps is not None:
            write_picture(alert, stamps / f"{each.dia_source_id}.png")
    return 0


def _decoded(archive: AlertArchive, kept: KeptAlert) -> Record:
    schema: Any = fastavro.parse_schema(archive.schema(kept.path))
    record = fastavro.schemaless_reader(io.BytesIO(archive.get(kept.dia_source_id, kept.path)), schema, None)
    assert isinstance(record, dict)
    return record
