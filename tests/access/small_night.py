"""A night in a few facts and rows, without any machinery: one that reconciles, and what can be wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from access.report.collect import Collected, NightFacts, collect
from backbone.journal import MemoryJournal
from backbone.l1_memory import L1Memory
from schemas.clock import NightClock
from schemas.events import (
    AlertsReady,
    AlertsSent,
    DetectorFailed,
    DetectorReadOut,
    DiaSourcesReady,
    Event,
    InputRefused,
    LiteAlertsSent,
    NextVisit,
    RawArchived,
    RawNotArchived,
    RawReady,
    VisitAssigned,
    VisitDone,
)
from schemas.identity import DatasetId
from schemas.image import Observation
from tests.backbone.l1_results import result

VISIT = 2026070500001
BEGAN = 1.9e9
READOUT_ENDED = BEGAN + 100.0
SPEED = 2.0
"""Of the night: a wall second is two of its own."""
DETECTORS = (94, 95)
LATENCIES = (20.0, 40.0, 100.0, 200.0)
"""Of each detector's four alerts, seconds of the night: 10, 20, 50 and 100 of the wall."""


def plan(group: str = "g1", **changes: Any) -> NextVisit:
    fields = {"instrument": "LSSTCam", "filters": "r_57", "ra": 150.0, "dec": 2.0, "rotation": 0.0, "duration": 36.0,
              "start_time": BEGAN + 50.0, "n_images": 2} | changes  # fmt: skip
    return NextVisit(group=group, **fields)


def assigned(detector: int, group: str = "g1") -> VisitAssigned:
    return VisitAssigned(group=group, detector=detector, visit_plan=plan(group), band="r")


def observation(group: str = "g1", visit: int = VISIT, snap: int = 0) -> Observation:
    return Observation(
        instrument="LSSTCam", group=group, visit=visit, exposure=visit + snap, snap=snap, n_snaps=2,
        image_name=f"MC_O_20260705_{visit % 100_000 + snap:06d}", physical_filter="r_57", band="r", ra=150.0, dec=2.0,
        rotation=0.0, exposure_time=15.0, started=READOUT_ENDED - 36.0, readout_ended=READOUT_ENDED,
    )  # fmt: skip


def raw_ready(detector: int, snap: int, group: str = "g1", visit: int = VISIT) -> RawReady:
    raw = DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=visit + snap, detector=detector)
    return RawReady(group=group, detector=detector, observation=observation(group, visit, snap), raw=raw, sha256="00")


def read_out(ready: RawReady) -> DetectorReadOut:
    return DetectorReadOut(group=ready.group, detector=ready.detector, observation=ready.observation)


def archived(ready: RawReady) -> RawArchived:
    return RawArchived(
        group=ready.group, raw=ready.raw, uri="file:///raw.fits", sha256=ready.sha256, observation=ready.observation
    )


def not_archived(ready: RawReady, reason: str = "the disk is full") -> RawNotArchived:
    return RawNotArchived(group=ready.group, raw=ready.raw, reason=reason)


def differenced(detector: int, group: str = "g1", visit: int = VISIT) -> DiaSourcesReady:
    products = DatasetId(dataset_type="dia_products", instrument="LSSTCam", visit=visit, detector=detector)
    return DiaSourcesReady(
        group=group, instrument="LSSTCam", visit=visit, detector=detector, observation=observation(group, visit),
        count=6, products=products, stages={"isr": 1.0, "subtract": 2.0}, summary={},
    )  # fmt: skip


def alerts_ready(detector: int, group: str = "g1", visit: int = VISIT) -> AlertsReady:
    return AlertsReady(
        group=group, instrument="LSSTCam", visit=visit, detector=detector, readout_ended=READOUT_ENDED, dia_sources=6,
        new_dia_objects=5, alerts=len(LATENCIES), path=f"{visit}_{detector}.avro", stages={"associate": 0.5},
    )  # fmt: skip


def sent(detector: int, group: str = "g1", visit: int = VISIT, reduced: int = 0) -> AlertsSent:
    n = len(LATENCIES)
    return AlertsSent(
        group=group, visit=visit, detector=detector, made=n, sent=n, acknowledged=n, failed={}, reduced=reduced,
        readout_ended=READOUT_ENDED, last_acknowledged=READOUT_ENDED + 60.0,
    )  # fmt: skip


def lite_sent(detector: int, group: str = "g1", visit: int = VISIT) -> LiteAlertsSent:
    return LiteAlertsSent(group=group, visit=visit, detector=detector, sent=len(LATENCIES), failed={})


def not_lite(detector: int, reason: str) -> LiteAlertsSent:
    """Of four alerts, three."""
    return LiteAlertsSent(group="g1", visit=VISIT, detector=detector, sent=1, failed={reason: len(LATENCIES) - 1})


def failed(detector: int, group: str = "g1", reason: str = "no stars") -> DetectorFailed:
    return DetectorFailed(group=group, visit=VISIT, detector=detector, stage="ccd_worker", reason=reason)


def refused_input(offset: int, reason: str = "no JSON") -> InputRefused:
    return InputRefused(topic="nextVisit", partition=0, offset=offset, reason=reason, payload="")


def good_visit(group: str = "g1", visit: int = VISIT) -> list[Event]:
    """All that is told of a visit of two detectors and two snaps that went well."""
    raws = [raw_ready(d, snap, group, visit) for d in DETECTORS for snap in (0, 1)]
    steps = (differenced, alerts_ready, sent, lite_sent)
    ends = [step(d, group, visit) for d in DETECTORS for step in steps]
    start: list[Event] = [plan(group), *(assigned(d, group) for d in DETECTORS)]
    return [
        *start,
        *map(read_out, raws),
        *raws,
        *map(archived, raws),
        *ends,
        VisitDone(group=group, visit=visit, detectors=()),
    ]


@dataclass
class SmallNight:
    """A journal and an L1 database to be filled, and the report of what they hold. `truth`: a folder."""

    truth: Path
    planned: list[str] = field(default_factory=lambda: ["g1"])
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    l1: L1Memory = field(default_factory=L1Memory)

    async def tell(self, facts: Sequence[Event], at: float = READOUT_ENDED) -> None:
        await self.journal.append(facts, {}, at)

    async def store(self, visit: int = VISIT, *, latencies: Sequence[float] = LATENCIES) -> None:
        """Six sources of each detector, four of them alerts; NaN: one that was never acknowledged."""
        for detector in DETECTORS:
            made = result(visit, detector, n=6)
            alerts = made.sources["diaSourceId"][: len(LATENCIES)].astype(np.int64)
            await self.l1.store(replace(made, readout_ended=READOUT_ENDED, alert_ids=alerts), [], READOUT_ENDED)
            await self.l1.mark_sent(visit, detector, READOUT_ENDED + np.array(latencies), {})

    async def collected(self, **changes: Any) -> Collected:
        """With a clock of which a wall second is two of the night."""
        facts = NightFacts(
            night="20260705", began=BEGAN, seed=3, speed=SPEED, planned=self.planned, truth=self.truth, **changes
        )
        return await collect(facts, self.journal, self.l1, NightClock(0.0, 0.0, SPEED))


async def good_night(truth: Path) -> SmallNight:
    night = SmallNight(truth)
    await night.tell(good_visit())
    await night.store()
    return night
