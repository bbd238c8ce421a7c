"""`pachon drp` and `pachon templates`: a release, and templates, of simulated weeks or of archived nights."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cluster.exits import exit_with
from schemas.errors import BadData

if TYPE_CHECKING:
    from cluster.release import Campaign, Outcome
    from cluster.settings import Settings

Output = Annotated[Path, typer.Option(help="A night's folder, played or to be played; made if it is not there.")]
Detectors = Annotated[str, typer.Option(help="Detectors by id, name or raft, or `all`.")]
Filters = Annotated[str, typer.Option(help="Physical filters, with commas between.")]
Nights = Annotated[int, typer.Option(help="How many nights are simulated, before the folder's own.")]
Fields = Annotated[int, typer.Option(help="How many of the night's fields they see.")]
Archived = Annotated[str, typer.Option(help="FIRST:LAST, YYYYMMDD: archived nights instead of simulated ones.")]
Instrument = Annotated[str, typer.Option(help="LSSTCam or LATISS.")]
Seed = Annotated[int, typer.Option(help="Of sky, camera and plan.")]
Name = Annotated[str, typer.Option(help="Of the release; it is found in the collection drp/NAME.")]
Night = Annotated[
    Path | None, typer.Option(help="Folder of a night that is played: beside its prompt work, on its Ray.")
]
Workers = Annotated[int, typer.Option(help="Cores to use.")]


def drp(
    output: Output,
    detectors: Detectors = "R22_S11",
    filters: Filters = "g_6,r_57,i_39",
    nights: Nights = 7,
    fields: Fields = 1,
    part: Annotated[int, typer.Option(help="Percent of the sky that was seen; of 100, what is not there yet.")] = 100,
    release: Name = "week",
    archived: Archived = "",
    instrument: Instrument = "LSSTCam",
    seed: Seed = 1,
    workers: Workers = 2,
    night: Night = None,
) -> None:
    """Make a data release of a simulated week: coadds, objects, light curves, and a report."""

    def play() -> int:
        from cluster import release as steps  # noqa: PLC0415 - so that --help answers at once

        settings = _settings(output, detectors, instrument)
        on = steps.beside(night, _console())
        span = _span(archived) or _simulated(settings, filters, nights, fields, seed, workers)
        campaign = _campaign(settings, span, f"drp/{release}", workers, on)
        outcome = steps.release(campaign, part, _console())
        _report(campaign, outcome, settings.output / "release" / release, None if archived else seed)
        return 1 if outcome.failed else 0

    exit_with(play)


def templates(
    output: Output,
    detectors: Detectors = "R22_S11",
    filters: Filters = "r_57,i_39",
    nights: Nights = 10,
    fields: Fields = 2,
    archived: Archived = "",
    instrument: Instrument = "LSSTCam",
    seed: Seed = 1,
    workers: Workers = 2,
    night: Night = None,
) -> None:
    """Make templates of earlier nights, for prompt processing in this folder."""

    def play() -> int:
        from cluster import release as steps  # noqa: PLC0415 - so that --help answers at once

        settings = _settings(output, detectors, instrument)
        on = steps.beside(night, _console())
        span = _span(archived) or _simulated(settings, filters, nights, fields, seed, workers)
        campaign = _campaign(settings, span, f"templates/{span[0]}-{span[1]}", workers, on)
        return 1 if steps.templates(campaign, _console()).failed else 0

    exit_with(play)


def _report(campaign: "Campaign", outcome: "Outcome", folder: Path, seed: int | None) -> None:
    """Write a release's report, against the simulated sky of a seed, or against the reference catalogue."""
    from access.release.model import Missing  # noqa: PLC0415 - so that --help answers at once
    from access.release.write import show  # noqa: PLC0415
    from cluster.release_report import catalogue_of, truth_of, write_report  # noqa: PLC0415

    missing = [
        Missing(step=each.label, data_id=each.data_id, why=f"{each.error}: {each.message}") for each in outcome.failures
    ]
    reference = catalogue_of(campaign.butler) if seed is None else truth_of(seed)
    summary = write_report(
        campaign.butler, [campaign.output], folder, name=campaign.output, reference=reference, missing=missing
    )
    show(summary, _console())
    _console().print(f"report: {folder / 'release.html'}")


def _settings(output: Path, detectors: str, instrument: str) -> "Settings":
    from cluster.settings import Settings  # noqa: PLC0415 - so that --help answers at once
    from schemas.instrument import camera  # noqa: PLC0415

    chosen = tuple(detector.id for detector in camera(instrument).select(detectors))
    return Settings(output=output.resolve(), detectors=chosen, instrument=instrument)


def _simulated(
    settings: "Settings", filters: str, nights: int, fields: int, seed: int, workers: int
) -> tuple[int, int]:
    """Take a week of the fields of the folder's night; the first and the last of its nights."""
    from cluster import week  # noqa: PLC0415 - so that --help answers at once
    from simulators.ocs.schedule import load_plan, plan_own  # noqa: PLC0415
    from simulators.ocs.week import plan_week  # noqa: PLC0415

    known = settings.plan_file.exists()
    played = load_plan(settings.plan_file) if known else plan_own(seed, instrument=settings.instrument)
    plan = plan_week(played, seed=seed, nights=nights, filters=_names(settings, filters), fields=fields)
    taken = week.take(settings, plan, seed, workers)
    _console().print(f"{len(plan)} visits of {len(settings.detectors)} detectors, {taken} raws taken now")
    return plan[0].day_obs, plan[-1].day_obs


def _names(settings: "Settings", filters: str) -> Sequence[str]:
    names = filters.split(",")
    for name in names:
        settings.camera.band_of(name)  # raises BadData for one that the camera lacks
    return names


def _campaign(settings: "Settings", span: tuple[int, int], output: str, workers: int, night: Path | None) -> "Campaign":
    from cluster.release import Campaign  # noqa: PLC0415 - so that --help answers at once

    return Campaign(
        butler=settings.butler, runs=settings.output / "batch", instrument=settings.instrument,
        detectors=settings.detectors, first=span[0], last=span[1], output=output, slots=workers,
        night=night and night.resolve(),
    )  # fmt: skip


def _span(archived: str) -> tuple[int, int] | None:
    if not archived:
        return None
    first, _, last = archived.partition(":")
    if not (first.isdigit() and last.isdigit() and first <= last):
        raise BadData(f"--archived {archived!r} is not FIRST:LAST, as 20260628:20260704")
    return int(first), int(last)


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)
