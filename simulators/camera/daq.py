"""The camera's DAQ: a server of raw pixels over Arrow Flight, in a process of its own.

    python -m simulators.camera.daq --port 0 --seed 1 --instrument LSSTCam --clock '{...}' --buffer DIR
    --truth DIR
        --detectors 90,91 [--faults '[...]']

It prints `ready PORT` when it serves, and ends with code 0 on SIGTERM.

do_get(ticket): `{"exposure": ..., "detector": ..., "deadline_s": ...}`, the deadline in seconds of the wall.
Sixteen batches come, one row each: `amplifier`, `rows`, `columns`, `pixels` (int32, row after row). The
schema's metadata has `observation` (JSON), `detector`, and `sha256` of all segments in order. The pixels are
there when the observation's `readout_ended` has come on the night's clock; who asks before, waits, to the
deadline at most.

do_action: `expose` (body: an `Observation` as JSON) opens the shutter: rendering begins. `faults` (body: a
list of `{"detector", "exposure" or null, "fault"}` and `{"since", "until"}`) replaces the faults that the server
plays, see `simulators.camera.faults`; those it begins with are given as `--faults`. `health` answers with counts.

list_flights: what the two-day buffer (`simulators.camera.buffer`) holds.
"""

import argparse
import hashlib
import json
import math
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

import pyarrow as pa
from pyarrow import flight
from pydantic import TypeAdapter, ValidationError

from schemas.clock import Clock, NightClock
from schemas.errors import BadData
from schemas.image import SCIENCE, Observation
from schemas.instrument import camera
from simulators.camera.buffer import Catalogue, Entry, Raster, Rasters
from simulators.camera.ccd import AMPLIFIERS
from simulators.camera.exposure import FocalPlane
from simulators.camera.faults import Cut, Fault, spoilt
from simulators.camera.truth import write_truth
from simulators.sky.sky import Sky

HELD_RASTERS = 16
"""Of 75 MB each, in memory."""
_THREADS = 2
_MOST_FIELDS = 12
"""Detectors whose sky is kept for the visit's next snap: 128 MB each."""

SCHEMA = pa.schema(
    [
        ("amplifier", pa.int16()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("pixels", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class Ticket:
    """What a client asks for; it waits `deadline_s` seconds of the wall at most."""

    exposure: int
    detector: int
    deadline_s: float


_OBSERVATION, _TICKET = TypeAdapter(Observation), TypeAdapter(Ticket)
_FAULTS: TypeAdapter[list[Fault | Cut]] = TypeAdapter(list[Fault | Cut])


class DaqServer(flight.FlightServerBase):  # type: ignore[misc] # pyarrow is not typed
    """Serves the detectors of one focal plane."""

    def __init__(
        self,
        location: str,
        plane: FocalPlane,
        detectors: tuple[int, ...],
        clock: Clock,
        buffer: Path,
        truth: Path,
        faults: list[Fault | Cut],
    ) -> None:
        truth.mkdir(parents=True, exist_ok=True)
        self._plane, self._detectors, self._clock, self._truth = plane, detectors, clock, truth
        self._catalogue = Catalogue(buffer, clock.now())
        self._faults = faults
        self._closing = threading.Event()
        self._waiting: list[Ticket] = []
        self._rasters = Rasters(self._render, size=HELD_RASTERS, threads=_THREADS)
        super().__init__(location)  # serves from here on

    def close(self) -> None:
        """Tell whoever waits, finish what is being rendered, stop serving."""
        self._closing.set()
        self._rasters.close()
        self.shutdown()

    def do_action(self, _: object, action: flight.Action) -> list[bytes]:
        """`expose`, `faults` or `health`.

        Raises ArrowInvalid for a body that is none, ArrowKeyError for another action.
        """
        body = action.body.to_pybytes()
        try:
            if action.type == "expose":
                self._expose(_OBSERVATION.validate_json(body))
            elif action.type == "faults":
                self._faults = _FAULTS.validate_json(body)
            elif action.type != "health":
                raise pa.ArrowKeyError(f"no action {action.type!r} (there are expose, faults, health)")
        except (ValidationError, BadData) as error:
            raise pa.ArrowInvalid(f"{action.type}: {error}") from error
        return [json.dumps(self._health()).encode()]

    def do_get(self, _: object, ticket: flight.Ticket) -> flight.RecordBatchStream:
        """A detector's segments.

        Raises ArrowInvalid, ArrowKeyError, FlightTimedOutError or FlightUnavailableError.
        """
        try:
            wanted = _TICKET.validate_json(ticket.ticket)
        except ValidationError as error:
            raise pa.ArrowInvalid(f"ticket: {error}") from error
        self._unless_cut()
        deadline = monotonic() + wanted.deadline_s
        try:
            entry = self._catalogue.find(wanted.exposure, wanted.detector)
        except KeyError as error:
            raise pa.ArrowKeyError(error.args[0]) from error
        fault = self._fault_of(wanted)
        self._waiting.append(wanted)
        try:
            self._wait_for_readout(entry, wanted, deadline, silent=fault == "silent")
            raster = spoilt(self._raster(wanted, deadline), fault, seed=entry.recipe.observation.visit)
        finally:
            self._waiting.remove(wanted)
        self._unless_cut()
        return flight.GeneratorStream(_schema(entry, wanted.detector, raster), _batches(raster, fault))

    def list_flights(self, _: object, __: bytes) -> Iterator[flight.FlightInfo]:
        """One for each exposure held, oldest first; `observation` and `detectors` in `app_metadata` (JSON)."""
        self._unless_cut()
        return (self._info(entry) for entry in self._catalogue.entries(self._clock.now()))

    def _expose(self, observation: Observation) -> None:
        if observation.instrument != self._plane.camera.name:
            raise BadData(f"this is {self._plane.camera.name}, not {observation.instrument}")
        told_again = observation.exposure in self._catalogue
        entry = self._catalogue.add(observation, self._detectors, self._clock.now())
        if not told_again:  # what an earlier server held has mostly been read: it waits to be asked for
            self._rasters.prepare(observation.exposure, entry.detectors)

    def _health(self) -> dict[str, float | int | str]:
        now = self._clock.now()
        exposures = sum(1 for _ in self._catalogue.entries(now))
        counts = {"exposures": exposures, "waiting_clients": len(self._waiting), **self._rasters.counts()}
        return {"instrument": self._plane.camera.name, "now": now, **counts}

    def _fault_of(self, wanted: Ticket) -> str | None:
        own = (f for f in self._faults if isinstance(f, Fault) and f.detector == wanted.detector)
        return next((f.fault for f in own if f.exposure in {None, wanted.exposure}), None)

    def _unless_cut(self) -> None:
        """Raises FlightUnavailableError while readers are cut off."""
        now = self._clock.now()
        if any(isinstance(f, Cut) and f.since <= now < f.until for f in self._faults):
            raise flight.FlightUnavailableError("the network to the camera is cut")

    def _wait_for_readout(self, entry: Entry, wanted: Ticket, deadline: float, *, silent: bool) -> None:
        seconds = self._clock.wall_seconds(entry.recipe.observation.readout_ended - self._clock.now())
        left = deadline - monotonic()
        if self._closing.wait(left if silent else min(max(seconds, 0.0), left)):
            raise flight.FlightUnavailableError("the camera is shutting down")
        if silent or seconds > left:
            raise flight.FlightTimedOutError(
                f"no pixels of exposure {wanted.exposure} detector {wanted.detector} in {wanted.deadline_s} s"
            )

    def _raster(self, wanted: Ticket, deadline: float) -> Raster:
        try:
            return self._rasters.get((wanted.exposure, wanted.detector), deadline)
        except TimeoutError as error:
            raise flight.FlightTimedOutError(str(error)) from error
        except ConnectionError as error:
            raise flight.FlightUnavailableError(str(error)) from error

    def _render(self, exposure: int, detector: int) -> Raster:
        recipe = self._catalogue.find(exposure, detector).recipe
        charge = self._plane.charge(recipe, detector)
        segments = self._plane.segments(recipe, detector, charge)
        sky = recipe.observation.image_type == SCIENCE
        if sky and not (self._truth / f"{exposure}-{detector:03d}.parquet").exists():
            write_truth(self._truth, recipe, self._plane.field(recipe, detector), charge)
        return Raster(segments, hashlib.sha256(segments.data).hexdigest())

    def _info(self, entry: Entry) -> flight.FlightInfo:
        observation, detectors = entry.recipe.observation, entry.detectors
        pixels = sum(math.prod(self._plane.camera[detector].format.raw_shape) for detector in detectors)
        return flight.FlightInfo(
            SCHEMA,
            flight.FlightDescriptor.for_command(json.dumps({"exposure": observation.exposure})),
            [],  # whoever wants pixels makes a ticket, with a deadline of their own
            AMPLIFIERS * len(detectors),
            pixels * 4,
            app_metadata=json.dumps({"observation": asdict(observation), "detectors": detectors}).encode(),
        )


def _schema(entry: Entry, detector: int, raster: Raster) -> pa.Schema:
    observation = json.dumps(asdict(entry.recipe.observation))
    return SCHEMA.with_metadata({"observation": observation, "detector": str(detector), "sha256": raster.sha256})


def _batches(raster: Raster, fault: str | None) -> Iterator[pa.RecordBatch]:
    """One segment a batch; its pixels are not copied."""
    for amplifier, segment in enumerate(raster.segments):
        if fault == "short" and amplifier >= AMPLIFIERS // 2:
            return
        flat = segment.reshape(-1)
        if fault == "corrupt" and amplifier == 0:
            flat = flat.copy()
            flat[flat.size // 2] ^= 1
        pixels = pa.ListArray.from_arrays(pa.array([0, flat.size], pa.int32()), pa.array(flat))
        rows, columns = (pa.array([n], pa.int32()) for n in segment.shape)
        yield pa.RecordBatch.from_arrays([pa.array([amplifier], pa.int16()), rows, columns, pixels], schema=SCHEMA)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simulators.camera.daq", description="The camera's DAQ.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0: any that is free")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--instrument", required=True)
    parser.add_argument("--clock", type=json.loads, required=True, help="the fields of a NightClock, JSON")
    parser.add_argument("--buffer", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--faults", type=_FAULTS.validate_json, default=[], help="what goes wrong, JSON")
    parser.add_argument("--detectors", required=True, help="ids, names, rafts or all, comma-separated")
    return parser


def _told_to_end() -> socket.socket:
    """A socket that can be read once SIGTERM or SIGINT has come.

    The handler may run in any thread; only a byte on a file descriptor surely wakes the one that waits.
    """
    reader, writer = socket.socketpair()
    writer.settimeout(0.0)
    signal.set_wakeup_fd(writer.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reader


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    options = _parser().parse_args()
    told = _told_to_end()
    detectors = tuple(d.id for d in camera(options.instrument).select(options.detectors))
    fields = min(len(detectors), _MOST_FIELDS)
    plane = FocalPlane(options.seed, options.instrument, Sky(options.seed), fields=fields)
    clock = NightClock(**options.clock)
    location = f"grpc://{options.host}:{options.port}"
    server = DaqServer(location, plane, detectors, clock, options.buffer, options.truth, options.faults)
    try:
        print(f"ready {server.port}", flush=True)  # noqa: T201 - what whoever started this process waits for
        told.recv(1)
    finally:
        server.close()


if __name__ == "__main__":
    main()
