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
    """How many of each; what is made is acknowledged or fails with a reason. `raws`: those that the DAQ sent whole."""

    visits: int
    visits_planned: int
    raws_taken: int
    raws: int
    raws_archived: int
    dia_sources: int
    dia_objects: int
    alerts_made: int
    alerts_sent: int
    alerts_acknowledged: int
    failed: dict[str, int]
    reconciles: bool


class VisitRow(_Part):
    """One visit. `detectors_failed`: detector -> why. `latency`: of its alerts."""

    group: str
    visit: int | None
    filter: str
    state: str
    detectors: int
    detectors_failed: dict[str, str]
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


class Report(_Part):
    """A night."""

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
