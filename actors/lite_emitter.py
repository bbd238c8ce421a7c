"""Sends lite alerts after the whole ones that the broker has: a courtesy, which holds up nothing."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from actors.alert_emitter import ATTEMPT_S, LATE, Headers, alert_of, failed, outbox_of
from actors.associator import PacketArchive
from actors.base import Actor
from backbone.alert_stream import Alert, AlertSink
from backbone.l1 import L1Database, Outbox
from payloads.alert_production.lite import lite
from schemas.events import AlertsSent, Event, LiteAlertsSent

TRIES = 3
"""How often a lite alert is sent; each try lasts as long as the broker is given for an answer."""


class LiteEmitter(Actor):
    """Cuts the lite alerts of a visit-detector from its packets, once all are acknowledged, under the same keys.

    Nothing is noted alert by alert: after a crash all are sent again.
    """

    def __init__(self, *, l1: L1Database, archive: PacketArchive, sink: AlertSink) -> None:
        self._l1 = l1
        self._archive = archive
        self._sink = sink

    async def on_alerts_sent(self, event: AlertsSent) -> Sequence[Event]:
        """Send them, a few times if need be, and say what became of them."""
        outbox = await outbox_of(self._l1, event.visit, event.detector)
        alerts = await asyncio.to_thread(self._alerts, outbox, LATE if event.redone else ())
        errors = await self._send(alerts)
        return [
            LiteAlertsSent(
                group=event.group, visit=event.visit, detector=event.detector, sent=len(alerts) - errors.total(),
                failed=dict(errors),
            )
        ]  # fmt: skip

    def _alerts(self, outbox: Outbox, headers: Headers) -> list[Alert]:
        """Not checked again: the emitter of the whole ones did, and each is walked from end to end to be cut."""
        packets = self._archive.read_unchecked(outbox.path) if outbox.n_alerts else []
        return [alert_of(outbox, place, lite(packet), headers) for place, packet in enumerate(packets)]

    async def _send(self, alerts: list[Alert]) -> Counter[str]:
        """By reason, how many did not arrive."""
        give_up, errors = time.monotonic() + ATTEMPT_S, Counter[str]()
        for _ in range(TRIES):
            if alerts:
                answers = await self._sink.send(alerts, give_up - time.monotonic())
                alerts = [alert for alert, answer in zip(alerts, answers, strict=True) if failed(answer)]
                errors = Counter(answer.error for answer in answers if failed(answer))
        return errors
