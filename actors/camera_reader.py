"""From the camera's DAQ to the pixel store: one raw, assembled and checked."""

from collections.abc import Sequence
from typing import Protocol

from actors.base import Actor
from schemas.events import DetectorReadOut, Event, RawReady
from schemas.identity import DatasetId
from schemas.image import Observation, Raw


class DataAcquisition(Protocol):
    """The camera's DAQ, which holds every image for two days."""

    async def read(self, observation: Observation, detector: int) -> Raw:
        """All segments of a detector.

        Raises BadData for pixels that are short or differ from their checksum, Transient if the DAQ does not answer
        within its deadline.
        """


class PixelStore(Protocol):
    """Shared memory for pixels on their way: named, immutable, not kept."""

    async def put(self, name: DatasetId, value: object) -> None:
        """Hold a value until it is dropped; a raw may also make room for newer ones."""

    async def get(self, name: DatasetId) -> object | None:
        """The value, without copying its arrays; None if it is not held (any more)."""

    async def drop(self, name: DatasetId) -> None:
        """Forget a value; nothing happens if there is none."""


def raw_id(observation: Observation, detector: int) -> DatasetId:
    """The name of a raw."""
    return DatasetId.of_raw(observation.instrument, observation.exposure, detector)


async def raw_of(pixels: PixelStore, daq: DataAcquisition, observation: Observation, detector: int) -> Raw:
    """A raw from the pixel store, or else from the DAQ again: a dead process's pixels are not lost."""
    held = await pixels.get(raw_id(observation, detector))
    if isinstance(held, Raw):
        return held
    return await daq.read(observation, detector)


class CameraReader(Actor):
    """Pulls a detector's amplifiers as soon as they are read out."""

    def __init__(self, *, daq: DataAcquisition, pixels: PixelStore) -> None:
        self._daq = daq
        self._pixels = pixels

    async def on_detector_read_out(self, event: DetectorReadOut) -> Sequence[Event]:
        """Fetch, check, put."""
        raw = await self._daq.read(event.observation, event.detector)
        name = raw_id(event.observation, event.detector)
        await self._pixels.put(name, raw)
        return [
            RawReady(
                group=event.group, detector=event.detector, observation=event.observation, raw=name, sha256=raw.sha256
            )
        ]
