"""`pachon night`: checks what was asked, plays it inline or live, writes the report."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from access.report.collect import Collected
from access.report.write import show, write
from cluster import logs
from cluster.options import NightOptions, make_output
from cluster.settings import Settings
from cluster.terminal import unhurried
from schemas.errors import BadData
from simulators.faults import Planned, dump, planned
from simulators.ocs.disturbance import hurried
from simulators.ocs.schedule import PlannedVisit, load_schedule

INCOMPLETE = 1
"""Exit code of a night that ended with something unaccounted for."""


def run(given: Mapping[str, object], console: Console) -> int:
    """Play a night; the exit code: 0 if every count reconciles. Raises PachonError for what cannot be played."""
    options = NightOptions.model_validate(given)
    plan = load_schedule(
        options.schedule, n=options.visits, cadence=options.cadence, n_snaps=options.snaps, seed=options.seed,
        instrument=options.instrument,
    )  # fmt: skip
    detectors = options.chosen_detectors()
    faults = chosen_faults(options, len(plan), detectors)
    plan = hurried(plan, [each.fault for each in faults])
    make_output(options, len(plan), max(visit.n_snaps for visit in plan))
    output = options.output.resolve()
    settings = Settings(
        output=output, instrument=options.instrument, detectors=detectors, workers=options.workers,
        hand_over_after=options.hand_over_after,
    )  # fmt: skip
    logs.configure(settings.log, "night")
    dump(settings.fault_file, faults)
    console.print(f"{len(plan)} visits, {len(detectors)} detectors, seed {options.seed}; results in {output}")
    return (_inline if options.inline else _live)(options, plan, settings, console)


def told(night: Collected, output: Path, console: Console) -> int:
    """Write and show the report of a night; the exit code."""
    write(night, output)
    show(night.report, console)
    console.print(f"report: {output / 'report.html'}, {output / 'report.json'}")
    return 0 if night.report.reconciles else INCOMPLETE


def chosen_faults(options: NightOptions, visits: int, detectors: Sequence[int]) -> tuple[Planned, ...]:
    """What is to go wrong. Raises BadData for what there is none of, or cannot be played."""
    if not options.fault:
        return ()
    if options.inline:
        raise BadData(f"--fault {options.fault}: a night in one process has nothing to lose, play it without --inline")
    return planned(options.fault, visits, detectors)


def _inline(options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings, console: Console) -> int:
    from cluster.inline_night import play_inline  # noqa: PLC0415 - the live night has no use for it

    return told(asyncio.run(play_inline(options, plan, settings, console)), settings.output, console)


def _live(options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings, console: Console) -> int:
    from cluster.supervisor import supervise  # noqa: PLC0415 - the inline night has no use for it

    with unhurried(console):
        return supervise(options, plan, settings, console)
