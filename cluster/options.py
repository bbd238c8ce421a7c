"""What `pachon night` was asked for, checked before anything is started."""

import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import BadData
from schemas.instrument import camera

MB_PER_RAW = 45
MB_PER_CALIBRATION = 200
MB_PER_TEMPLATE = 420
"""Of a detector's footprint."""


class NightOptions(BaseModel):
    """The command's options; see `pachon night --help`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    visits: int = Field(6, ge=1, le=2000)
    detectors: str = "R22_S00,R22_S01,R22_S10,R22_S11"
    instrument: str = "LSSTCam"
    cadence: float | None = Field(None, gt=0)
    snaps: int | None = Field(None, ge=1, le=4)
    speed: float = Field(1.0, gt=0, le=1000)
    seed: int = Field(1, ge=0)
    schedule: str = "own"
    output: Path
    inline: bool = False
    kafka: str = ""
    registry: str = ""
    postgres: str = ""
    ray_address: str = ""
    workers: int = Field(2, ge=1, le=1000)
    kafka_port: int = Field(0, ge=0, le=65535)
    registry_port: int = Field(0, ge=0, le=65535)
    metrics_port: int = Field(0, ge=0, le=65535)
    linger: float = Field(3.0, ge=0)
    hand_over_after: float = Field(60.0, ge=0)
    fault: str = ""

    def chosen_detectors(self) -> tuple[int, ...]:
        """Ids of the detectors. Raises BadData for a name that the camera lacks."""
        return tuple(d.id for d in camera(self.instrument).select(self.detectors))


def make_output(options: NightOptions, visits: int, snaps: int) -> None:
    """Create the output folder. Raises BadData if it cannot be written, or its disk lacks the space."""
    detectors = len(options.chosen_detectors())
    need_mb = detectors * (visits * snaps * MB_PER_RAW + MB_PER_CALIBRATION + MB_PER_TEMPLATE)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / ".writable").touch()
        (options.output / ".writable").unlink()
        free_mb = shutil.disk_usage(options.output).free // 2**20
    except OSError as error:
        raise BadData(f"the output folder {options.output} cannot be written: {error.strerror}") from error
    if free_mb < need_mb:
        raise BadData(f"{options.output} has {free_mb} MB free; this night needs about {need_mb} MB")
