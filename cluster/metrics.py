"""Prometheus metrics of the whole system at one address: the bus's facts, and each process's cost."""

import os
from collections import Counter as Counts
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.host import Outcome
from schemas.clock import Clock
from schemas.errors import BadData
from schemas.events import AlertsReady, AlertsSent, DiaSourcesReady, Event, LiteAlertsSent

LATENCY_BUCKETS = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 55.0, 60.0, 65.0, 75.0, 90.0, 120.0, 300.0)
"""Seconds, closest round the promised 60."""
_PAGE = 4096


@dataclass(eq=False)
class Processes(Collector):
    """Resident memory and CPU of every process of the system on this machine, read when asked."""

    pids: dict[str, int] = field(default_factory=lambda: {"night": os.getpid()})

    def collect(self) -> Iterable[Metric]:
        """Two gauges, labelled with the process's name."""
        memory = GaugeMetricFamily("pachon_process_resident_bytes", "Resident memory", labels=["process"])
        cpu = GaugeMetricFamily("pachon_process_cpu_seconds", "CPU used since its start", labels=["process"])
        for name, pid in list(self.pids.items()):
            usage = _usage(pid)
            if usage is not None:
                memory.add_metric([name], usage[0])
                cpu.add_metric([name], usage[1])
        return [memory, cpu]


def _usage(pid: int) -> tuple[float, float] | None:
    """(resident bytes, CPU seconds) of a process; None if it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    except OSError:
        return None
    return float(pages) * _PAGE, (float(fields[11]) + float(fields[12])) / 100.0


def _waiting_in(pool: str, waiting: Callable[[], Counts[str]]) -> float:
    return float(waiting()[pool])


class Metrics:
    """What the bus tells, as `pachon_*` series."""

    def __init__(self, clock: Clock, waiting: Callable[[], Counts[str]]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.processes = Processes()
        self.registry.register(self.processes)
        self._clock = clock
        self._lane_pids: dict[tuple[str, int], int] = {}
        self._facts = Counter("pachon_events", "Facts told", ["kind"], registry=self.registry)
        self._outcomes = Counter("pachon_reactions", "Reactions", ["pool", "verdict"], registry=self.registry)
        self._seconds = Histogram(
            "pachon_reaction_seconds", "Wall time of a reaction", ["pool"], registry=self.registry
        )
        self._stages = Counter("pachon_stage_cpu_seconds", "CPU time by stage", ["stage"], registry=self.registry)
        self._alerts = Counter("pachon_alerts", "Alerts by fate", ["fate"], registry=self.registry)
        self._lite = Counter("pachon_lite_alerts", "Lite alerts by fate", ["fate"], registry=self.registry)
        self._latency = Histogram(
            "pachon_alert_latency_seconds", "Last pixel read out to the broker's last acknowledgement of a detector",
            buckets=LATENCY_BUCKETS, registry=self.registry,
        )  # fmt: skip
        queue = Gauge("pachon_queue", "Deliveries waiting", ["pool"], registry=self.registry)
        for pool in waiting():
            queue.labels(pool).set_function(partial(_waiting_in, pool, waiting))

    def serve(self, port: int) -> int:
        """Serve `/metrics` on the loopback address; the port. Raises BadData if it is in use."""
        try:
            server, _ = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        except OSError as error:
            raise BadData(f"metrics port {port} cannot be used: {error.strerror}") from error
        return int(server.server_port)

    def hear(self, event: Event, _at: float) -> None:
        """Count a fact."""
        self._facts.labels(event.kind).inc()
        if isinstance(event, DiaSourcesReady | AlertsReady):
            for stage, seconds in event.stages.items():
                self._stages.labels(stage).inc(seconds)
        if isinstance(event, AlertsSent):
            self._alerts.labels("acknowledged").inc(event.acknowledged)
            self._alerts.labels("failed").inc(event.made - event.acknowledged)
            if event.acknowledged:
                self._latency.observe(self._clock.wall_seconds(event.last_acknowledged - event.readout_ended))
        if isinstance(event, LiteAlertsSent):
            self._lite.labels("acknowledged").inc(event.sent)
            self._lite.labels("failed").inc(sum(event.failed.values()))

    def watch(self, pool: str, lane: int, _event: Event, outcome: Outcome) -> None:
        """Count a reaction."""
        self._outcomes.labels(pool, outcome.verdict).inc()
        self._seconds.labels(pool).observe(outcome.wall_s)
        known = self._lane_pids.get((pool, lane))
        if known != outcome.pid:  # a process that was started anew takes the old one's name
            self._lane_pids[pool, lane] = outcome.pid
            names = [name for name, pid in self.processes.pids.items() if pid in {known, outcome.pid}]
            self.processes.pids[names[0] if names else f"{pool}-{lane}"] = outcome.pid
