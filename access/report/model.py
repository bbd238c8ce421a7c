"""What a report holds; `report.json` is this, and `report.html` shows it."""

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latency(_Part):
    """Wall seconds from the last pixel read out to the broker's acknowledgement, over all alerts; null if none."""

    alerts: int
    median_s: float | None
    p98_s: float | None
    max_s: float | None
    within_60s: float | None


class Balance(_Part):
    """How many of each; what is made is acknowledged or fails with a reason. `raws`: those that the DAQ sent whole.

    `raws_caught_up`: of the archived, those missed at first. `raws_missing`: those not archived to this hour.
    `alerts_reduced`: of the acknowledged, those with smaller cutouts. `lite_owed`: not tried yet when the night ended.
    `failed`: visit-detectors, by reason; `redone`: those besides that failed promptly and were redone offline.
    """

    visits: int
    visits_planned: int
    raws_taken: int
    raws: int
    raws_archived: int
    raws_caught_up: int
    raws_missing: int
    dia_sources: int
    dia_objects: int
    alerts_made: int
    alerts_sent: int
    alerts_acknowledged: int
    alerts_reduced: int
    lite_sent: int
    lite_failed: dict[str, int]
    lite_owed: int
    failed: dict[str, int]
    redone: int
    reconciles: bool


class VisitRow(_Part):
    """One visit, of those planned the `number`-th, counted from 1; None for one that was not.

    `raws`: those that came, promptly or later; `detectors_failed`: detector -> why; `redone`: how many failed, and were
    redone offline. `latency`: of its alerts.
    """

    number: int | None
    group: str
    visit: int | None
    filter: str
    state: str
    detectors: int
    detectors_failed: dict[str, str]
    redone: int
    raws: int
    dia_sources: int
    alerts_made: int
    alerts_acknowledged: int
    latency: Latency


class Bin(_Part):
    """Truth in a range of S/N: how many there are, the share detected, and the share alerted on."""

    snr_min: float
    snr_max: float | None
    true: int
    detected: float | None
    alerted: float | None


class Truth(_Part):
    """The alerts against what the simulator put into the pixels; null where there is too little to say.

    `purity`: share of alerts at something that truly changed. `position_mas`: median distance, and the robust width
    of one coordinate. `flux_bias`: median of (measured - true) / true above S/N 20. `flux_pull_width`: robust width of
    (measured - true) / error.
    """

    completeness: list[Bin]
    purity: float | None
    purity_before_score: float | None
    position_mas: float | None
    position_width_mas: float | None
    flux_bias: float | None
    flux_pull_width: float | None
    matched: int


class FaultRow(_Part):
    """What was made to go wrong on purpose, in which planned visit, counted from 1, if in one.

    `state`: begun, ended, missed, or told (to a simulator); `at`, `until`: when it began and ended, TAI s.
    """

    name: str
    what: str
    state: str
    visit: int | None = None
    at: float | None = None
    until: float | None = None
    reason: str = ""


class Witnessed(_Part):
    """What a consumer of the topic saw beside the night.

    `messages`: all that came; `alerts`: different DIASources; `differing`: of these, how many came with other bytes a
    second time; `missing`: acknowledged and never seen; `unknown`: seen, and not in the L1 database. `within_60s`:
    share of the alerts first seen within 60 wall seconds of the last pixel's readout; `max_s`: the latest.
    """

    messages: int
    alerts: int
    differing: int
    missing: int
    unknown: int
    within_60s: float | None
    max_s: float | None

    @property
    def whole(self) -> bool:
        """Whether it saw every alert, no other, and each with the same bytes always."""
        return self.differing == self.missing == self.unknown == 0


class Report(_Part):
    """A night.

    `unheard`: the groups of planned visits that were neither announced nor said to be exposed, unless somebody ended
    the night early; `owed`: pool -> how many of its deliveries had not ended; they go on when the night is started
    again.
    """

    @property
    def reconciles(self) -> bool:
        """Whether all counts do, those of the witness, if there was one, too."""
        return self.balance.reconciles and (self.witnessed is None or self.witnessed.whole)

    night: str
    seed: int
    speed: float
    latency: Latency
    balance: Balance
    truth: Truth
    stages: dict[str, float]
    stages_per_detector: dict[str, float]
    visits: list[VisitRow]
    refused: dict[str, str]
    inputs_refused: dict[str, int]
    raws_missing: dict[str, str]
    catch_up_failed: str
    notices_failed: dict[str, str]
    unheard: list[str] = []
    owed: dict[str, int] = {}
    faults: list[FaultRow] = []
    witnessed: Witnessed | None = None
