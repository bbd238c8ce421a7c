"""The store of an inline run; the one on Ray is held to it by the tests of a whole night, but for one that hangs."""

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace

import pytest
import ray

from cluster import pixels as store
from cluster.pixels import KEPT_RAWS, MemoryPixels, RayPixels, Shelf, keep_answering
from schemas.errors import Transient
from schemas.identity import DatasetId


def raw(exposure: int) -> DatasetId:
    return DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=exposure, detector=94)


PRODUCTS = DatasetId(dataset_type="dia_products", instrument="LSSTCam", visit=1, detector=94)


@pytest.fixture
def pixels() -> MemoryPixels:
    return MemoryPixels()


async def test_what_is_put_is_got_uncopied_under_an_equal_name(pixels: MemoryPixels) -> None:
    value = object()
    await pixels.put(raw(5), value)
    assert await pixels.get(raw(5)) is value
    assert await pixels.get(raw(5)) is value


async def test_what_was_never_put_is_none(pixels: MemoryPixels) -> None:
    assert await pixels.get(raw(5)) is None


async def test_what_is_dropped_is_gone_and_may_be_dropped_again(pixels: MemoryPixels) -> None:
    await pixels.put(PRODUCTS, 1)
    await pixels.drop(PRODUCTS)
    await pixels.drop(PRODUCTS)
    assert await pixels.get(PRODUCTS) is None


async def test_a_name_put_again_holds_the_newer_value(pixels: MemoryPixels) -> None:
    await pixels.put(raw(5), 1)
    await pixels.put(raw(5), 2)
    assert await pixels.get(raw(5)) == 2


async def test_the_oldest_raws_make_room_for_newer_ones_and_products_stay(pixels: MemoryPixels) -> None:
    await pixels.put(PRODUCTS, "kept")
    for exposure in range(KEPT_RAWS + 3):
        await pixels.put(raw(exposure), exposure)
    held = [await pixels.get(raw(exposure)) for exposure in range(KEPT_RAWS + 3)]
    assert held == [None, None, None, *range(3, KEPT_RAWS + 3)]
    assert await pixels.get(PRODUCTS) == "kept"


class Method:
    """As a handle's: what it is to answer, one after another; None: nothing, ever."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def remote(self, *_: object) -> Awaitable[object]:
        return self._answer(self.answers.pop(0) if self.answers else None)

    async def _answer(self, answer: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return await asyncio.Event().wait() if answer is None else answer


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One that hangs, and what is killed."""
    handle = SimpleNamespace(collect=Method(), find=Method(), drop=Method(), pid=Method(), killed=[])
    monkeypatch.setattr(store, "DEADLINE_S", 0.05)
    monkeypatch.setattr(store, "LOOK_S", 0.0)
    monkeypatch.setattr(ray, "get_actor", lambda _: handle)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=None))
    monkeypatch.setattr(ray, "kill", lambda actor, *, no_restart: actor.killed.append(no_restart))
    return handle


@pytest.mark.usefixtures("shelf")
async def test_a_store_that_hangs_takes_nothing_holds_nothing_and_holds_up_nobody() -> None:
    held = RayPixels()
    async with asyncio.timeout(5.0):
        with pytest.raises(Transient, match="not handed to the pixel store"):
            await held.put(raw(5), 1)
        assert await held.get(raw(5)) is None
        await held.drop(raw(5))
    assert held.leaving == {}


async def test_a_store_that_hangs_is_killed_and_given_time_to_start(
    shelf: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "START_S", 0.5)
    shelf.pid.answers = [7, 7]
    loop, killed = asyncio.get_running_loop(), asyncio.Queue[float]()
    monkeypatch.setattr(ray, "kill", lambda *_, **__: loop.call_soon_threadsafe(killed.put_nowait, loop.time()))
    keeping = asyncio.create_task(keep_answering(shelf))
    async with asyncio.timeout(20.0):
        first, second = await killed.get(), await killed.get()
    keeping.cancel()
    assert second - first >= 0.5


async def test_a_store_that_has_died_is_left_to_ray(shelf: SimpleNamespace) -> None:
    shelf.pid.answers = [7, ray.exceptions.ActorDiedError(), ray.exceptions.ActorUnavailableError("starts", None), 8]
    keeping = asyncio.create_task(keep_answering(shelf))
    async with asyncio.timeout(20.0):
        while shelf.pid.answers:
            assert shelf.killed == []
            await asyncio.sleep(0)
    keeping.cancel()


class Maker:
    """An actor's handle; its references are the visits of what it hands over. `there`: whether it has it, or dies."""

    def __init__(self, there: object = True) -> None:
        self.hand_over = self
        self._there = there

    def options(self, *, num_returns: int) -> "Maker":
        assert num_returns == 2
        return self

    def remote(self, name: DatasetId) -> tuple[str, Awaitable[object]]:
        return str(name.visit), Method(self._there).remote()


@pytest.mark.parametrize("answer", [False, ray.exceptions.ActorDiedError(), KeyError("left")])
async def test_a_value_that_its_maker_has_no_more_is_not_held_and_replaces_none(
    answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ray.experimental, "get_object_locations", lambda refs: {ref: {"object_size": 1} for ref in refs}
    )
    shelf = Shelf(100)
    if isinstance(answer, KeyError):
        answer = ray.exceptions.RayTaskError("hand_over", "KeyError", answer)
    assert not await shelf.collect(PRODUCTS, Maker(answer))
    assert await shelf.find(PRODUCTS) == []
    assert await shelf.collect(PRODUCTS, Maker())
    assert not await shelf.collect(PRODUCTS, Maker(answer))
    assert await shelf.find(PRODUCTS) == ["1"]


async def test_products_that_nobody_takes_make_room_for_newer_ones_by_their_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {"1": 60, "2": 30, "3": 10, "4": 5, "5": 200}
    told = {visit: {"object_size": size} for visit, size in sizes.items()}
    monkeypatch.setattr(ray.experimental, "get_object_locations", lambda refs: {ref: told[ref] for ref in refs})
    shelf, maker = Shelf(100), Maker()
    names = {visit: PRODUCTS.model_copy(update={"visit": int(visit)}) for visit in sizes}

    async def held() -> str:
        return "".join([visit for visit, name in names.items() if await shelf.find(name)])

    for visit, left in (("1", "1"), ("2", "12"), ("3", "123"), ("1", "123"), ("4", "134"), ("5", "5")):
        assert await shelf.collect(names[visit], maker)
        assert await held() == left
