"""The plugin for lsst-ctrl-bps: `wmsServiceClass: cluster.batch.bps.PachonService` runs its workflows on Ray."""

# ruff: noqa: ARG002 - the signatures are BPS's

import os
import sys
import time
from pathlib import Path
from typing import Any, Self

from lsst.ctrl.bps import BaseWmsService, BaseWmsWorkflow, BpsConfig, GenericWorkflow, WmsRunReport, WmsStates

from cluster.batch import run_folder
from cluster.batch.bps_report import RUN_STATES, run_report
from cluster.batch.bps_workflow import translated
from cluster.batch.run_folder import RunFolder, run_folders
from cluster.batch.workflow import Workflow
from schemas.clock import REAL_TIME
from schemas.errors import BadData, Transient

PROGRAMS_OF = ("CTRL_MPEXEC_DIR", "DAF_BUTLER_DIR")
"""Environment variables by which BPS's own command lines find `pipetask` and `butler`, in `bin`."""

SUBMIT = Path("submit")
"""Where runs are looked for unless told otherwise: BPS's own default, in the current folder."""

_END_S, _LOOK_S, _DAY_S = 60.0, 0.2, 86400.0


class PachonWorkflow(BaseWmsWorkflow):  # type: ignore[misc] # BPS ships no types
    """A workflow that is kept in its submit folder; `run_id`: that folder."""

    def __init__(self, name: str, config: BpsConfig, workflow: Workflow, submit_path: Path) -> None:
        super().__init__(name, config)
        self.submit_path = str(submit_path)
        self.workflow = workflow

    @classmethod
    def from_generic_workflow(
        cls, config: BpsConfig, generic_workflow: GenericWorkflow, out_prefix: str, service_class: str
    ) -> Self:
        """Raises BadData for what Pachon cannot do."""
        made = cls(
            generic_workflow.name, config, translated(config, generic_workflow), Path(out_prefix or os.curdir).resolve()
        )
        made.service_class = service_class
        return made

    def write(self, out_prefix: str) -> None:
        """Into the submit folder."""
        RunFolder(Path(out_prefix or os.curdir).resolve()).write_workflow(self.workflow)


class PachonService(BaseWmsService):  # type: ignore[misc] # BPS ships no types
    """Submits, reports, restarts and cancels runs; their ids are their submit folders."""

    def __init__(self, config: BpsConfig | dict[str, Any]) -> None:
        super().__init__(config)
        for name in PROGRAMS_OF:  # set by the science pipelines' own distribution, not by pip
            os.environ.setdefault(name, sys.prefix)

    def prepare(
        self, config: BpsConfig, generic_workflow: GenericWorkflow, out_prefix: str | None = None
    ) -> PachonWorkflow:
        """Raises BadData for what Pachon cannot do."""
        service = f"{type(self).__module__}.{type(self).__name__}"
        workflow = PachonWorkflow.from_generic_workflow(config, generic_workflow, out_prefix or "", service)
        workflow.write(workflow.submit_path)
        return workflow

    def submit(self, workflow: PachonWorkflow, **_kwargs: object) -> PachonWorkflow:
        """Start a coordinator, which goes on when `bps` has ended."""
        from cluster.batch import commands  # noqa: PLC0415 - so that a report does not wait for Ray's import

        run = RunFolder.open(Path(workflow.submit_path))
        commands.start(run)
        workflow.run_id = str(run.path)
        return workflow

    def restart(self, wms_workflow_id: str) -> tuple[str | None, str | None, str]:
        """Do what has not succeeded."""
        from cluster.batch import commands  # noqa: PLC0415 - so that a report does not wait for Ray's import

        try:
            run = _run(wms_workflow_id)
            if run.progress().state == run_folder.DONE:
                return None, None, f"{run.path}: all of its jobs have succeeded"
            commands.start(run)
        except BadData as error:
            return None, None, str(error)
        return str(run.path), run.workflow.name, ""

    def list_submitted_jobs(
        self,
        wms_id: str | None = None,
        user: str | None = None,
        require_bps: bool = True,
        pass_thru: str | None = None,
        is_global: bool = False,
    ) -> list[str]:
        """Runs under way: the one of that id, or all in `pass_thru` (default: `submit`), of a user if one is named."""
        found = [RunFolder(Path(wms_id).resolve())] if wms_id else _runs(pass_thru)
        running = [run for run in found if run.exists and run.coordinated()]
        return [str(run.path) for run in running if not user or _operator(run) == user]

    def report(
        self,
        wms_workflow_id: str | None = None,
        user: str | None = None,
        hist: float | None = None,
        pass_thru: str | None = None,
        is_global: bool = False,
        return_exit_codes: bool = False,
    ) -> tuple[list[WmsRunReport], str]:
        """Of one run, or of all in `pass_thru` (default: `submit`) that go on or ended within `hist` days."""
        if wms_workflow_id:
            try:
                return [run_report(_run(wms_workflow_id))], ""
            except BadData as error:
                return [], str(error)
        since = REAL_TIME.now() - (hist or 0.0) * _DAY_S
        runs = [run for run in _runs(pass_thru) if run.coordinated() or run.progress().updated > since]
        return [run_report(run) for run in runs if not user or _operator(run) == user], ""

    def get_status(
        self,
        wms_workflow_id: str,
        hist: float = 1,
        is_global: bool = False,
    ) -> tuple[WmsStates, str]:
        """Of one run."""
        try:
            return RUN_STATES[_run(wms_workflow_id).progress().state], ""
        except BadData as error:
            return WmsStates.UNKNOWN, str(error)

    def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """Kill what is under way, and return when nothing is."""
        from cluster.batch import commands  # noqa: PLC0415 - so that a report does not wait for Ray's import

        try:
            run = _run(wms_id)
            commands.cancel(run)
        except BadData as error:
            return False, str(error)
        give_up = time.monotonic() + _END_S
        while run.coordinated():
            if time.monotonic() > give_up:
                return False, f"it has not ended within {_END_S:g} s: see {run.log}"
            time.sleep(_LOOK_S)
        return True, ""

    def run_submission_checks(self) -> None:
        """That the programs of BPS's own command lines are there. Raises BadData."""
        wanted = [
            Path(os.environ[name]) / "bin" / program
            for name, program in zip(PROGRAMS_OF, ("pipetask", "butler"), strict=True)
        ]
        if absent := [str(path) for path in wanted if not path.is_file()]:
            raise BadData(f"{', '.join(absent)}: not there; {' and '.join(PROGRAMS_OF)} say where to look")

    def ping(self, pass_thru: str | None) -> tuple[int, str]:
        """Whether the cluster `pass_thru` can be joined; default: whether one can be started on this machine."""
        from cluster.batch import commands  # noqa: PLC0415 - so that a report does not wait for Ray's import

        try:
            return 0, commands.ping(pass_thru or "")
        except Transient as error:
            return 1, str(error)


def _run(wms_id: str) -> RunFolder:
    """Raises BadData if that is no run's submit folder."""
    run = RunFolder.open(Path(wms_id).resolve())
    if not run.of_jobs:
        raise BadData(f"{run.path}: this run was not submitted by bps: use pachon batch")
    return run


def _runs(folder: str | None) -> list[RunFolder]:
    return [run for run in run_folders(Path(folder) if folder else SUBMIT) if run.of_jobs]


def _operator(run: RunFolder) -> str:
    return run.workflow.about.get("bps_operator", "")
