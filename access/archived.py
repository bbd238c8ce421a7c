"""`pachon archived-alerts`: alerts out of a night's archive, by their DIASource or their object.

Where a result was made twice, the archive has two files of a visit-detector; which counts the L1 database says.
"""

import io
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import fastavro

from access.alert_line import Record, line
from access.stamp_picture import write_picture
from backbone.alert_archive import AlertArchive
from backbone.alert_objects import AlertsOfObjects, KeptAlert
from schemas.errors import BadData
from schemas.identity import visit_detector_of

Named = Callable[[int, int], str | None]
"""The file that the L1 database names of a visit and detector, if they are stored."""


def show(
    archive: AlertArchive, dia_sources: Sequence[int], key: int | None, stamps: Path | None, named: Named | None
) -> int:
    """Print one line an alert, and with `stamps` write its cutouts as `<diaSourceId>.png` there; 0 at the end.

    `key`: a `diaObjectId` or `ssObjectId`, of which all alerts are shown, oldest first. `named`: what says which file
    counts; without it the newest does, and that is said. Raises BadData for what is not there, or is corrupt.
    """
    if bool(dia_sources) == (key is not None):
        raise BadData("give either --dia-source or --object")
    kept = _of_sources(archive, dia_sources, named) if key is None else _of_object(archive, key, named)
    if stamps is not None:
        stamps.mkdir(parents=True, exist_ok=True)
    for each in kept:
        alert = _decoded(archive, each)
        sys.stdout.write(line(alert) + "\n")
        if stamps is not None:
            write_picture(alert, stamps / f"{each.dia_source_id}.png")
    return 0


def _of_sources(archive: AlertArchive, dia_sources: Sequence[int], named: Named | None) -> list[KeptAlert]:
    if named is None:
        return [_newest(archive, number, archive.holders(number)) for number in dia_sources]
    return [KeptAlert(number, _named_of(number, named)) for number in dia_sources]


def _of_object(archive: AlertArchive, key: int, named: Named | None) -> list[KeptAlert]:
    copies = AlertsOfObjects(archive).find(key)
    if not copies:
        raise BadData(f"{archive.folder}: there is no alert about object {key}")
    if named is None:
        same = groupby(copies, lambda copy: copy.dia_source_id)
        return [_newest(archive, number, [copy.path for copy in each]) for number, each in same]
    kept = [copy for copy in copies if named(*visit_detector_of(copy.dia_source_id)) == copy.path]
    if not kept:
        raise BadData(f"{archive.folder}: the L1 database names no file with an alert about object {key}")
    return kept


def _named_of(dia_source_id: int, named: Named) -> str:
    visit, detector = visit_detector_of(dia_source_id)
    path = named(visit, detector)
    if path is None:
        raise BadData(f"DIASource {dia_source_id}: the L1 database has no visit {visit} detector {detector}")
    return path


def _newest(archive: AlertArchive, dia_source_id: int, paths: Sequence[str]) -> KeptAlert:
    """Of the copies of an alert the one written last; says so where there are several."""
    newest, *others = archive.newest_first(paths)
    if others:
        sys.stderr.write(
            f"the alert about DIASource {dia_source_id} is in {1 + len(others)} files; without the L1 database, which"
            f" says the one that counts, the newest is taken: {newest}, not {', '.join(others)}\n"
        )
    return KeptAlert(dia_source_id, newest)


def _decoded(archive: AlertArchive, kept: KeptAlert) -> Record:
    schema: Any = fastavro.parse_schema(archive.schema(kept.path))
    record = fastavro.schemaless_reader(io.BytesIO(archive.get(kept.dia_source_id, kept.path)), schema, None)
    assert isinstance(record, dict)
    return record
