"""How a run of jobs stands, in the words of lsst-ctrl-bps."""

from collections import Counter
from collections.abc import Iterable

from lsst.ctrl.bps import WmsJobReport, WmsRunReport, WmsSpecificInfo, WmsStates

from cluster.batch import job_states, run_folder
from cluster.batch.run_folder import Progress, RunFolder
from cluster.batch.workflow import Workflow

RUN_STATES = {
    run_folder.RUNNING: WmsStates.RUNNING,
    run_folder.DONE: WmsStates.SUCCEEDED,
    run_folder.FAILED: WmsStates.FAILED,
    run_folder.CANCELED: WmsStates.DELETED,
    run_folder.CUT_OFF: WmsStates.FAILED,
}

_FAILURES = 10
"""So many are told at length."""


def run_report(run: RunFolder) -> WmsRunReport:
    """All that BPS asks of a run."""
    workflow, progress = run.workflow, run.progress()
    jobs = list(job_reports(run, workflow, progress))
    labels = dict.fromkeys(job.label for job in workflow.every)
    about = workflow.about
    return WmsRunReport(
        wms_id=str(run.path),
        global_wms_id=str(run.path),
        path=str(run.path),
        label=about.get("bps_run", ""),
        run=workflow.name,
        project=about.get("bps_project", ""),
        campaign=about.get("bps_campaign", ""),
        payload=about.get("bps_payload", ""),
        operator=about.get("bps_operator", ""),
        run_summary=";".join(f"{label}:{sum(job.label == label for job in jobs)}" for label in labels),
        state=RUN_STATES[progress.state],
        jobs=jobs,
        total_number_jobs=len(jobs),
        job_state_counts=_counts(jobs),
        job_summary={label: _counts(job for job in jobs if job.label == label) for label in labels},
        exit_code_summary=_exit_codes(run, workflow),
        specific_info=_failures(run, workflow),
    )


def job_reports(run: RunFolder, workflow: Workflow, progress: Progress) -> Iterable[WmsJobReport]:
    """Every job's, in the order of the workflow."""
    told = run.job_states.read()
    before: dict[str, list[str]] = {job.name: [] for job in workflow.every}
    for first, second in workflow.edges:
        before[second].append(first)
    states: dict[str, WmsStates] = {}
    for job in workflow.jobs:
        states[job.name] = _state(told.get(job.name), progress, [states[name] for name in before[job.name]])
    if workflow.final is not None:
        ended = all(state in _ENDED for state in states.values())
        ready = [WmsStates.SUCCEEDED if ended else WmsStates.UNREADY]
        states[workflow.final.name] = _state(told.get(workflow.final.name), progress, ready)
    for job in workflow.every:
        yield WmsJobReport(wms_id=job.name, name=job.name, label=job.label, state=states[job.name])


_ENDED = {WmsStates.SUCCEEDED, WmsStates.FAILED, WmsStates.PRUNED}


def _state(told: job_states.JobState | None, progress: Progress, before: list[WmsStates]) -> WmsStates:
    if told is not None and told.state != job_states.RUNNING:
        return WmsStates.SUCCEEDED if told.state == job_states.SUCCEEDED else WmsStates.FAILED
    if any(state in {WmsStates.FAILED, WmsStates.PRUNED} for state in before):
        return WmsStates.PRUNED
    if progress.state == run_folder.CANCELED:
        return WmsStates.DELETED
    if told is not None and progress.state == run_folder.RUNNING:
        return WmsStates.RUNNING
    return WmsStates.READY if all(state == WmsStates.SUCCEEDED for state in before) else WmsStates.UNREADY


def _counts(jobs: Iterable[WmsJobReport]) -> dict[WmsStates, int]:
    counted = Counter(job.state for job in jobs)
    return {state: counted[state] for state in WmsStates}


def _exit_codes(run: RunFolder, workflow: Workflow) -> dict[str, list[int]]:
    told = run.job_states.read()
    codes: dict[str, list[int]] = {job.label: [] for job in workflow.every}
    for job in workflow.every:
        if (state := told.get(job.name)) is not None and state.state == job_states.FAILED:
            codes[job.label].append(state.exit_code)
    return codes


def _failures(run: RunFolder, workflow: Workflow) -> WmsSpecificInfo:
    """What failed, and why."""
    info, told = WmsSpecificInfo(), run.job_states.read()
    failed = [job for job in workflow.every if job.name in told and told[job.name].state == job_states.FAILED]
    for number, job in enumerate(failed[:_FAILURES]):
        info.add_message(f"{{failure_{number}}}", {f"failure_{number}": f"{job.name}: {told[job.name].message}"})
    return info
