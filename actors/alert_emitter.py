"""Sends what was committed to the broker, and counts its answers one by one."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actors.associator import PacketArchive
from actors.base import Actor
from backbone.alert_stream import Alert, AlertSink
from backbone.l1 import L1Database, Outbox
from payloads.alert_production.alert_schema import frame
from schemas.errors import Broken, Transient
from schemas.events import AlertsReady, AlertsSent, Event


class AlertEmitter(Actor):
    """Sends the packets of a visit-detector, byte for byte as archived, keyed by their object.

    What the broker acknowledged is noted alert by alert; what it did not is sent again at the next attempt.
    """

    def __init__(self, *, l1: L1Database, archive: PacketArchive, sink: AlertSink) -> None:
        self._l1 = l1
        self._archive = archive
        self._sink = sink

    async def on_alerts_ready(self, event: AlertsReady) -> Sequence[Event]:
        """Send what the broker has not acknowledged. Raises Transient while it owes any."""
        outbox = await self._outbox(event)
        owed = np.flatnonzero(outbox.owed)
        deliveries = await self._sink.send(self._alerts(outbox, owed)) if len(owed) else []
        times = outbox.acknowledged_at.copy()
        times[owed] = [delivery.acknowledged_at for delivery in deliveries]
        failures = Counter(delivery.error for delivery in deliveries if math.isnan(delivery.acknowledged_at))
        await self._l1.mark_sent(event.visit, event.detector, times, failures)
        if failures:
            raise Transient(
                f"{failures.total()} of {len(owed)} alerts not acknowledged: {failures.most_common(1)[0][0]}"
            )
        return [_sent(event, outbox, times)]

    async def _outbox(self, event: AlertsReady) -> Outbox:
        outbox = await self._l1.outbox(event.visit, event.detector)
        if outbox is None:
            raise Broken(f"visit {event.visit} detector {event.detector} was said to be committed, and is not")
        return outbox

    def _alerts(self, outbox: Outbox, owed: NDArray[np.int64]) -> list[Alert]:
        packets = self._archive.read(outbox.path)
        return [Alert(str(outbox.alert_keys[i]).encode(), frame(packets[i]), int(outbox.alert_ids[i])) for i in owed]


def _sent(event: AlertsReady, outbox: Outbox, times: NDArray[np.float64]) -> AlertsSent:
    last = float(times.max()) if len(times) else event.readout_ended
    return AlertsSent(
        group=event.group, visit=event.visit, detector=event.detector, made=outbox.n_alerts, sent=outbox.n_alerts,
        acknowledged=len(times), failed={}, readout_ended=event.readout_ended, last_acknowledged=last,
    )  # fmt: skip
