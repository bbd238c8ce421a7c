"""What a process of the system must know: addresses, folders, the camera, the night's clock.

Values come from the command line, else from the environment (`PACHON_KAFKA`, ...), else from the defaults.
"""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.instrument import Camera, camera


class Settings(BaseSettings):
    """Frozen, and small enough to be handed to every process."""

    model_config = SettingsConfigDict(env_prefix="PACHON_", frozen=True, extra="forbid")

    output: Path
    instrument: str = "LSSTCam"
    detectors: tuple[int, ...] = ()
    kafka: str = ""
    registry: str = ""
    postgres: str = ""
    daq: str = ""
    workers: int = 2
    hand_over_after: float = 60.0
    max_host_gb: float = 8.0
    alert_topic: str = "lsst-alerts-v11"

    @property
    def camera(self) -> Camera:
        """The focal plane."""
        return camera(self.instrument)

    @property
    def lite_topic(self) -> str:
        """Where alerts go without history and cutouts."""
        return f"{self.alert_topic}-lite"

    @property
    def visit_topic(self) -> str:
        """Where brokers are told what begins and ends, what each visit made, and what is withdrawn."""
        return f"{self.alert_topic}-visits"

    @property
    def clock_file(self) -> Path:
        """Where the night's clock is kept, once it runs: a restarted process goes on in the same night."""
        return self.output / "clock.json"

    @property
    def plan_file(self) -> Path:
        """What the simulated observatory will do."""
        return self.output / "plan.json"

    @property
    def process_file(self) -> Path:
        """The ids of the processes that a night runs in, by name: for who watches them, or stops one on purpose."""
        return self.output / "processes.json"

    @property
    def join_file(self) -> Path:
        """Where the night's Ray is, while it may be joined by batch runs."""
        return self.output / "join.json"

    @property
    def ray_file(self) -> Path:
        """What the driver sees of the Ray cluster."""
        return self.output / "ray.json"

    @property
    def fault_file(self) -> Path:
        """What is to go wrong in the night; mostly nothing."""
        return self.output / "faults.json"

    @property
    def injected_file(self) -> Path:
        """Which faults of processes were injected, and when."""
        return self.output / "faults.jsonl"

    @property
    def witness_file(self) -> Path:
        """What somebody saw who read the topic of alerts beside the night."""
        return self.output / "witness.jsonl"

    @property
    def butler(self) -> Path:
        """The Data Butler's repository."""
        return self.output / "butler"

    @property
    def alerts(self) -> Path:
        """The alert archive."""
        return self.output / "alerts"

    @property
    def truth(self) -> Path:
        """What the simulator put into each exposure."""
        return self.output / "truth"

    @property
    def log(self) -> Path:
        """The one structured log: JSON lines of every process."""
        return self.output / "log.jsonl"
