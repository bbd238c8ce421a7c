"""Events are facts: small, frozen, typed. They name pixels and tables by `DatasetId`; they never carry them.

An event's id is computed from its kind and the fields that `identity` names, so that the same fact told twice
is one row in the journal. When it was told is the journal's business, not the fact's.
"""

import hashlib
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from schemas.identity import DatasetId
from schemas.image import SCIENCE, Observation


class Event(BaseModel):
    """Base of all events. `group` is the visit's name from before it has a number; "" if it concerns none.

    Numbers are finite: JSON, in which the journal keeps facts, knows no others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    identity: ClassVar[tuple[str, ...]] = ("group",)
    group: str = ""

    @property
    def kind(self) -> str:
        """The class's name."""
        return type(self).__name__

    @property
    def event_id(self) -> str:
        """32 hex digits, the same for the same fact."""
        text = "|".join([self.kind, *(str(getattr(self, name)) for name in self.identity)])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# --- from the observatory -------------------------------------------------------------------------------------


class NextVisit(Event):
    """The OCS will observe here (SAL `ScriptQueue_logevent_nextVisit`). Angles deg ICRS, times TAI s."""

    instrument: str
    ra: float
    dec: float
    rotation: float
    filters: str
    start_time: float
    duration: float
    n_images: int
    survey: str = ""
    announced: float = 0.0
    on_sky: bool = True
    """Whether it looks at the sky; else its place means nothing."""


class NextVisitCanceled(Event):
    """The OCS will not (SAL `ScriptQueue_logevent_nextVisitCanceled`), or the night is stopped."""

    reason: str = "the OCS canceled the visit"


class IntegrationStarted(Event):
    """The shutter opened (SAL `MTCamera_logevent_startIntegration`)."""

    identity: ClassVar = ("exposure",)
    instrument: str
    exposure: int
    image_name: str
    snap: int
    n_snaps: int
    exposure_time: float
    started: float


class ReadoutEnded(Event):
    """The last pixel of an exposure was read (SAL `MTCamera_logevent_endReadout`): the 60 s begin."""

    identity: ClassVar = ("exposure",)
    instrument: str
    exposure: int
    image_name: str
    snap: int
    n_snaps: int
    exposure_time: float
    started: float
    readout_ended: float
    image_type: str = SCIENCE
    """As `schemas.image.Observation` has it."""


class InputRefused(Event):
    """A message from outside could not be used: it is kept as it came, here and in the dead letters.

    `payload`, `key`, values of `headers`: base64, None for Kafka's null. `sent_ms`: Kafka's timestamp, POSIX ms.
    """

    identity: ClassVar = ("topic", "partition", "offset", "sent_ms")  # a broker that lost all counts from 0 again
    topic: str
    partition: int
    offset: int
    reason: str
    payload: str | None
    key: str | None = None
    headers: tuple[tuple[str, str | None], ...] = ()
    sent_ms: int = 0


# --- a visit's life ---------------------------------------------------------------------------------------------


class VisitAssigned(Event):
    """A detector is to be processed for a visit: whoever gets this loads what it will need."""

    identity: ClassVar = ("group", "detector")
    detector: int
    visit_plan: NextVisit
    band: str


class VisitRefused(Event):
    """A visit cannot be processed at all."""

    reason: str


class DetectorReadOut(Event):
    """A detector's pixels of one snap wait in the camera's DAQ."""

    identity: ClassVar = ("observation_key", "detector")
    detector: int
    observation: Observation

    @property
    def observation_key(self) -> int:
        """The exposure."""
        return self.observation.exposure


class RawReady(Event):
    """A raw was assembled and checked. `raw`: its dataset, in the pixel store now and in the archive later."""

    identity: ClassVar = ("raw",)
    detector: int
    observation: Observation
    raw: DatasetId
    sha256: str


class RawArchived(Event):
    """A raw is on disk, checksummed, whatever was said of it before.

    `caught_up`: it was missed at first. `described_by`: who told what `observation` holds: the observatory in its
    events, or, where these never came or cannot be used, the camera in its DAQ's catalogue.
    """

    identity: ClassVar = ("raw",)
    raw: DatasetId
    uri: str
    sha256: str
    observation: Observation
    caught_up: bool = False
    described_by: Literal["observatory", "camera"] = "observatory"


class RawNotArchived(Event):
    """A raw could not be archived: unless `RawArchived` follows, it is named in the report as missing."""

    identity: ClassVar = ("raw",)
    raw: DatasetId
    reason: str


class CatchUpDue(Event):
    """One raw that the camera holds and the archive lacks is to be fetched, of what was read out before `at` (TAI s).

    `occasion`: why. `number`: of these, counted by whoever asks. `begins`: look anew for what lacks; otherwise the
    next of what was found then.
    """

    identity: ClassVar = ("at", "number")
    at: float
    number: int
    occasion: str
    begins: bool


class CaughtUp(Event):
    """The answer to the `CatchUpDue` of the same `at` and `number`.

    `left`: how many raws lack that were not tried yet since it began; `failed`: how many were tried and still lack.
    `reason`: why nothing could be done now ("" if something could): the DAQ does not answer, the disk is full.
    """

    identity: ClassVar = ("at", "number")
    at: float
    number: int
    left: int
    failed: int
    reason: str = ""


class DiaSourcesReady(Event):
    """A visit-detector was differenced and measured. Seconds by stage, CPU of the worker's thread.

    `redone`, here and in what follows from it: how often it had failed and was redone from the archive.
    """

    identity: ClassVar = ("group", "detector", "redone")
    instrument: str
    visit: int
    detector: int
    observation: Observation
    count: int
    products: DatasetId
    stages: dict[str, float]
    summary: dict[str, float]
    redone: int = 0


class AssociationDue(Event):
    """All earlier visits of this sky are associated or given up: this visit-detector's turn."""

    identity: ClassVar = ("group", "detector", "redone")
    visit: int
    detector: int
    sources: DiaSourcesReady
    redone: int = 0


class AlertsReady(Event):
    """Sources, objects and the alert file's name are committed, in one transaction. `outcome`: Added or Exists."""

    identity: ClassVar = ("group", "detector")
    instrument: str
    visit: int
    detector: int
    readout_ended: float
    dia_sources: int
    new_dia_objects: int
    alerts: int
    path: str
    stages: dict[str, float]
    redone: int = 0


class AlertsSent(Event):
    """The broker's answer to every alert of a visit-detector. Times TAI s; `failed`: reason -> how many.

    `reduced`: of the acknowledged, how many with smaller cutouts than they were made with, the broker having refused
    them as too large.
    """

    identity: ClassVar = ("group", "detector")
    visit: int
    detector: int
    made: int
    sent: int
    acknowledged: int
    failed: dict[str, int]
    readout_ended: float
    last_acknowledged: float
    reduced: int = 0
    redone: int = 0


class LiteAlertsSent(Event):
    """The broker's answer to the lite alerts of a visit-detector, whose whole ones it has.

    `failed`: reason -> how many; these are not sent again, and are no lost alerts.
    """

    identity: ClassVar = ("group", "detector")
    visit: int
    detector: int
    sent: int
    failed: dict[str, int]


class DetectorFailed(Event):
    """A visit-detector is given up, and why."""

    identity: ClassVar = ("group", "detector")
    visit: int | None
    detector: int
    stage: str
    reason: str


class OfflineDue(Event):
    """A visit-detector failed, and all its raws are in the archive: it is to be redone. `observation`: its last."""

    identity: ClassVar = ("group", "detector", "redone")
    redone: int
    visit: int
    detector: int
    observation: Observation
    reason: str


class OfflineFailed(Event):
    """It failed again, at the `redone`-th time."""

    identity: ClassVar = ("group", "detector", "redone")
    redone: int
    visit: int | None
    detector: int
    stage: str
    reason: str


class DetectorManifest(BaseModel):
    """What became of one detector of a visit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    detector: int
    raws: int = 0
    dia_sources: int = 0
    alerts_made: int = 0
    alerts_sent: int = 0
    alerts_acknowledged: int = 0
    alerts_reduced: int = 0
    failed: dict[str, int] = {}
    gave_up: str = ""


class VisitDone(Event):
    """Every assigned detector has a result; the manifest says which."""

    visit: int | None
    detectors: tuple[DetectorManifest, ...]


class VisitAmended(Event):
    """A detector that had failed when its visit ended has a result since: redone offline, and its alerts are out."""

    identity: ClassVar = ("group", "detector")
    visit: int
    detector: int
    manifest: DetectorManifest


# --- what brokers are told besides alerts -------------------------------------------------------------------------


class NightBegan(Event):
    """Observing begins. `day_obs`: YYYYMMDD; `at`: TAI s."""

    identity: ClassVar = ("day_obs",)
    day_obs: int
    at: float


class NightEnded(Event):
    """Nothing more is owed for a night, of whose visits `visits` have ended. One that goes on later ends again."""

    identity: ClassVar = ("day_obs", "visits")
    day_obs: int
    visits: int
    at: float


class NoticeDue(Event):
    """Brokers are to be told this, word for word: it is kept before it is sent, so that it is always the same bytes.

    `notice`: its name; `key`, `value`: of the message.
    """

    identity: ClassVar = ("notice",)
    notice: str
    key: str
    value: str


class NoticeSent(Event):
    """The broker acknowledged a notice at a time (TAI s)."""

    identity: ClassVar = ("notice",)
    notice: str
    at: float


class NoticeFailed(Event):
    """A notice, or what was to be told about a fact, is given up: a bug, or data that cannot be used."""

    identity: ClassVar = ("group", "about")
    about: str
    reason: str


EVENTS: dict[str, type[Event]] = {cls.__name__: cls for cls in Event.__subclasses__()}
"""By kind: how the journal and the bus read them back."""


def read_event(kind: str, payload: str | bytes) -> Event:
    """An event from its kind and JSON. Raises KeyError or pydantic's ValidationError for what is none."""
    return EVENTS[kind].model_validate_json(payload)
