"""The camera's DAQ over Arrow Flight: what its buffer holds, and a detector's segments by exposure and detector."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import flight
from pydantic import TypeAdapter, ValidationError

from schemas.errors import BadData, Transient
from schemas.image import Observation, Raw
from schemas.instrument import Detector, camera

READ_DEADLINE_S = 10.0
"""For one detector, wall seconds: five times the camera's readout."""
LIST_DEADLINE_S = 20.0
"""For the catalogue of a full buffer, wall seconds."""


@dataclass(frozen=True)
class Held:
    """An exposure in the camera's two-day buffer, or about to be, and of which detectors: an entry of its catalogue."""

    observation: Observation
    detectors: tuple[int, ...]


_HELD = TypeAdapter(Held)


class FlightDaq:
    """A client of the DAQ at `grpc://host:port`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: flight.FlightClient | None = None

    async def read(self, observation: Observation, detector: int, deadline_s: float = READ_DEADLINE_S) -> Raw:
        """All segments of a detector, checked against the DAQ's checksum.

        Raises BadData for pixels that are short, absent or differ, or do not come within `deadline_s` (wall seconds);
        Transient if the DAQ does not answer.
        """
        return await asyncio.to_thread(self._read, observation, detector, deadline_s)

    async def held(self) -> list[Held]:
        """The whole catalogue, oldest first: also of an exposure that is not read out yet.

        Raises Transient if the DAQ does not answer within `LIST_DEADLINE_S`, BadData for what is no catalogue.
        """
        return await asyncio.to_thread(self._held)

    def _read(self, observation: Observation, detector: int, deadline_s: float) -> Raw:
        what = f"{observation.image_name} detector {detector}"
        ticket = {"exposure": observation.exposure, "detector": detector, "deadline_s": deadline_s}
        with self._asked(what) as client:
            try:
                options = flight.FlightCallOptions(timeout=deadline_s)
                table = client.do_get(flight.Ticket(json.dumps(ticket)), options).read_all()
            except flight.FlightTimedOutError as error:
                raise BadData(f"{what}: the DAQ sent no pixels within {deadline_s:.0f} s") from error
        return raw_from(table, observation, camera(observation.instrument)[detector])

    def _held(self) -> list[Held]:
        with self._asked("its catalogue") as client:
            options = flight.FlightCallOptions(timeout=LIST_DEADLINE_S)
            return [_held(info.app_metadata) for info in client.list_flights(options=options)]

    @contextmanager
    def _asked(self, what: str) -> Iterator[Any]:
        """A client while it is asked for something: what it raises becomes ours."""
        try:
            if self._client is None:
                self._client = flight.connect(self._address)
            yield self._client
        except (flight.FlightUnavailableError, flight.FlightInternalError) as error:
            self._client = None
            raise Transient(f"{what}: the DAQ at {self._address} does not answer: {_first_line(error)}") from error
        except pa.ArrowKeyError as error:
            raise BadData(f"{what}: the DAQ does not hold it: {_first_line(error)}") from error
        except pa.ArrowException as error:
            raise Transient(f"{what}: reading from the DAQ failed: {_first_line(error)}") from error


def _held(told: bytes) -> Held:
    try:
        return _HELD.validate_json(told)
    except ValidationError as error:
        raise BadData(f"the DAQ's catalogue holds {told[:100]!r}, which is no exposure") from error


def raw_from(table: pa.Table, observation: Observation, detector: Detector) -> Raw:
    """A raw of the DAQ's table: one row a segment (`amplifier`, `pixels`), SHA-256 in the schema's metadata."""
    what = f"{observation.image_name} detector {detector.id}"
    raw = Raw.of(observation, detector.id, _segments(table, detector, what))
    promised = (table.schema.metadata or {}).get(b"sha256", b"").decode()
    if promised != raw.sha256:
        raise BadData(f"{what}: the pixels' SHA-256 is {raw.sha256[:12]}, the DAQ said {promised[:12] or 'none'}")
    return raw


def _segments(table: pa.Table, detector: Detector, what: str) -> NDArray[np.int32]:
    shape = detector.format.raw_shape
    if table.num_rows != shape[0]:
        raise BadData(f"{what}: {table.num_rows} of {shape[0]} amplifiers came")
    segments = np.empty(shape, np.int32)
    for index, pixels in zip(table["amplifier"].to_pylist(), table["pixels"], strict=True):
        flat = pixels.values.to_numpy(zero_copy_only=True)
        if flat.size != segments[index].size:
            raise BadData(f"{what}: amplifier {index} has {flat.size} of {segments[index].size} pixels")
        segments[index] = flat.reshape(shape[1:])
    return segments


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
