r"""The observatory control system as a process of its own: it tells a planned night, on time.

    python -m simulators.ocs.ocs --bootstrap HOST:PORT --registry URL --daq grpc://HOST:PORT \
        --clock JSON --plan FILE [--faults FILE]

It registers its schemas, publishes to Kafka, and tells the DAQ (Arrow Flight, action `expose`, the
observation as JSON) when the shutter opens. What it does it says on stderr, a JSON object a line. It ends
with 0 when the night is told or at SIGTERM (the message under way is finished first), with 1 when a peer does
not answer, with 2 for bad input.
"""

import argparse
import asyncio
import dataclasses
import io
import json
import os
import signal
import struct
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from fastavro import parse_schema, schemaless_writer
from pyarrow import ArrowException, flight
from pydantic import TypeAdapter, ValidationError

from schemas.clock import Clock, NightClock
from schemas.errors import BadData, PachonError, Transient
from schemas.image import Observation
from simulators.faults import load
from simulators.ocs import sal
from simulators.ocs.disturbance import disturbed, skew_of
from simulators.ocs.schedule import load_plan
from simulators.ocs.timeline import Moment

PEER_S = 20.0
"""How long (wall seconds) any peer may take to answer at first, or the DAQ ever, before the night is given up."""

PATIENCE_S = 600.0
"""And how long a broker that has answered before."""

_CALL_S = 5.0
_RETRY_S = 0.2


class SalPublisher:
    """Kafka and the schema registry, seen from the observatory's side. An async context manager.

    Topics have one partition, as SAL has them. Raises Transient if a peer does not answer within `PEER_S`.
    """

    def __init__(self, bootstrap: str, registry: str) -> None:
        self._bootstrap, self._registry = bootstrap, registry.rstrip("/")
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            acks="all",
            enable_idempotence=False,  # not every broker knows it; a message told twice is the same fact
            request_timeout_ms=int(1000 * PEER_S),
        )
        self._ids: dict[str, int] = {}
        self._schemas = {topic: parse_schema(sal.schema(topic)) for topic in sal.FIELDS}
        self._sent: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(PEER_S):
                await self._register()
                await self._create_topics()
                await self._producer.start()
        except (KafkaError, aiohttp.ClientError, TimeoutError) as error:
            await self._producer.stop()
            raise Transient(f"broker {self._bootstrap} or registry {self._registry}: {error!r}") from error
        except BaseException:
            await self._producer.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def publish(self, topic: str, message: sal.Record | bytes, sent: float) -> None:
        """Send one message, stamped `sent` (TAI s), and wait until the broker has it. Bytes go as they are.

        A record that lacks fields goes with a schema that lacks them, too. A broker that is gone is waited for; one
        that comes back with nothing is given the topics anew. Raises Transient after `PATIENCE_S`.
        """
        value = message if isinstance(message, bytes) else await self._framed(topic, message, sent)
        give_up = asyncio.get_running_loop().time() + PATIENCE_S
        while (error := await self._sent_or_error(topic, value)) is not None:
            say(broker="silent", topic=topic, error=repr(error))
            if asyncio.get_running_loop().time() > give_up:
                raise Transient(f"broker {self._bootstrap} did not take {topic}: {error!r}") from error
            await asyncio.sleep(_RETRY_S)

    async def _sent_or_error(self, topic: str, value: bytes) -> Exception | None:
        try:
            async with asyncio.timeout(PEER_S):
                await self._producer.send_and_wait(topic, value, partition=0)
        except (KafkaError, TimeoutError) as error:
            with suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(_CALL_S):
                    await self._create_topics()
            return error
        return None

    async def _framed(self, topic: str, message: sal.Record, sent: float) -> bytes:
        """Confluent's wire format: magic byte 0, schema id, Avro without its schema."""
        self._sent[topic] += 1
        stamped = sal.stamped(topic, message, sent=sent, seq_num=self._sent[topic], origin=os.getpid())
        whole = len(stamped) == len(sal.FIELDS[topic])
        schema = self._schemas[topic] if whole else parse_schema(sal.schema(topic, stamped))
        number = self._ids[topic] if whole else await self._register_one(f"{topic}-short", sal.schema(topic, stamped))
        buffer = io.BytesIO(struct.pack(">bI", 0, number))
        buffer.seek(5)
        schemaless_writer(buffer, schema, stamped)
        return buffer.getvalue()

    async def _register(self) -> None:
        for topic in sal.FIELDS:
            self._ids[topic] = await self._register_one(f"{topic}-value", sal.schema(topic))

    async def _register_one(self, subject: str, schema: sal.Schema) -> int:
        url = f"{self._registry}/subjects/{subject}/versions"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json={"schema": json.dumps(schema)}) as answer,
        ):
            if answer.status != 200:
                raise BadData(f"registry {url} refused the schema: {await answer.text()}")
            return int((await answer.json(content_type=None))["id"])

    async def _create_topics(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        try:
            await admin.start()
            # what exists already is answered by an error code, and left as it is
            await admin.create_topics([NewTopic(topic, 1, 1) for topic in sal.FIELDS])
        finally:
            await admin.close()


class Daq:
    """The camera's data acquisition, by Arrow Flight."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client = flight.FlightClient(uri)

    async def expose(self, observation: Observation) -> None:
        """Tell of an exposure that begins, again if there is no answer. Raises Transient after `PEER_S`."""
        give_up = asyncio.get_running_loop().time() + PEER_S
        while True:
            try:
                return await asyncio.to_thread(self._expose, observation)
            except (flight.FlightUnavailableError, flight.FlightTimedOutError) as error:
                if asyncio.get_running_loop().time() > give_up:
                    raise Transient(f"DAQ {self._uri} did not answer for {PEER_S:g} s: {error}") from error
                say(daq="silent", uri=self._uri)
                await asyncio.sleep(_RETRY_S)
            except ArrowException as error:
                raise BadData(f"DAQ {self._uri} refused {observation.image_name}: {error}") from error

    def _expose(self, observation: Observation) -> None:
        body = json.dumps(dataclasses.asdict(observation)).encode()
        options = flight.FlightCallOptions(timeout=_CALL_S)
        list(self._client.do_action(flight.Action("expose", body), options))

    def close(self) -> None:
        """Hang up."""
        self._client.close()


async def tell(
    moments: Iterable[Moment],
    clock: Clock,
    publisher: SalPublisher,
    daq: Daq,
    stop: asyncio.Event,
    ahead_s: float = 0.0,
) -> int:
    """Each moment when its time has come, at once if it has passed; how many were told before `stop`.

    `ahead_s`: by how much the clock that stamps messages is ahead.
    """
    told = 0
    for moment in moments:
        if await _stopped_before(moment.tai, clock, stop):
            break
        if isinstance(moment.payload, Observation):
            await daq.expose(moment.payload)
        else:
            await publisher.publish(moment.kind, moment.payload, clock.now() + ahead_s)
        told += 1
        say(told=moment.kind, tai=moment.tai, late_s=round(clock.now() - moment.tai, 3))
    return told


async def _stopped_before(tai: float, clock: Clock, stop: asyncio.Event) -> bool:
    """Wait for the night's time `tai`; true if the process is to end first."""
    seconds = clock.wall_seconds(tai - clock.now())
    if seconds > 0.0:
        try:
            await asyncio.wait_for(stop.wait(), seconds)
        except TimeoutError:
            return False
    return stop.is_set()


def say(**fields: object) -> None:
    """One line of progress."""
    sys.stderr.write(json.dumps(fields) + "\n")
    sys.stderr.flush()


async def observe(options: argparse.Namespace) -> None:
    """The whole night, as the command line has it."""
    plan, clock = load_plan(Path(options.plan)), _clock(options.clock)
    unknown = set(options.cancel) - {visit.group for visit in plan}
    if unknown:
        raise BadData(f"--cancel: the plan has no group {', '.join(sorted(unknown))}")
    faults = load(Path(options.faults)) if options.faults else ()
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    daq = Daq(options.daq)
    try:
        async with SalPublisher(options.bootstrap, options.registry) as publisher:
            say(ready=True, visits=len(plan), now=clock.now(), first=plan[0].start_tai)
            moments = disturbed(plan, options.cancel, faults)
            told = await tell(moments, clock, publisher, daq, stop, skew_of(faults))
            say(done=True, told=told, stopped=stop.is_set())
    finally:
        daq.close()


def _clock(text: str) -> NightClock:
    try:
        clock = TypeAdapter(NightClock).validate_json(text)
    except ValidationError as error:
        raise BadData(f"--clock {text!r}: {error.errors(include_url=False)[0]['msg']}") from error
    if not 0.0 < clock.speed < float("inf"):
        raise BadData(f"--clock: the speed {clock.speed} is not positive")
    return clock


def main(arguments: list[str] | None = None) -> int:
    """The process: its exit code."""
    parser = argparse.ArgumentParser(prog="simulators.ocs.ocs", description="Tell a planned night.")
    for name, meaning in {
        "bootstrap": "Kafka, HOST:PORT",
        "registry": "schema registry, http://HOST:PORT",
        "daq": "camera DAQ, grpc://HOST:PORT",
        "clock": "the night's clock: a NightClock as JSON",
        "plan": "file written by dump_plan",
    }.items():
        parser.add_argument(f"--{name}", required=True, help=meaning)
    parser.add_argument("--faults", help="file written by simulators.faults.dump")
    parser.add_argument("--cancel", nargs="*", default=[], metavar="GROUP", help="groups to call off")
    try:
        asyncio.run(observe(parser.parse_args(arguments)))
    except PachonError as error:
        say(error=str(error), kind=type(error).__name__)
        return 1 if isinstance(error, Transient) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
