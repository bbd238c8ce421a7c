"""What a batch run was asked for."""

from enum import IntEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Priority(IntEnum):
    """Who goes first; prompt processing, before all of them, is not batch."""

    OFFLINE = 1
    OCS = 2
    ACCESS = 3
    CALIBRATION = 4
    RELEASE = 5


class Needs(BaseModel):
    """What a quantum needs. `memory_mb`: resident, beyond which its process ends itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int = Field(1, ge=1)
    memory_mb: int = Field(2048, ge=64)
    deadline_s: float = Field(3600.0, gt=0)


class OnCluster(BaseModel):
    """Where a run is executed. `ray_address`: a cluster that runs; default: one of its own on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    priority: Priority = Priority.RELEASE
    ray_address: str = ""
    night: Path | None = None
    """Folder of a night whose Ray is used while it runs."""
    slots: int = Field(0, ge=0)
    """CPUs to use at most; 0: all of them."""


class BatchRequest(OnCluster):
    """A pipeline over a Butler repository. `settings`: `label:option=value`, as pipe_base's own commands take them.

    `python_path`: where workers find PipelineTasks that are not installed. `needs`: by label.
    """

    butler: Path
    pipeline: str
    inputs: tuple[str, ...] = Field(min_length=1)
    output: str = Field(min_length=1)
    where: str = ""
    settings: tuple[str, ...] = ()
    skip_existing: bool = False
    """Whether what `output` has of earlier runs is read, and not made again."""
    needs: dict[str, Needs] = {}
    python_path: tuple[str, ...] = ()

    def needs_of(self, label: str) -> Needs:
        """Of a step of the pipeline."""
        return self.needs.get(label, Needs())
