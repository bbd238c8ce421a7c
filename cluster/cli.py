"""The command line: `pachon night`, `pachon alerts`, `pachon replay-alerts`, `pachon withdraw`, `pachon difference`."""

import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer.exceptions import TyperException

from cluster.batch_cli import batch, calibrate
from cluster.exits import complain, exit_with
from cluster.ocps_cli import afternoon, ocps, ocps_submit
from cluster.release_cli import drp, templates
from schemas.errors import BadData

app = typer.Typer(
    name="pachon", help="A Rubin-style Data Management System on Ray.", no_args_is_help=True,
    pretty_exceptions_enable=False, add_completion=False,
)  # fmt: skip


letters = typer.Typer(help="What came from outside and could not be used.", no_args_is_help=True)
app.add_typer(letters, name="dead-letters")
app.add_typer(batch, name="batch")
app.command()(calibrate)
app.command()(templates)
app.command()(drp)
app.command()(ocps)
app.command()(afternoon)
app.command(hidden=True)(ocps_submit)


@app.callback()
def _root() -> None:
    """Pachon: pixels and observatory events in, alerts out within 60 s."""


@app.command()
def night(
    visits: Annotated[int, typer.Option(help="How many visits to play.")] = 6,
    detectors: Annotated[str, typer.Option(help="Detectors by id, name (R22_S11) or raft (R22), or `all`.")] = (
        "R22_S00,R22_S01,R22_S10,R22_S11"
    ),
    instrument: Annotated[str, typer.Option(help="LSSTCam or LATISS.")] = "LSSTCam",
    cadence: Annotated[float | None, typer.Option(help="Seconds between visits; default: the schedule's own.")] = None,
    snaps: Annotated[int | None, typer.Option(help="Snaps a visit; default: the schedule's own.")] = None,
    speed: Annotated[float, typer.Option(help="How much faster than real time the night passes.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sky, camera and plan.")] = 1,
    schedule: Annotated[str, typer.Option(help="`own`, a real night (.json) or an opsim database (.db).")] = "own",
    output: Annotated[Path | None, typer.Option(help="Folder for results; default: nights/<time>.")] = None,
    inline: Annotated[bool, typer.Option(help="One process, no Ray, no servers, as fast as it can.")] = False,
    kafka: Annotated[str, typer.Option(help="A broker that runs already, host:port.")] = "",
    registry: Annotated[str, typer.Option(help="Its schema registry, http://host:port.")] = "",
    postgres: Annotated[str, typer.Option(help="A PostgreSQL that runs already, postgresql://...")] = "",
    ray_address: Annotated[str, typer.Option(help="A Ray cluster that runs already.")] = "",
    workers: Annotated[int, typer.Option(help="CCD workers, one core each.")] = 2,
    kafka_port: Annotated[int, typer.Option(help="Of the embedded broker; 0: any free one.")] = 0,
    registry_port: Annotated[int, typer.Option(help="Of the embedded schema registry; 0: any free one.")] = 0,
    metrics_port: Annotated[int, typer.Option(help="Of Prometheus' /metrics; 0: any free one.")] = 9464,
    hand_over_after: Annotated[
        float, typer.Option(help="Seconds after which pixels that wait are left to offline processing; 0: never.")
    ] = 60.0,
    linger: Annotated[float, typer.Option(help="Seconds that the embedded broker stays up at the end.")] = 3.0,
    fault: Annotated[str, typer.Option(help="What goes wrong: a name of docs/faults.md, storm:SEED, or a file.")] = "",
) -> None:
    """Play a night, from the first event to the last alert, and report."""
    given = dict(locals())
    given["output"] = output or Path("nights") / time.strftime("%Y%m%dT%H%M%S")
    exit_with(lambda: _night(given))


@app.command(hidden=True)
def drive(
    errand: Annotated[Path, typer.Argument(help="What to do, as `night` wrote it down.")],
    pulse: Annotated[int, typer.Argument(help="File descriptor of a pipe that takes signs of life.")],
) -> None:
    """Be the driver of a night: what `night` starts, and starts again when it dies or hangs."""

    def play() -> int:
        from cluster.driver import drive as run  # noqa: PLC0415 - so that --help answers at once

        return run(errand, pulse, Console(soft_wrap=True, highlight=False))

    exit_with(play)


@app.command()
def alerts(
    kafka: Annotated[str, typer.Option(help="The broker, host:port.")] = "127.0.0.1:9092",
    registry: Annotated[str, typer.Option(help="The schema registry, http://host:port.")] = "http://127.0.0.1:8081",
    topic: Annotated[str, typer.Option(help="The alert topic.")] = "lsst-alerts-v11",
    start: Annotated[str, typer.Option(help="`earliest`, `latest`, or an offset.")] = "earliest",
    count: Annotated[int, typer.Option(help="End after so many alerts; 0: never.")] = 0,
    wait: Annotated[float, typer.Option(help="End after so many seconds without an alert; 0: never.")] = 0.0,
    stamps: Annotated[Path | None, typer.Option(help="Write each alert's three cutouts as a PNG here.")] = None,
) -> None:
    """Follow the alert topic as a broker does: one line an alert."""
    import authlib.deprecate  # noqa: F401, PLC0415 - it turns its own warnings on when it is imported, so first

    with warnings.catch_warnings():  # authlib, which confluent's registry client loads, warns of its own future
        warnings.simplefilter("ignore")
        from access import follow  # noqa: PLC0415 - `pachon night` need not load what it does not use

    exit_with(lambda: follow.follow(kafka, registry, topic, start=start, count=count, wait=wait, stamps=stamps))


@app.command()
def archived_alerts(
    output: Annotated[Path, typer.Option(help="Folder of the night's results.")],
    dia_source: Annotated[list[int] | None, typer.Option(help="A diaSourceId; may be given again.")] = None,
    key: Annotated[int | None, typer.Option("--object", help="All of a diaObjectId or ssObjectId.")] = None,
    stamps: Annotated[Path | None, typer.Option(help="Write each alert's three cutouts as a PNG here.")] = None,
    postgres: Annotated[str, typer.Option(help="It says which files count; default: the folder's own.")] = "",
) -> None:
    """Show alerts of the archive: one line an alert."""

    def play() -> int:
        from cluster.archived_alerts import run  # noqa: PLC0415 - so that --help answers at once

        return run(output, dia_source or (), key, stamps, postgres)

    exit_with(play)


@app.command()
def replay_alerts(
    output: Annotated[Path, typer.Option(help="Folder of the night's results.")],
    kafka: Annotated[str, typer.Option(help="The broker, host:port.")],
    topic: Annotated[str, typer.Option(help="Where to; it is made if there is none.")],
    night: Annotated[int | None, typer.Option(help="Alerts of a night, YYYYMMDD ...")] = None,
    visit: Annotated[int | None, typer.Option(help="... or of a visit ...")] = None,
    detector: Annotated[int | None, typer.Option(help="... or of a detector of it.")] = None,
    postgres: Annotated[str, typer.Option(help="L1 database: it says which files and alerts count.")] = "",
    withdrawn: Annotated[bool, typer.Option("--withdrawn", help="Also those that it says are withdrawn.")] = False,
) -> None:
    """Send alerts of the archive again, byte for byte and with the keys of the first time."""

    def play() -> int:
        from cluster.replay_alerts import Wanted, run  # noqa: PLC0415 - so that --help answers at once

        return run(output, Wanted(night, visit, detector, withdrawn), kafka, topic, postgres)

    exit_with(play)


@app.command()
def withdraw(
    output: Annotated[Path, typer.Option(help="The night's folder: its key signs, its clock tells the time.")],
    kafka: Annotated[str, typer.Option(help="The broker, host:port.")],
    reason: Annotated[str, typer.Option(help="Why, as brokers are told.")],
    postgres: Annotated[str, typer.Option(help="The L1 database; default: the folder's own.")] = "",
    dia_source: Annotated[list[int] | None, typer.Option(help="A diaSourceId; may be given again.")] = None,
    visit: Annotated[int | None, typer.Option(help="All of a visit, forced photometry too.")] = None,
    detector: Annotated[int | None, typer.Option(help="Only this detector of the visit.")] = None,
    superseded_by: Annotated[int | None, typer.Option(help="The DIASource in place of the one withdrawn.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Let what was withdrawn count again.")] = False,
) -> None:
    """Withdraw DIASources and the alerts about them: in the database, then on the companion topic."""

    def play() -> int:
        from backbone.l1_withdrawals import Change, Selection  # noqa: PLC0415 - so that --help answers at once
        from cluster.withdraw import run  # noqa: PLC0415

        asked = Change(Selection(tuple(dia_source or ()), visit, detector), reason, undo, superseded_by)
        return run(output, postgres, kafka, asked, Console(soft_wrap=True, highlight=False))

    exit_with(play)


@app.command()
def precover(
    output: Annotated[Path, typer.Option(help="The night's folder: its archive has the raws.")],
    night: Annotated[int | None, typer.Option(help="In which they were new, YYYYMMDD; default: the last.")] = None,
    days: Annotated[float, typer.Option(help="How far back to look.", min=0.0, max=365.0)] = 30.0,
    postgres: Annotated[str, typer.Option(help="The L1 database; default: the folder's own.")] = "",
) -> None:
    """Force photometry of a night's new DIAObjects in the visits before; killed, it goes on where it stood."""

    def play() -> int:
        from cluster.precover import run  # noqa: PLC0415 - so that --help answers at once

        return run(output, night, days, postgres, Console(soft_wrap=True, highlight=False))

    exit_with(play)


@app.command()
def status(
    output: Annotated[Path, typer.Option(help="The night's folder.")],
    postgres: Annotated[str, typer.Option(help="Its database; default: the folder's own.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    every_night: Annotated[bool, typer.Option("--all", help="Of every night that its journal holds.")] = False,
) -> None:
    """Show what runs, waits, is late and failed in a night, while it runs or later."""

    def play() -> int:
        from cluster.status import run  # noqa: PLC0415 - so that --help answers at once

        return run(output, postgres, Console(highlight=False), as_json=as_json, every_night=every_night)

    exit_with(play)


@app.command()
def retry_alerts(
    output: Annotated[Path, typer.Option(help="The night's folder.")],
    postgres: Annotated[str, typer.Option(help="Its database; default: the folder's own.")] = "",
) -> None:
    """Owe brokers again the alerts that could not be sent: `pachon night` sends them when it is next started."""

    def play() -> int:
        from cluster.retry_alerts import run  # noqa: PLC0415 - so that --help answers at once

        return run(output, postgres, Console(soft_wrap=True, highlight=False, markup=False))

    exit_with(play)


@app.command()
def visit(
    which: Annotated[str, typer.Argument(help="A visit's number, its group, or `last`.")],
    output: Annotated[Path, typer.Option(help="The night's folder.")],
    postgres: Annotated[str, typer.Option(help="Its database; default: the folder's own.")] = "",
) -> None:
    """Tell the story of a visit: its events, its detectors' stages, what failed and when, its lines of the log."""

    def play() -> int:
        from cluster.visit_story import run  # noqa: PLC0415 - so that --help answers at once

        return run(output, postgres, which, Console(highlight=False))

    exit_with(play)


@letters.callback()
def _letters(
    context: typer.Context,
    kafka: Annotated[str, typer.Option(help="The broker, host:port.")],
) -> None:
    context.obj = kafka


@letters.command("list")
def list_letters(context: typer.Context) -> None:
    """List the dead letters: number, where each was, since when, and why."""

    def play() -> int:
        from cluster.dead_letters import show_all  # noqa: PLC0415 - so that --help answers at once

        return show_all(context.obj, Console(highlight=False))

    exit_with(play)


@letters.command("show")
def show_letter(
    context: typer.Context,
    number: Annotated[int, typer.Argument(help="Of the dead letter, as `list` tells it.")],
    registry: Annotated[str, typer.Option(help="The schema registry, http://host:port, to decode it.")] = "",
) -> None:
    """Show one: all that is known of it, its fields if it can be decoded, its bytes."""

    def play() -> int:
        from cluster.dead_letters import show_one  # noqa: PLC0415 - so that --help answers at once

        return show_one(context.obj, registry, number, Console(highlight=False))

    exit_with(play)


@letters.command("resubmit")
def resubmit_letters(
    context: typer.Context,
    numbers: Annotated[list[int] | None, typer.Argument(help="Of dead letters, as `list` tells them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that were not resubmitted yet.")] = False,
) -> None:
    """Send dead letters to where they came from once more, byte for byte."""

    def play() -> int:
        from cluster.dead_letters import resubmit  # noqa: PLC0415 - so that --help answers at once

        return resubmit(context.obj, numbers or (), everything=everything, console=Console(highlight=False))

    exit_with(play)


@app.command()
def difference(
    science: Annotated[Path, typer.Option(help="A FITS image with a WCS.")],
    template: Annotated[Path, typer.Option(help="Another of the same sky.")],
    out: Annotated[Path, typer.Option(help="Folder for results.")],
    variance_science: Annotated[Path | None, typer.Option(help="Its variance, the image's unit squared.")] = None,
    variance_template: Annotated[Path | None, typer.Option(help="The template's.")] = None,
    mask_science: Annotated[Path | None, typer.Option(help="Its mask: bits, or SDSS fpM.")] = None,
    mask_template: Annotated[Path | None, typer.Option(help="The template's.")] = None,
    psf_science: Annotated[Path | None, typer.Option(help="Its PSF, one kernel; default: measured.")] = None,
    psf_template: Annotated[Path | None, typer.Option(help="The template's.")] = None,
    gain_science: Annotated[float | None, typer.Option(help="Electrons per unit; default: the header's.")] = None,
    gain_template: Annotated[float | None, typer.Option(help="The template's.")] = None,
    refcat: Annotated[Path | None, typer.Option(help="Catalogue to calibrate against; default: the template.")] = None,
) -> None:
    """Difference two FITS images: what changed, measured and scored. No server, no Ray."""

    def play() -> int:
        from access.difference.images import Source  # noqa: PLC0415 - so that --help answers at once
        from cluster.difference import run  # noqa: PLC0415

        one = Source(science, variance_science, mask_science, psf_science, gain_science)
        return run(one, Source(template, variance_template, mask_template, psf_template, gain_template), refcat, out)

    exit_with(play)


@app.command()
def train_reliability(
    out: Annotated[Path, typer.Option(help="File of the model.")],
    version: Annotated[str, typer.Option(help="Its name, as it stands in every alert scored.")],
    seeds: Annotated[str, typer.Option(help="Of nights and pairs; the last half to measure.")] = "11,12,13",
) -> None:
    """Train the reliability model on simulated nights and pairs, and measure it on those of the seeds held out."""

    def play() -> int:
        from cluster.train_reliability import run  # noqa: PLC0415 - so that --help answers at once

        if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
            raise BadData(f"--seeds {seeds!r}: not whole numbers with commas between")
        return run([int(seed) for seed in seeds.split(",")], version, out)

    exit_with(play)


def _night(given: dict[str, object]) -> int:
    from cluster.run import run  # noqa: PLC0415 - so that --help answers at once

    return run(given, Console(soft_wrap=True, highlight=False))


def main() -> None:
    """The entry point; also what is wrong with the command line itself is said in one line."""
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        said = error.format_message()  # nothing where the help was asked for by saying nothing
        code = complain(said) if said else error.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
