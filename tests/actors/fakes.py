"""What stands at the actors' ports in these tests."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from backbone.alert_stream import TWO_ROUNDS_S, Alert, Delivery
from schemas.errors import BadData, Transient
from schemas.identity import DatasetId
from schemas.image import Observation, Raw


def raw(observation: Observation, detector: int, shape: tuple[int, int, int] = (16, 3, 4)) -> Raw:
    """Pixels that follow from exposure and detector, so that no raw is mistaken for another."""
    rng = np.random.default_rng([observation.exposure, detector])
    segments = rng.integers(25_000, 26_000, shape, dtype=np.int32)
    return Raw(observation, detector, segments, hashlib.sha256(segments.tobytes()).hexdigest())


@dataclass
class FakeDaq:
    """A DAQ that holds every image. `dead`: it does not answer. `short`: the exposures of which pixels lack."""

    shape: tuple[int, int, int] = (16, 3, 4)
    dead: bool = False
    short: set[int] = field(default_factory=set)
    reads: list[tuple[int, int]] = field(default_factory=list)

    async def read(self, observation: Observation, detector: int) -> Raw:
        what = f"{observation.image_name} detector {detector}"
        self.reads.append((observation.exposure, detector))
        if self.dead:
            raise Transient(f"{what}: the DAQ does not answer")
        if observation.exposure in self.short:
            raise BadData(f"{what}: 8 of 16 amplifiers came")
        return raw(observation, detector, self.shape)


@dataclass
class FullPixels:
    """A pixel store that takes nothing and holds nothing."""

    async def put(self, name: DatasetId, value: object) -> None:  # noqa: ARG002 - the port's
        raise Transient(f"{name}: the pixel store did not take it")

    async def get(self, name: DatasetId) -> object | None:  # noqa: ARG002 - the port's
        return None

    async def drop(self, name: DatasetId) -> None:
        """Nothing is there."""


@dataclass
class FakeBroker:
    """Acknowledges at `now` all alerts but those about `refused`, and those of more than `most` bytes.

    Keeps what it took, in order.
    """

    now: float
    refused: set[int] = field(default_factory=set)
    most: int = 2**30
    taken: list[Alert] = field(default_factory=list)
    calls: int = 0

    async def send(self, alerts: Sequence[Alert], within_s: float = TWO_ROUNDS_S) -> list[Delivery]:  # noqa: ARG002
        self.calls += 1
        answers = [self._answer(alert) for alert in alerts]
        self.taken += [alert for alert, answer in zip(alerts, answers, strict=True) if not answer.error]
        return answers

    def _answer(self, alert: Alert) -> Delivery:
        if alert.dia_source_id in self.refused:
            return Delivery(alert.dia_source_id, float("nan"), "Local: Message timed out")
        if len(alert.value) > self.most:
            return Delivery(alert.dia_source_id, float("nan"), "Broker: Message size too large", too_large=True)
        return Delivery(alert.dia_source_id, self.now)
