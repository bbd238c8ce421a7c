"""Sends what was committed to the broker, and counts its answers one by one."""

import asyncio
import hashlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from actors.associator import PacketArchive
from actors.base import Actor
from backbone.alert_stream import Alert, AlertSink, Delivery
from backbone.l1 import L1Database, Outbox
from payloads.alert_production.alert_schema import frame
from payloads.alert_production.lite import field_ends
from payloads.alert_production.smaller_cutouts import reduced
from schemas.errors import BadData, Broken, Transient
from schemas.events import AlertsReady, AlertsSent, Event

ATTEMPT_S = 45.0
"""Wall seconds for all that an attempt sends: what was acknowledged by then is noted before the bus gives up on it."""

CUTOUTS, ARCHIVED_AS = "cutouts", "archived-sha256"
"""Headers of an alert sent with smaller cutouts: how small; SHA-256, hex, of the packet as it was made and archived,
for those who hold what they received to a manifest."""

REDUCED = "too large: sent with smaller cutouts"
"""A key of an outbox's failures: of how many alerts that are not owed. It outlives the attempt."""

LEFT_OUT = "left out"

LATE = (("late", "offline"),)
"""Headers of an alert of a visit-detector that had failed and was redone offline."""

Headers = tuple[tuple[str, str], ...]

_FRAME_BYTES = len(frame(b""))
_LEAST_S = 2.0
"""With less time left, smaller cutouts are for the next attempt."""


class AlertEmitter(Actor):
    """Sends the packets of a visit-detector, byte for byte as archived, keyed by their object.

    What the broker acknowledged is noted alert by alert; what it did not is sent again at the next attempt. What is
    refused as too large is sent with smaller cutouts, down to none, and says so in its headers.
    """

    def __init__(self, *, l1: L1Database, archive: PacketArchive, sink: AlertSink) -> None:
        self._l1 = l1
        self._archive = archive
        self._sink = sink

    async def on_alerts_ready(self, event: AlertsReady) -> Sequence[Event]:
        """Send what the broker has not acknowledged. Raises Transient while it owes any.

        Raises BadData, and sends nothing, if a packet is no alert of the schema that its header will name.
        """
        outbox = await outbox_of(self._l1, event.visit, event.detector)
        owed = np.flatnonzero(outbox.owed)
        headers = LATE if event.redone else ()
        alerts, deliveries, smaller = await send(
            self._sink, await asyncio.to_thread(self._alerts, outbox, owed, headers)
        )
        times = outbox.acknowledged_at.copy()
        times[owed] = [delivery.acknowledged_at for delivery in deliveries]
        failures = Counter(delivery.error for delivery in deliveries if failed(delivery))
        smaller += outbox.failures.get(REDUCED, 0)
        await self._l1.mark_sent(event.visit, event.detector, times, failures + Counter({REDUCED: smaller}))
        if failures:
            _check_not_hopeless(alerts, deliveries)
            raise Transient(
                f"{failures.total()} of {len(owed)} alerts not acknowledged: {failures.most_common(1)[0][0]}"
            )
        return [_sent(event, outbox, times, smaller)]

    def _alerts(self, outbox: Outbox, owed: NDArray[np.int64], headers: Headers) -> list[Alert]:
        """Those owed."""
        packets = self._archive.read(outbox.path) if len(owed) else []
        for i in owed:
            try:
                field_ends(packets[i])
            except BadData as error:
                raise BadData(f"{outbox.path}: the alert about DIASource {outbox.alert_ids[i]}: {error}") from error
        return [alert_of(outbox, i, packets[i], headers) for i in owed]


async def send(sink: AlertSink, alerts: Sequence[Alert]) -> tuple[list[Alert], list[Delivery], int]:
    """Within `ATTEMPT_S`, what is refused as too large with smaller cutouts.

    Each as it was sent last, the answer about it, and how many arrived with smaller cutouts.
    """
    give_up = time.monotonic() + ATTEMPT_S
    alerts = list(alerts)
    deliveries = list(await sink.send(alerts, ATTEMPT_S)) if alerts else []
    made_smaller: set[int] = set()
    while shrunk := _shrunk(alerts, deliveries, give_up):
        alerts = [shrunk.get(place, alert) for place, alert in enumerate(alerts)]
        answers = await sink.send(list(shrunk.values()), give_up - time.monotonic())
        for place, answer in zip(shrunk, answers, strict=True):
            deliveries[place] = answer
        made_smaller |= shrunk.keys()
    return alerts, deliveries, sum(not failed(deliveries[place]) for place in made_smaller)


async def outbox_of(l1: L1Database, visit: int, detector: int) -> Outbox:
    """The record of a visit-detector. Raises Broken if it is not stored."""
    outbox = await l1.outbox(visit, detector)
    if outbox is None:
        raise Broken(f"visit {visit} detector {detector} was said to be committed, and is not")
    return outbox


def alert_of(outbox: Outbox, place: int, packet: bytes, headers: Headers) -> Alert:
    """The message about the alert at a place of an outbox."""
    return Alert(str(outbox.alert_keys[place]).encode(), frame(packet), int(outbox.alert_ids[place]), headers)


def failed(delivery: Delivery) -> bool:
    """Whether the broker did not acknowledge it."""
    return math.isnan(delivery.acknowledged_at)


def _check_not_hopeless(alerts: Sequence[Alert], deliveries: Sequence[Delivery]) -> None:
    """Raises BadData, naming one, if all that failed were refused as too large and have no cutouts left.

    With a broker of that limit they would stand in the way of all others for ever.
    """
    failures = [(alert, answer) for alert, answer in zip(alerts, deliveries, strict=True) if failed(answer)]
    if all(answer.too_large and dict(alert.headers).get(CUTOUTS) == LEFT_OUT for alert, answer in failures):
        alert, answer = failures[0]
        raise BadData(
            f"{len(failures)} alerts are too large for the broker even without cutouts, the first is about DIASource"
            f" {alert.dia_source_id}: {answer.error}"
        )


def _shrunk(alerts: Sequence[Alert], deliveries: Sequence[Delivery], give_up: float) -> dict[int, Alert]:
    """By place, those refused as too large, with the next smaller cutouts; not those that have none left.

    A crowded detector has more than there is time for, at 30 ms each: half of what is left, the other is for sending.
    What is not reached is owed.
    """
    now, shrunk = time.monotonic(), dict[int, Alert]()
    if give_up - now < _LEAST_S:
        return shrunk
    for place, answer in enumerate(deliveries):
        in_time = answer.too_large and time.monotonic() < (now + give_up) / 2
        if in_time and (less := _smaller(alerts[place])) is not None:
            shrunk[place] = less
    return shrunk


def _smaller(alert: Alert) -> Alert | None:
    packet = alert.value[_FRAME_BYTES:]
    less = reduced(packet)
    if less is None:
        return None
    cutouts = f"reduced to {less.size} px" if less.size else LEFT_OUT
    told = dict(alert.headers)
    told = {**told, CUTOUTS: cutouts, ARCHIVED_AS: told.get(ARCHIVED_AS) or hashlib.sha256(packet).hexdigest()}
    return replace(alert, value=frame(less.packet), headers=tuple(told.items()))


def _sent(event: AlertsReady, outbox: Outbox, times: NDArray[np.float64], smaller: int) -> AlertsSent:
    last = float(times.max()) if len(times) else event.readout_ended
    return AlertsSent(
        group=event.group, visit=event.visit, detector=event.detector, made=outbox.n_alerts, sent=outbox.n_alerts,
        acknowledged=len(times), failed={}, readout_ended=event.readout_ended, last_acknowledged=last,
        reduced=smaller, redone=event.redone,
    )  # fmt: skip
