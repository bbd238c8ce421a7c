"""What offline processing leaves behind; what it makes is held to a prompt night by a whole one."""

from collections.abc import Callable

import pytest

from actors.camera_reader import raw_of
from actors.offline import Offline
from cluster.pixels import MemoryPixels
from payloads.alert_production import pipeline
from schemas.clock import ManualClock
from schemas.events import DiaSourcesReady, OfflineDue, OfflineFailed
from schemas.image import Observation, Raw
from tests.actors.fakes import FakeDaq
from tests.actors.test_ccd_worker import CAMERA, FORM, NOW, VISIT, Processing, Shelves


class Archived:
    """Raws, as an archive has them."""

    async def read(self, observation: Observation, detector: int) -> Raw:
        return await raw_of(MemoryPixels(), FakeDaq(FORM.raw_shape), observation, detector)


async def test_what_was_made_of_a_visit_detector_that_failed_again_is_freed(
    observation: Callable[..., Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "process_visit", Processing())
    pixels = MemoryPixels()
    offline = Offline(camera=CAMERA, products=Shelves(), raws=Archived(), pixels=pixels, clock=ManualClock(NOW))
    due = OfflineDue(
        group="g1", redone=1, visit=VISIT, detector=94, observation=observation("g1", VISIT, 1), reason="overload"
    )
    (made,) = await offline.react(due)
    assert isinstance(made, DiaSourcesReady)
    assert await pixels.get(made.products) is not None
    failed = OfflineFailed(group="g1", redone=1, visit=VISIT, detector=94, stage="associator", reason="bad rows")
    assert await offline.react(failed) == []
    assert await pixels.get(made.products) is None
