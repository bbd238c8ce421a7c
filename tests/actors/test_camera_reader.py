from collections.abc import Callable

import numpy as np
import pytest

from actors.camera_reader import CameraReader, raw_id, raw_of
from backbone.daq_client import FlightDaq
from cluster.pixels import MemoryPixels
from cluster.services import free_port
from schemas.errors import BadData, Transient
from schemas.events import DetectorReadOut, RawReady
from schemas.identity import DatasetId
from schemas.image import Observation, Raw
from tests.actors.fakes import FakeDaq, FullPixels, raw

Observed = Callable[..., Observation]


@pytest.fixture
def read_out(observation: Observed) -> DetectorReadOut:
    return DetectorReadOut(group="g1", detector=94, observation=observation(snap=1))


async def test_a_raw_is_put_into_the_store_and_told_by_name_and_checksum(read_out: DetectorReadOut) -> None:
    pixels, expected = MemoryPixels(), raw(read_out.observation, 94)
    (ready,) = await CameraReader(daq=FakeDaq(), pixels=pixels).react(read_out)
    name = DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=2026070500002, detector=94)
    assert ready == RawReady(
        group="g1", detector=94, observation=read_out.observation, raw=name, sha256=expected.sha256
    )
    held = await pixels.get(name)
    assert isinstance(held, Raw)
    assert np.array_equal(held.segments, expected.segments)


async def test_a_new_reader_says_the_same_of_the_same_readout(read_out: DetectorReadOut) -> None:
    daq, pixels = FakeDaq(), MemoryPixels()
    first = await CameraReader(daq=daq, pixels=pixels).react(read_out)
    second = await CameraReader(daq=daq, pixels=pixels).react(read_out)
    assert first == second
    assert [e.event_id for e in first] == [e.event_id for e in second]


async def test_short_pixels_are_bad_data_and_leave_nothing_in_the_store(read_out: DetectorReadOut) -> None:
    daq, pixels = FakeDaq(short={read_out.observation.exposure}), MemoryPixels()
    with pytest.raises(BadData, match="MC_O_20260705_000002 detector 94: 8 of 16 amplifiers"):
        await CameraReader(daq=daq, pixels=pixels).react(read_out)
    assert await pixels.get(raw_id(read_out.observation, 94)) is None


async def test_a_daq_that_is_not_there_is_transient_and_named(read_out: DetectorReadOut) -> None:
    address = f"grpc://127.0.0.1:{free_port()}"
    with pytest.raises(Transient, match=f"MC_O_20260705_000002 detector 94: the DAQ at {address} does not answer"):
        await CameraReader(daq=FlightDaq(address), pixels=MemoryPixels()).react(read_out)


async def test_a_store_that_takes_nothing_is_transient_and_named(read_out: DetectorReadOut) -> None:
    with pytest.raises(Transient, match="raw/LSSTCam/2026070500002/94"):
        await CameraReader(daq=FakeDaq(), pixels=FullPixels()).react(read_out)


async def test_held_pixels_are_taken_from_the_store_without_asking_the_camera(observation: Observed) -> None:
    daq, pixels, seen = FakeDaq(dead=True), MemoryPixels(), observation()
    held = raw(seen, 94)
    await pixels.put(raw_id(seen, 94), held)
    assert await raw_of(pixels, daq, seen, 94) is held
    assert daq.reads == []


async def test_pixels_gone_from_the_store_are_fetched_from_the_camera_again(observation: Observed) -> None:
    daq, seen = FakeDaq(), observation()
    again = await raw_of(MemoryPixels(), daq, seen, 94)
    assert np.array_equal(again.segments, raw(seen, 94).segments)
    assert daq.reads == [(seen.exposure, 94)]
