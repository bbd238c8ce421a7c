"""Every raw, for ever."""

from collections.abc import Sequence
from typing import Protocol

from actors.base import Actor
from actors.camera_reader import DataAcquisition, PixelStore, raw_of
from schemas.events import Event, RawArchived, RawReady
from schemas.image import Raw


class RawArchive(Protocol):
    """Where raws lie."""

    def put_raw(self, raw: Raw) -> tuple[str, str]:
        """Write and check a raw; its URI and SHA-256. Once is enough: the same raw again changes nothing."""


class Archiver(Actor):
    """Keeps each raw, off the hot path."""

    def __init__(self, *, archive: RawArchive, pixels: PixelStore, daq: DataAcquisition) -> None:
        self._archive = archive
        self._pixels = pixels
        self._daq = daq

    async def on_raw_ready(self, event: RawReady) -> Sequence[Event]:
        """Write the raw as FITS; say where it lies."""
        raw = await raw_of(self._pixels, self._daq, event.observation, event.detector)
        uri, sha256 = self._archive.put_raw(raw)
        return [RawArchived(group=event.group, raw=event.raw, uri=uri, sha256=sha256)]
