"""Offline processing: what failed promptly, once more, from the archive's raws."""

from collections.abc import Sequence

from actors.base import Actor
from actors.camera_reader import PixelStore
from actors.ccd_worker import products_id, sources_ready
from actors.reduction import Products, Raws, Reduction
from actors.stage_times import StageTimes
from schemas.clock import Clock
from schemas.events import Event, OfflineDue, OfflineFailed
from schemas.instrument import Camera


class Offline(Actor):
    """Redoes a visit-detector as `CcdWorker` does it: from here on it goes the way of all results."""

    def __init__(self, *, camera: Camera, products: Products, raws: Raws, pixels: PixelStore, clock: Clock) -> None:
        self._camera = camera
        self._pixels = pixels
        self._reduction = Reduction(camera=camera, products=products, raws=raws, clock=clock)

    async def on_offline_due(self, event: OfflineDue) -> Sequence[Event]:
        """Raises BadData naming what cannot be used, as it did before."""
        times = StageTimes()
        products = await self._reduction.products_of(event.observation, event.detector, times)
        ready = sources_ready(event.observation, event.detector, products, times, redone=event.redone)
        await self._pixels.put(ready.products, products)
        return [ready]

    async def on_offline_failed(self, event: OfflineFailed) -> Sequence[Event]:
        """Nobody takes what was made of it: free that, before it is redone once more."""
        if event.visit is not None:
            await self._pixels.drop(products_id(self._camera.name, event.visit, event.detector))
        return []
