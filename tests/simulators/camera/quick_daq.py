"""The camera's server in this process, with pixels that are made at once: noise, by exposure and detector."""

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
from pyarrow import flight

from schemas.clock import Clock
from schemas.image import Observation
from schemas.instrument import camera
from simulators.camera.buffer import Raster
from simulators.camera.daq import DaqServer
from simulators.camera.exposure import FocalPlane
from simulators.camera.sensor import Segments
from simulators.sky.sky import Sky


@cache
def pixels(exposure: int, detector: int) -> Segments:
    rng = np.random.default_rng([exposure, detector])
    amplifiers, rows, columns = camera("LSSTCam")[detector].format.raw_shape
    noise = rng.integers(1500, 1700, (rows, columns), dtype=np.int32)
    segments: Segments = noise + np.arange(amplifiers, dtype=np.int32)[:, None, None]
    return segments


class QuickDaq(DaqServer):
    """All of the server but the sky."""

    def __init__(self, folder: Path, detectors: tuple[int, ...], clock: Clock, port: int = 0) -> None:
        plane = FocalPlane(1, "LSSTCam", Sky(1))
        location, truth = f"grpc://127.0.0.1:{port}", folder / "truth"
        super().__init__(location, plane, detectors, clock, folder / "buffer", truth, faults=[])
        self.address = f"grpc://127.0.0.1:{self.port}"
        self.detectors = detectors

    def expose(self, observation: Observation, detectors: tuple[int, ...] = ()) -> None:
        """Open the shutter; `detectors`: other ones than the server's."""
        self._catalogue.add(observation, detectors or self.detectors, self._clock.now())

    def play(self, faults: dict[int, str]) -> None:
        """Detector -> what goes wrong with it."""
        self._tell([{"detector": detector, "exposure": None, "fault": fault} for detector, fault in faults.items()])

    def cut(self, since: float, until: float) -> None:
        """Nobody who reads can reach it meanwhile (TAI s)."""
        self._tell([{"since": since, "until": until}])

    def _tell(self, told: list[dict[str, object]]) -> None:
        list(flight.connect(self.address).do_action(flight.Action("faults", json.dumps(told).encode())))

    def _render(self, exposure: int, detector: int) -> Raster:
        segments = pixels(exposure, detector)
        return Raster(segments, hashlib.sha256(segments.data).hexdigest())
