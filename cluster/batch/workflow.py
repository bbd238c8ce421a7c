"""A run that is made of command lines: jobs, what each needs, and which must be done before which."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from cluster.batch.request import Needs, OnCluster


class Job(BaseModel):
    """A command line for bash, in which `<ENV:X>` stands for the worker's environment variable X.

    `log`: its output, within the run's folder. `final_exits`: exit codes after which it is not repeated.
    `memory_growth`: by which its memory is multiplied, up to `memory_max_mb`, when it needed more than it had.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    command: str
    log: str
    environment: dict[str, str] = {}
    needs: Needs = Needs()
    memory_growth: float = 1.0
    memory_max_mb: int | None = None
    retries: int = 0
    final_exits: tuple[int, ...] = ()
    priority: int = 0


class Workflow(OnCluster):
    """Jobs, each after those that it needs; `edges`: pairs of names, the first before the second.

    `loose`: pairs of which the first must have ended before the second, whatever became of it.
    `final`: a job after all others, whatever became of them. `folder`: where commands are started.
    `about`: what the submitter says of the run.
    """

    name: str
    folder: Path
    jobs: tuple[Job, ...]
    edges: tuple[tuple[str, str], ...]
    loose: tuple[tuple[str, str], ...] = ()
    final: Job | None = None
    about: dict[str, str] = Field(default_factory=dict)
    python_path: tuple[str, ...] = ()

    @property
    def every(self) -> tuple[Job, ...]:
        """Also the final one."""
        return self.jobs if self.final is None else (*self.jobs, self.final)
