"""How a run of jobs stands, in the words of lsst-ctrl-bps."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

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

_ENDED = {WmsStates.SUCCEEDED, WmsStates.FAILED, WmsStates.PRUNED}

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
    states: dict[str, WmsStates] = {}
    before, loosely_before = _before(workflow.edges), _before(workflow.loose)
    if workflow.final is not None:
        loosely_before[workflow.final.name] = [job.name for job in workflow.jobs]
    for job in workflow.every:
        firm, loose = ({states[name] for name in names[job.name]} for names in (before, loosely_before))
        states[job.name] = _state(told.get(job.name), progress, firm, loose)
        yield WmsJobReport(wms_id=job.name, name=job.name, label=job.label, state=states[job.name])


def _before(edges: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    before: dict[str, list[str]] = defaultdict(list)
    for first, second in edges:
        before[second].append(first)
    return before


def _state(
    told: job_states.JobState | None, progress: Progress, firm: AbstractSet[WmsStates], loose: AbstractSet[WmsStates]
) -> WmsStates:
    """`firm`, `loose`: of the jobs before it."""
    if told is not None and told.state != job_states.RUNNING:
        return WmsStates.SUCCEEDED if told.state == job_states.SUCCEEDED else WmsStates.FAILED
    if firm & {WmsStates.FAILED, WmsStates.PRUNED}:
        return WmsStates.PRUNED
    if progress.state == run_folder.CANCELED:
        return WmsStates.DELETED
    if told is not None and progress.state == run_folder.RUNNING:
        return WmsStates.RUNNING
    return WmsStates.READY if firm <= {WmsStates.SUCCEEDED} and loose <= _ENDED else WmsStates.UNREADY


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
