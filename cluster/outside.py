"""What a night is played beside: servers of its own where none are given, and the simulated observatory.

They outlive the driver, which holds the bus: whatever happens to it, the sky goes on, and what was said waits for it.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from backbone.alert_stream import create_topic
from backbone.registry_client import RegistryClient
from backbone.schema_registry import SchemaRegistry
from cluster.child_process import ChildProcess
from cluster.options import NightOptions
from cluster.services import EmbeddedKafka, EmbeddedPostgres, check_tcp
from cluster.settings import Settings
from payloads.alert_production.alert_schema import alert_schema, schema_id
from schemas.clock import NightClock
from schemas.errors import BadData
from simulators.camera.faults import of_night
from simulators.faults import load
from simulators.ocs.schedule import load_plan

SERVER_DEADLINE_S = 20.0


@dataclass
class Servers:
    """A broker and a database; `own_kafka`, `own_postgres`: those started here."""

    kafka: str
    postgres: str
    own_kafka: EmbeddedKafka | None = None
    own_postgres: EmbeddedPostgres | None = None

    @property
    def own(self) -> dict[str, EmbeddedKafka | EmbeddedPostgres]:
        """Those started here, by name."""
        own = {"kafka": self.own_kafka, "postgres": self.own_postgres}
        return {name: server for name, server in own.items() if server is not None}

    def processes(self) -> dict[str, ChildProcess]:
        """Of those started here."""
        return {name: server.process for name, server in self.own.items() if server.process is not None}


@contextmanager
def servers(options: NightOptions, settings: Settings) -> Iterator[Servers]:
    """Kafka and PostgreSQL, embedded unless their addresses are given."""
    with ExitStack() as stack:
        broker = database = None
        if options.kafka:
            _check_address(f"kafka://{options.kafka}", 9092)
        else:
            broker = EmbeddedKafka(settings.output / "kafka.log", port=options.kafka_port or None)
            stack.enter_context(broker)
        if options.postgres:
            _check_address(options.postgres, 5432)
        else:
            database = stack.enter_context(EmbeddedPostgres(settings.output / "postgres"))
        kafka = broker.bootstrap if broker else options.kafka
        yield Servers(kafka, database.url if database else options.postgres, broker, database)


def _check_address(url: str, port: int) -> None:
    parts = urlsplit(url)
    if not parts.hostname:
        raise BadData(f"{url!r} names no host")
    check_tcp(parts.hostname, parts.port or port, SERVER_DEADLINE_S)


@asynccontextmanager
async def registry(options: NightOptions, settings: Settings) -> AsyncIterator[Settings]:
    """The schema registry, embedded unless its address is given, with the alert schema under its official id.

    The topics of alerts and of visits are there too when this returns: who follows them need not wait for the first.
    """
    async with AsyncExitStack() as stack:
        url = options.registry
        if not url:
            own = SchemaRegistry(settings.output / "schemas.json", port=options.registry_port)
            url = (await stack.enter_async_context(own)).url
        client = await stack.enter_async_context(RegistryClient(url))
        for topic in (settings.alert_topic, settings.lite_topic):
            await client.register(f"{topic}-value", alert_schema(), schema_id())
            await asyncio.to_thread(create_topic, settings.kafka, topic)
        await asyncio.to_thread(create_topic, settings.kafka, settings.visit_topic, partitions=1)
        yield settings.model_copy(update={"registry": url})


@dataclass(frozen=True)
class Simulators:
    """The camera's DAQ and the observatory control."""

    daq: ChildProcess
    ocs: ChildProcess

    def processes(self) -> dict[str, ChildProcess]:
        """By name."""
        return {"daq": self.daq, "ocs": self.ocs}

    @property
    def silent(self) -> bool:
        """Whether the observatory has nothing more to say."""
        return self.ocs.returncode is not None

    def start_daq(self) -> None:
        """Start the camera's DAQ again, over the buffer it kept."""
        self.daq.start()
        self.daq.wait_for("ready")


def simulators(stack: ExitStack, options: NightOptions, settings: Settings, clock: NightClock) -> Simulators:
    """Start them, on the night's clock; they end with the stack."""
    told = json.dumps(asdict(clock))
    daq = _python(
        "simulators.camera.daq", "--port", settings.daq.rsplit(":", 1)[1], "--seed", str(options.seed),
        "--instrument", settings.instrument, "--clock", told, "--buffer", str(settings.output / "daq"),
        "--truth", str(settings.truth), "--detectors", ",".join(map(str, settings.detectors)),
        "--faults", _camera_faults(settings),
    )  # fmt: skip
    ocs = _python(
        "simulators.ocs.ocs", "--bootstrap", settings.kafka, "--registry", settings.registry, "--daq", settings.daq,
        "--clock", told, "--plan", str(settings.plan_file), "--faults", str(settings.fault_file),
    )  # fmt: skip
    camera = stack.enter_context(ChildProcess("daq", daq, settings.output / "daq.log"))
    camera.wait_for("ready")
    return Simulators(camera, stack.enter_context(ChildProcess("ocs", ocs, settings.output / "ocs.log")))


def _camera_faults(settings: Settings) -> str:
    """What the DAQ is told to play, JSON."""
    found = of_night(load(settings.fault_file), load_plan(settings.plan_file), settings.detectors)
    return json.dumps([asdict(fault) for fault in found])


def witness(settings: Settings) -> ChildProcess:
    """Somebody who reads the topic of alerts as a broker does, and notes what it sees."""
    given = ("--kafka", settings.kafka, "--topic", settings.alert_topic, "--file", str(settings.witness_file))
    return ChildProcess("witness", _python("cluster.witness", *given), settings.output / "witness.log")


def _python(module: str, *arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", module, *arguments]
