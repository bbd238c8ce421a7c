"""The DAQ as it runs: a process of its own, asked over the loopback."""

import hashlib
import json
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import flight

from schemas.clock import NightClock
from schemas.image import Observation
from simulators.camera.exposure import FocalPlane, Recipe
from simulators.sky.sky import Sky
from tests.simulators.camera.conftest import STARTED, exposed, wait_until

ROOT = Path(__file__).parents[3]
SEED, DETECTORS = 11, "93,94"
SPEED = 40.0
PATIENCE_S = 120.0


class Daq:
    """A DAQ process and a client of it."""

    def __init__(
        self, folder: Path, clock: NightClock, *, detectors: str = DETECTORS, instrument: str = "LSSTCam"
    ) -> None:
        self.folder = folder
        self.clock = clock
        arguments = ["--port", "0", "--seed", str(SEED), "--instrument", instrument, "--detectors", detectors]
        arguments += [
            "--clock",
            json.dumps(asdict(clock)),
            "--buffer",
            str(folder / "buffer"),
            "--truth",
            str(folder / "truth"),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulators.camera.daq", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], PATIENCE_S)[0], "the DAQ said nothing"
        word, port = self.process.stdout.readline().split()
        assert word == "ready"
        self.client = flight.connect(f"grpc://127.0.0.1:{port}")

    def do(self, action: str, body: object = None) -> dict[str, float]:
        results = list(self.client.do_action(flight.Action(action, json.dumps(body).encode())))
        answer: dict[str, float] = json.loads(results[0].body.to_pybytes())
        return answer

    def expose(self, observation: Observation) -> None:
        self.do("expose", asdict(observation))

    def get(self, exposure: int, detector: int, deadline_s: float = PATIENCE_S) -> pa.Table:
        ticket = {"exposure": exposure, "detector": detector, "deadline_s": deadline_s}
        options = flight.FlightCallOptions(timeout=deadline_s + 20.0)
        return self.client.do_get(flight.Ticket(json.dumps(ticket)), options).read_all()

    def end(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30.0)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def segments_of(table: pa.Table) -> np.ndarray:
    parts = [
        pixels.values.to_numpy().reshape(rows.as_py(), columns.as_py())
        for rows, columns, pixels in zip(table["rows"], table["columns"], table["pixels"], strict=True)
    ]
    return np.stack(parts)


@pytest.fixture(scope="module")
def daq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daq]:
    server = Daq(tmp_path_factory.mktemp("daq"), NightClock.starting(STARTED, speed=SPEED))
    server.expose(exposed(0))
    server.expose(exposed(1))
    yield server
    server.do("faults", [])
    assert server.end() == 0


def test_the_pixels_are_the_camera_s_and_their_checksum_is_right(daq: Daq) -> None:
    table = daq.get(exposed().exposure, 94)
    assert table["amplifier"].to_pylist() == list(range(16))
    segments = segments_of(table)
    assert segments.shape == (16, 2048, 576)
    assert segments.dtype == np.int32
    assert table.schema.metadata[b"sha256"].decode() == hashlib.sha256(segments.data).hexdigest()
    assert Observation(**json.loads(table.schema.metadata[b"observation"])) == exposed()
    plane, recipe = FocalPlane(SEED, "LSSTCam", Sky(SEED)), Recipe(exposed(), exposed().midpoint)
    np.testing.assert_array_equal(segments, plane.segments(recipe, 94, plane.charge(recipe, 94)))


def test_truth_lies_beside_the_pixels(daq: Daq) -> None:
    daq.get(exposed(1).exposure, 93)
    path = daq.folder / "truth" / f"{exposed(1).exposure}-093.parquet"
    table = pq.read_table(path)
    assert table.num_rows > 1000
    assert {"id", "x", "y", "snr", "usable"} <= set(table.column_names)


def test_a_flat_is_served_too_and_has_no_truth_of_the_sky(daq: Daq) -> None:
    flat = replace(exposed(visit=2026070500040), image_type="flat", exposure_time=1.0)
    daq.expose(flat)
    table = daq.get(flat.exposure, 94)
    assert json.loads(table.schema.metadata[b"observation"])["image_type"] == "flat"
    assert np.median(segments_of(table)[:, :2000, 20:500]) > 30_000
    assert not list((daq.folder / "truth").glob(f"{flat.exposure}-*"))


def test_pixels_come_when_the_readout_has_ended(daq: Daq) -> None:
    observation = replace(
        exposed(visit=2026070500010), started=daq.clock.now(), readout_ended=daq.clock.now() + 2.0 * SPEED
    )
    daq.expose(observation)
    started = monotonic()
    with pytest.raises(flight.FlightTimedOutError, match=r"no pixels of exposure 2026070500010 detector 94 in 0\.3 s"):
        daq.get(observation.exposure, 94, 0.3)
    assert 0.2 < monotonic() - started < 1.5
    assert daq.get(observation.exposure, 94).num_rows == 16
    assert daq.clock.now() >= observation.readout_ended


def test_what_the_buffer_does_not_hold_is_refused_by_name(daq: Daq) -> None:
    with pytest.raises(pa.ArrowKeyError, match="exposure 2026070500004 detector 7"):
        daq.get(exposed().exposure, 7)
    with pytest.raises(pa.ArrowKeyError, match="exposure 1 detector 94"):
        daq.get(1, 94)


def test_a_silent_detector_keeps_its_client_until_the_deadline(daq: Daq) -> None:
    daq.do("faults", [{"detector": 93, "exposure": None, "fault": "silent"}])
    started = monotonic()
    with pytest.raises(flight.FlightTimedOutError, match="detector 93"):
        daq.get(exposed().exposure, 93, 0.4)
    assert monotonic() - started >= 0.4
    assert daq.get(exposed().exposure, 94).num_rows == 16
    daq.do("faults", [])
    assert daq.get(exposed().exposure, 93).num_rows == 16


def test_a_short_detector_sends_half_and_a_corrupt_one_lies(daq: Daq) -> None:
    daq.do(
        "faults",
        [
            {"detector": 93, "exposure": exposed().exposure, "fault": "short"},
            {"detector": 94, "exposure": None, "fault": "corrupt"},
        ],
    )
    assert daq.get(exposed().exposure, 93).num_rows == 8
    assert daq.get(exposed(1).exposure, 93).num_rows == 16
    table = daq.get(exposed().exposure, 94)
    assert table.schema.metadata[b"sha256"].decode() != hashlib.sha256(segments_of(table).data).hexdigest()
    daq.do("faults", [])


def test_nonsense_is_refused_and_serving_goes_on(daq: Daq) -> None:
    with pytest.raises(pa.ArrowInvalid, match="expose"):
        daq.do("expose", {"exposure": "?"})
    with pytest.raises(pa.ArrowInvalid, match="this is LSSTCam, not LATISS"):
        daq.expose(exposed(instrument="LATISS", visit=2026070500020))
    with pytest.raises(pa.ArrowInvalid, match="faults"):
        daq.do("faults", [{"detector": 1, "exposure": None, "fault": "explode"}])
    with pytest.raises(pa.ArrowKeyError, match="no action 'launch'"):
        daq.do("launch")
    with pytest.raises(pa.ArrowInvalid, match="ticket"):
        daq.client.do_get(flight.Ticket(b"{}")).read_all()
    assert daq.do("health")["exposures"] >= 2


def test_a_server_started_again_holds_what_the_last_one_held(daq: Daq) -> None:
    listed = {json.loads(info.descriptor.command)["exposure"] for info in daq.client.list_flights()}
    again = Daq(daq.folder, daq.clock, detectors="94")
    flights = list(again.client.list_flights())
    assert {json.loads(info.descriptor.command)["exposure"] for info in flights} == listed
    told = [json.loads(info.app_metadata) for info in flights]
    assert all(entry["detectors"] == [93, 94] for entry in told)
    assert exposed() in [Observation(**entry["observation"]) for entry in told]
    assert all(info.total_bytes == 2 * 16 * 2048 * 576 * 4 for info in flights)
    one, two = (server.get(exposed().exposure, 94) for server in (daq, again))
    assert one.schema.metadata[b"sha256"] == two.schema.metadata[b"sha256"]
    assert again.end() == 0


def test_it_ends_in_order_while_a_client_waits(tmp_path: Path) -> None:
    server = Daq(tmp_path, NightClock.starting(STARTED, speed=0.01), detectors="0", instrument="LATISS")
    server.expose(exposed(instrument="LATISS"))
    told: list[Exception] = []

    def wait_for_pixels() -> None:
        with pytest.raises(flight.FlightUnavailableError, match="shutting down") as caught:
            server.get(exposed().exposure, 0)
        told.append(caught.value)

    reader = threading.Thread(target=wait_for_pixels)
    reader.start()
    wait_until(lambda: server.do("health")["waiting_clients"] == 1)
    server.process.send_signal(signal.SIGTERM)
    reader.join(30.0)
    assert len(told) == 1
    assert server.process.wait(30.0) == 0
    server.end()


def test_a_cut_network_leaves_the_observatory_heard_and_readers_out(daq: Daq) -> None:
    now = daq.clock.now()
    daq.do("faults", [{"since": now - 1.0, "until": now + 3600.0}])
    with pytest.raises(flight.FlightUnavailableError, match="the network to the camera is cut"):
        daq.get(exposed().exposure, 94)
    with pytest.raises(flight.FlightUnavailableError, match="the network to the camera is cut"):
        list(daq.client.list_flights())
    daq.expose(exposed(0))
    daq.do("faults", [{"since": now - 2.0, "until": now - 1.0}])
    assert daq.get(exposed().exposure, 94).num_rows == 16


def test_a_broken_detector_is_sent_with_the_checksum_of_its_pixels(daq: Daq) -> None:
    daq.do("faults", [{"detector": 93, "exposure": exposed().exposure, "fault": "dark"}])
    table = daq.get(exposed().exposure, 93)
    segments = segments_of(table)
    assert not segments.any()
    assert table.schema.metadata[b"sha256"].decode() == hashlib.sha256(segments.data).hexdigest()
    daq.do("faults", [])
