"""What the processes of the associator and of the emitters do before the first visit."""

from cluster.rehearsal import rehearse_alerts
from schemas.events import AlertsReady, AlertsSent, LiteAlertsSent
from schemas.image import Observation
from schemas.instrument import camera
from tests.actors.association_place import N_ALERTS, STARTED, VISIT, products

LAST = Observation(
    instrument="LSSTCam", group="g1", visit=VISIT, exposure=VISIT + 1, snap=1, n_snaps=2,
    image_name="MC_O_20260705_000002", physical_filter="r_57", band="r", ra=150.0, dec=2.2, rotation=0.0,
    exposure_time=15.0, started=STARTED + 18.0, readout_ended=STARTED + 36.0,
)  # fmt: skip


async def test_a_rehearsal_goes_all_the_way_to_the_last_lite_alert() -> None:
    made = products()
    for part in (made.difference.pixels, made.science.pixels):
        part.image.flags.writeable = False  # as it comes from Ray's object store
    ready, sent, lite = await rehearse_alerts(camera("LSSTCam"), 94, LAST, made)
    assert isinstance(ready, AlertsReady)
    assert isinstance(sent, AlertsSent)
    assert isinstance(lite, LiteAlertsSent)
    assert ready.alerts == sent.acknowledged == lite.sent == N_ALERTS
