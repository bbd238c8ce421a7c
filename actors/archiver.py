"""Every raw, for ever."""

from collections.abc import Sequence
from typing import Protocol

from actors.base import Actor
from actors.camera_reader import DataAcquisition, PixelStore, raw_of
from backbone.l1 import L1Database
from schemas.events import AlertsReady, DiaSourcesReady, Event, RawArchived, RawReady
from schemas.identity import DatasetId
from schemas.image import Observation, Raw


class LongTermArchive(Protocol):
    """Where raws and products lie."""

    def put_raw(self, raw: Raw) -> tuple[str, str]:
        """Write and check a raw; its URI and SHA-256. Once is enough: the same raw again changes nothing."""

    def register_exposure(self, observation: Observation) -> None:
        """Make an exposure and its visit known: what is made of them has no place before. Once is enough."""

    def put(self, dataset: DatasetId, kept: object, /) -> str:
        """Keep a dataset; its URI. Once is enough."""


class Archiver(Actor):
    """Keeps each raw, and the catalogue and summary of each visit-detector, off the hot path."""

    def __init__(self, *, archive: LongTermArchive, l1: L1Database, pixels: PixelStore, daq: DataAcquisition) -> None:
        self._archive = archive
        self._l1 = l1
        self._pixels = pixels
        self._daq = daq

    async def on_raw_ready(self, event: RawReady) -> Sequence[Event]:
        """Write the raw as FITS; say where it lies."""
        raw = await raw_of(self._pixels, self._daq, event.observation, event.detector)
        uri, sha256 = self._archive.put_raw(raw)
        return [RawArchived(group=event.group, raw=event.raw, uri=uri, sha256=sha256, observation=event.observation)]

    async def on_dia_sources_ready(self, event: DiaSourcesReady) -> Sequence[Event]:
        """Keep the figures of the visit-detector: seeing, zero point, seconds by stage."""
        figures = event.summary | {f"cpu_s_{stage}": seconds for stage, seconds in event.stages.items()}
        self._archive.register_exposure(event.observation)  # its raws may not have been archived yet
        self._archive.put(_product("visit_summary", event), figures)
        return []

    async def on_alerts_ready(self, event: AlertsReady) -> Sequence[Event]:
        """Keep the DIASources as they were committed."""
        self._archive.put(_product("dia_source", event), await self._l1.sources_of(event.visit, event.detector))
        return []


def _product(dataset_type: str, event: DiaSourcesReady | AlertsReady) -> DatasetId:
    return DatasetId(dataset_type=dataset_type, instrument=event.instrument, visit=event.visit, detector=event.detector)
