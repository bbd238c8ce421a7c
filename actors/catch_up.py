"""What the archive missed, fetched later from the camera's two-day buffer."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from actors.base import Actor
from actors.camera_reader import DataAcquisition, raw_id
from actors.fan_out import OPEN_S, Chronicle, observation_of
from backbone.daq_client import Held
from schemas.errors import BadData, Transient
from schemas.events import (
    CatchUpDue,
    CaughtUp,
    DetectorReadOut,
    Event,
    NextVisit,
    RawArchived,
    RawNotArchived,
    ReadoutEnded,
)
from schemas.identity import DatasetId, day_obs_of_visit
from schemas.image import Observation, Raw
from schemas.instrument import Camera

FETCH_DEADLINE_S = 30.0
"""For one detector, wall seconds: longer than the prompt's, since nobody waits for it."""

_HISTORY = ("NextVisit", "ReadoutEnded", "DetectorReadOut", "RawArchived", "RawNotArchived")

Key = tuple[int | None, int | None]
"""(exposure, detector)."""


class CameraBuffer(DataAcquisition, Protocol):
    """The DAQ with its catalogue."""

    async def held(self) -> list[Held]:
        """The exposures of the last two days. Raises Transient if the DAQ does not answer."""

    async def read(self, observation: Observation, detector: int, deadline_s: float = ...) -> Raw:
        """See `DataAcquisition`; the pixels are to come within `deadline_s` (wall seconds)."""


class RawArchive(Protocol):
    """Where raws lie."""

    def query(self, dataset_type: str, **where: int | str) -> list[DatasetId]:
        """What is kept of a type, by values of dimensions."""

    def exists(self, dataset: DatasetId) -> bool:
        """Whether an object is kept under a name."""

    def put_raw(self, raw: Raw) -> tuple[str, str]:
        """Write and check a raw; its URI and SHA-256."""

    def get(self, dataset: DatasetId, /) -> Any:  # noqa: ANN401 - by dataset type
        """The object of a name, its pixels checked against their SHA-256."""

    def uri(self, dataset: DatasetId) -> str:
        """Where its file lies."""


@dataclass(frozen=True)
class _Lacking:
    """A raw to be fetched, and who told what is known of it."""

    observation: Observation
    detector: int
    described_by: Literal["observatory", "camera"]

    @property
    def name(self) -> DatasetId:
        return raw_id(self.observation, self.detector)


class CatchUp(Actor):
    """Compares what the camera holds with what is archived, and archives what lacks: one raw each time it is told to.

    What the pools that archive at once still have in hand does not lack. `live`: the detectors that are owed.
    """

    def __init__(
        self, *, camera: Camera, live: Sequence[int], daq: CameraBuffer, archive: RawArchive, chronicle: Chronicle
    ) -> None:
        self._camera = camera
        self._live = frozenset(live)
        self._daq = daq
        self._archive = archive
        self._chronicle = chronicle
        self._lacking: deque[_Lacking] | None = None
        self._failed = 0

    async def on_catch_up_due(self, event: CatchUpDue) -> Sequence[Event]:
        """Archive one raw, and say how many are left; a new actor looks for what lacks by itself."""
        try:
            facts, reason = await self._next(event), ""
        except Transient as error:
            reason = str(error)
            facts = self._unclaimed(await self._history(event.at), frozenset(), event.at, reason)
        left = len(self._lacking or ())
        return [*facts, CaughtUp(at=event.at, number=event.number, left=left, failed=self._failed, reason=reason)]

    async def _next(self, event: CatchUpDue) -> list[Event]:
        lost = await self._look(event.at) if event.begins or self._lacking is None else []
        if not self._lacking:
            return lost
        fact = await self._told(self._lacking[0])
        tried = self._lacking.popleft()
        if isinstance(fact, RawNotArchived):
            self._failed += 1  # its next raws come last: a detector that is silent now may be so for long
            self._lacking = deque(sorted(self._lacking, key=lambda one: one.detector == tried.detector))
        return [*lost, fact]

    async def _told(self, one: _Lacking) -> RawArchived | RawNotArchived:
        group = one.observation.group
        try:
            uri, sha256 = await self._keep(one)
        except BadData as error:
            await self._daq.held()  # Transient, and nothing is said of this raw, where the whole DAQ is silent
            return RawNotArchived(group=group, raw=one.name, reason=str(error))
        return RawArchived(
            group=group, raw=one.name, uri=uri, sha256=sha256, observation=one.observation, caught_up=True,
            described_by=one.described_by,
        )  # fmt: skip

    async def _keep(self, one: _Lacking) -> tuple[str, str]:
        """URI and SHA-256 of a raw that was read back from the archive. Raises BadData if it differs from what came."""
        if self._archive.exists(one.name):  # whoever put it there did not live to say so
            return self._archive.uri(one.name), self._archive.get(one.name).sha256
        raw = await self._daq.read(one.observation, one.detector, FETCH_DEADLINE_S)
        uri, _ = self._archive.put_raw(raw)
        kept = self._archive.get(one.name).sha256
        if kept != raw.sha256:
            raise BadData(f"{one.name}: pixels of SHA-256 {kept[:12]} are archived, the DAQ sent {raw.sha256[:12]}")
        return uri, kept

    async def _look(self, before: float) -> list[Event]:
        """Note what the camera holds of readouts before a time (TAI s) and the archive lacks; name what nobody has."""
        held = [one for exposure in await self._daq.held() for one in self._owed(exposure, before)]
        facts = await self._history(before)
        archived = {_key(f.raw) for f in facts if isinstance(f, RawArchived)}
        ended = archived | {_key(f.raw) for f in facts if isinstance(f, RawNotArchived)}
        coming = {(f.observation.exposure, f.detector) for f in facts if isinstance(f, DetectorReadOut)} - ended
        not_wanted = coming | (archived & self._kept(held))
        seen = self._seen(facts)
        lacking = (one for one in held if _key(one.name) not in not_wanted)
        self._lacking = deque(_described(one, seen.get(one.observation.exposure)) for one in lacking)
        self._failed = 0
        exposures = frozenset(one.observation.exposure for one in held)
        return self._unclaimed(facts, exposures, before, "the camera's buffer does not hold it")

    async def _history(self, before: float) -> list[Event]:
        return await self._chronicle.facts(*_HISTORY, since=before - OPEN_S)

    def _unclaimed(self, facts: Sequence[Event], held: frozenset[int], before: float, reason: str) -> list[Event]:
        """The raws of exposures that were told of, are not `held`, and no pool ever had in hand: named as missing."""
        in_hand = {f.observation.exposure for f in facts if isinstance(f, DetectorReadOut)}
        in_hand |= {f.raw.exposure or 0 for f in facts if isinstance(f, RawArchived | RawNotArchived)}
        lost = (
            f for f in facts
            if isinstance(f, ReadoutEnded) and f.instrument == self._camera.name and f.readout_ended <= before
            and f.exposure not in in_hand | held
        )  # fmt: skip
        return [
            RawNotArchived(group=f.group, raw=DatasetId.of_raw(f.instrument, f.exposure, detector), reason=reason)
            for f in lost
            for detector in sorted(self._live)
        ]

    def _owed(self, held: Held, before: float) -> list[_Lacking]:
        seen = held.observation
        if seen.instrument != self._camera.name or seen.readout_ended > before:
            return []
        return [_Lacking(seen, detector, "camera") for detector in held.detectors if detector in self._live]

    def _kept(self, held: Sequence[_Lacking]) -> set[Key]:
        """The raws that the archive has of the nights of what is held."""
        nights = {day_obs_of_visit(one.observation.exposure) for one in held}
        found = (self._archive.query("raw", instrument=self._camera.name, day_obs=night) for night in sorted(nights))
        return {_key(raw) for raws in found for raw in raws}

    def _seen(self, facts: Iterable[Event]) -> dict[int, Observation]:
        """By exposure, what the observatory told, where it told enough."""
        plans: dict[str, NextVisit] = {}
        readouts: list[ReadoutEnded] = []
        for fact in facts:
            if isinstance(fact, NextVisit) and self._is_usable(fact):
                plans[fact.group] = fact
            elif isinstance(fact, ReadoutEnded) and fact.instrument == self._camera.name:
                readouts.append(fact)
        return {
            r.exposure: observation_of(r, plans[r.group], self._camera.band_of(plans[r.group].filters))
            for r in readouts if r.group in plans
        }  # fmt: skip

    def _is_usable(self, plan: NextVisit) -> bool:
        return plan.instrument == self._camera.name and plan.filters in self._camera.filters


def _described(one: _Lacking, told: Observation | None) -> _Lacking:
    return one if told is None else _Lacking(told, one.detector, "observatory")


def _key(raw: DatasetId) -> Key:
    return raw.exposure, raw.detector
