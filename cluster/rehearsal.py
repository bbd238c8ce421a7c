"""A visit's alerts made and thrown away: what has to be compiled and loaded is, before a visit waits for it."""

import tempfile
from pathlib import Path

from actors.alert_emitter import AlertEmitter
from actors.associator import Associator
from actors.lite_emitter import LiteEmitter
from backbone.alert_archive import AlertArchive
from backbone.alert_spool import AlertSpool
from backbone.journal import MemoryJournal
from backbone.l1_memory import L1Memory
from cluster.pixels import MemoryPixels
from payloads.alert_production.alert_schema import alert_schema
from schemas.clock import ManualClock
from schemas.events import AssociationDue, DiaSourcesReady, Event
from schemas.identity import DatasetId
from schemas.image import DiaProducts, Observation
from schemas.instrument import Camera


async def rehearse_alerts(camera: Camera, detector: int, last: Observation, products: DiaProducts) -> list[Event]:
    """Associate a visit-detector and send its alerts, with all that is kept in memory or in a folder of its own.

    `last`: the observation of its last snap. Returns what the actors said: `AlertsReady`, `AlertsSent` and
    `LiteAlertsSent`.
    """
    l1, pixels, clock = L1Memory(), MemoryPixels(), ManualClock(last.readout_ended)
    with tempfile.TemporaryDirectory(prefix="pachon-rehearsal-") as folder:
        archive = AlertArchive(Path(folder), alert_schema())
        associator = Associator(
            camera=camera, l1=l1, archive=archive, pixels=pixels, chronicle=MemoryJournal(), clock=clock
        )
        due = _due(detector, last, len(products.sources))
        await pixels.put(due.sources.products, products)
        (ready,) = await associator.react(due)
        whole, short = (AlertSpool(Path(folder) / name, clock) for name in ("whole.spool", "lite.spool"))
        (sent,) = await AlertEmitter(l1=l1, archive=archive, sink=whole).react(ready)
        (lite,) = await LiteEmitter(l1=l1, archive=archive, sink=short).react(sent)
    return [ready, sent, lite]


def _due(detector: int, last: Observation, count: int) -> AssociationDue:
    name = DatasetId(dataset_type="dia_products", instrument=last.instrument, visit=last.visit, detector=detector)
    told = DiaSourcesReady(
        group=last.group, instrument=last.instrument, visit=last.visit, detector=detector, observation=last,
        count=count, products=name, stages={}, summary={},
    )  # fmt: skip
    return AssociationDue(group=last.group, visit=last.visit, detector=detector, sources=told)
