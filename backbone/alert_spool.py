"""Alerts into a file, for a run without a broker: each behind its length, four bytes, big-endian."""

import asyncio
import math
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from backbone.alert_stream import TWO_ROUNDS_S, Alert, Delivery
from schemas.clock import Clock
from schemas.errors import BadData

_LENGTH = struct.Struct(">I")


class AlertSpool:
    """`backbone.alert_stream.AlertSink` on a file: what is on the disk counts as acknowledged.

    One process writes it. A message that a crash cut short is cut off when the file is opened again; it was
    not acknowledged. Keys are not kept: a packet says what it is about.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._end = sum(_LENGTH.size + len(value) for value in _whole_messages(path))
        os.truncate(path, self._end)

    async def send(
        self,
        alerts: Sequence[Alert],
        within_s: float = TWO_ROUNDS_S,  # noqa: ARG002 - a disk answers, or fails
    ) -> list[Delivery]:
        """See `AlertSink`."""
        error = await asyncio.to_thread(self._append, [alert.value for alert in alerts])
        at = self._clock.now() if not error else math.nan
        return [Delivery(alert.dia_source_id, at, error) for alert in alerts]

    def _append(self, values: Sequence[bytes]) -> str:
        """Write all of them to the disk, or none; returns why not."""
        try:
            with self._path.open("r+b") as file:
                file.seek(self._end)
                for value in values:
                    file.write(_LENGTH.pack(len(value)) + value)
                file.flush()
                os.fsync(file.fileno())
                self._end = file.tell()
        except OSError as error:
            os.truncate(self._path, self._end)
            return f"{self._path} cannot be written: {error.strerror}"
        return ""


def read_spool(path: Path) -> list[bytes]:
    """The messages of a spool, in order. Raises BadData, naming the file, if its end is cut short."""
    values = list(_whole_messages(path))
    whole = sum(_LENGTH.size + len(value) for value in values)
    if path.stat().st_size != whole:
        raise BadData(f"{path}: cut short after {len(values)} messages, at byte {whole}")
    return values


def _whole_messages(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            value = file.read(length)
            if len(value) != length:
                return
            yield value
