"""The OCPS's life as a SAL component: its state, on disk before it is told, and what it tells of itself."""

import asyncio
from importlib.metadata import version
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict

from backbone.csc import LIFE, State, state_after
from backbone.ocps import (
    CONFIGURATION_APPLIED,
    CONFIGURATIONS_AVAILABLE,
    ERROR_CODE,
    SOFTWARE_VERSIONS,
    SUMMARY_STATE,
    Ack,
    Command,
    OcpsWriter,
    Record,
    Start,
    checked,
)
from cluster.ocps_jobs import REFUSED, Outcome, read, write
from cluster.ocps_request import OcpsOptions, pipelines
from schemas.errors import BadData, Transient

_BEAT_S = 1.0

_log = structlog.get_logger()


class _Kept(BaseModel):
    """`after`: the job of the command that led here. `error`: why it is in fault."""

    model_config = ConfigDict(frozen=True)

    state: State
    after: str = ""
    error: str = ""


class Life:
    """A service takes up the state of the one before it, unless that had ended, or it is told where to begin."""

    def __init__(self, options: OcpsOptions, writer: OcpsWriter) -> None:
        self._options, self._writer = options, writer
        self._path = options.runs / ".state.json"
        self._kept = _first(options.state, self._path)

    @property
    def state(self) -> State:
        """The summary state."""
        return self._kept.state

    def judged(self, command: Command, record: Record) -> Outcome | None:
        """How a command ends, as far as the state decides it: one of its life, or one that is not allowed now.

        The state has changed, on disk, when this returns. A command that led to it is not taken amiss a second time:
        a service may die before it has noted more of it.
        """
        if command.job_id == self._kept.after:
            return _done()
        try:
            state = state_after(command.name, self.state)
            if command.name == "start":
                self._configure(checked(Start, record))
        except BadData as error:
            return Outcome(ack=Ack.FAILED, error=REFUSED, exit_code=1, result=f"Failed: {error}")
        if command.name not in LIFE:
            return None
        self._keep(_Kept(state=state, after=command.job_id))
        return _done()

    async def begin(self) -> None:
        """Tell all there is to tell, for those who come later too: topics keep what was told last."""
        self._keep(self._kept)
        await self._writer.event(
            SOFTWARE_VERSIONS,
            cscVersion=version("pachon"),
            subsystemVersions=f"lsst-pipe-base={version('lsst-pipe-base')}",
        )
        await self._tell_configuration(CONFIGURATIONS_AVAILABLE)
        await self._tell_error()
        await self.tell()

    async def tell(self) -> None:
        """Tell the state, and first what changed with it."""
        if self.state in {State.DISABLED, State.ENABLED}:
            await self._tell_configuration(CONFIGURATION_APPLIED)
        if self.state is State.STANDBY:
            await self._tell_configuration(CONFIGURATIONS_AVAILABLE)
            await self._tell_error()
        await self._writer.event(SUMMARY_STATE, summaryState=int(self.state))

    async def fault(self, report: str) -> None:
        """Tell that it cannot work until somebody has mended that, said `standby`, and begun anew."""
        self._keep(_Kept(state=State.FAULT, error=report))
        await self._tell_error()
        await self.tell()

    async def beat(self) -> None:
        """Tell once a second that it is there; for ever."""
        while True:
            try:
                await self._writer.heartbeat()
            except Transient as error:
                _log.debug("heartbeat not taken", error=str(error))
            await asyncio.sleep(_BEAT_S)

    def _configure(self, asked: Start) -> None:
        if asked.configuration_override:
            raise BadData(f"there is no configuration {asked.configuration_override!r}: the command line has it all")
        check(self._options)

    async def _tell_configuration(self, topic: str) -> None:
        await self._writer.event(topic, version=version("pachon"), url=self._options.pipelines.as_uri())

    async def _tell_error(self) -> None:
        await self._writer.event(ERROR_CODE, errorCode=int(bool(self._kept.error)), errorReport=self._kept.error)

    def _keep(self, kept: _Kept) -> None:
        write(self._path, kept.model_dump_json())
        self._kept = kept


def check(options: OcpsOptions) -> list[str]:
    """The pipelines that may be commanded. Raises BadData if there are none, or no repository."""
    known = pipelines(options.pipelines)
    if not known:
        raise BadData(f"--pipelines {options.pipelines}: there is no pipeline")
    if not options.butler.is_dir():
        raise BadData(f"--butler {options.butler}: there is no such folder")
    return known


def _first(asked: State | None, path: Path) -> _Kept:
    before = read(_Kept, path) if path.exists() else _Kept(state=State.OFFLINE)
    if asked is not None:
        return _Kept(state=asked)
    return _Kept(state=State.ENABLED) if before.state is State.OFFLINE else before


def _done() -> Outcome:
    return Outcome(ack=Ack.COMPLETE, error=0, exit_code=0, result="Done")
