"""`pachon batch`: pipelines over the Data Butler, on the Ray cluster."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from cluster.exits import exit_with
from schemas.errors import BadData

if TYPE_CHECKING:
    from cluster.batch.request import Needs

batch = typer.Typer(help="Run pipelines of lsst-pipe-base on the Ray cluster (docs/batch.md).", no_args_is_help=True)

Runs = Annotated[Path, typer.Option(help="Folder of the runs.")]
Run = Annotated[Path, typer.Argument(help="The run's folder, as `submit` told it.")]


@batch.command()
def submit(
    pipeline: Annotated[str, typer.Option(help="A pipeline's YAML file; FILE#label for a part of it.")],
    butler: Annotated[Path, typer.Option(help="The Data Butler repository.")],
    inputs: Annotated[str, typer.Option("--input", help="Collections to read, with commas between.")],
    output: Annotated[str, typer.Option(help="Chain to write; each run of it is a collection of its own.")],
    where: Annotated[str, typer.Option(help="The Butler's query: of what there are to be quanta.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="label:option=value; may be repeated.")] = None,
    needs: Annotated[Path | None, typer.Option(help="YAML: by label, cpus, memory_mb, deadline_s.")] = None,
    priority: Annotated[str, typer.Option(help="offline, ocs, access, calibration or release.")] = "release",
    slots: Annotated[int, typer.Option(help="CPUs to use at most; 0: all.")] = 0,
    ray_address: Annotated[str, typer.Option(help="A Ray cluster that runs; default: one of its own.")] = "",
    night: Annotated[
        Path | None, typer.Option(help="Folder of a night that is played: beside its prompt work, on its Ray.")
    ] = None,
    runs: Runs = Path("batch"),
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until it has ended; exit code 1 if anything failed.")
    ] = False,
) -> None:
    """Start a run; it goes on when this command has ended."""

    def play() -> int:
        from cluster.batch import commands  # noqa: PLC0415 - so that --help answers at once
        from cluster.batch.request import BatchRequest, Priority  # noqa: PLC0415

        if priority.upper() not in Priority.__members__:
            raise BadData(f"--priority {priority!r}: it is one of {', '.join(Priority.__members__).lower()}")
        request = BatchRequest(
            butler=butler.resolve(), pipeline=pipeline, inputs=tuple(inputs.split(",")), output=output, where=where,
            settings=tuple(settings or ()), needs=_read(needs, pipeline) if needs else {},
            priority=Priority[priority.upper()], ray_address=ray_address, night=night and night.resolve(), slots=slots,
            python_path=tuple(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))),
        )  # fmt: skip
        console = _console()
        run = commands.submit(runs.resolve(), request, console)
        return commands.wait(run, console) if wait else 0

    exit_with(play)


@batch.command()
def status(
    run: Annotated[Path | None, typer.Argument(help="A run's folder; default: a line for each.")] = None,
    runs: Runs = Path("batch"),
) -> None:
    """Tell how far runs are, what failed and why, and when they will have ended."""

    def play() -> int:
        from cluster.batch import commands  # noqa: PLC0415 - so that --help answers at once
        from cluster.batch.run_folder import RunFolder  # noqa: PLC0415

        if run is None:
            commands.status(runs, _console())
        else:
            commands.show(RunFolder.open(run), _console())
        return 0

    exit_with(play)


@batch.command()
def cancel(run: Run) -> None:
    """End a run: what is under way is killed, what is done stays."""

    def play() -> int:
        from cluster.batch import commands  # noqa: PLC0415 - so that --help answers at once
        from cluster.batch.run_folder import RunFolder  # noqa: PLC0415

        commands.cancel(RunFolder.open(run))
        return 0

    exit_with(play)


@batch.command()
def restart(
    run: Run,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until it has ended; exit code 1 if anything failed.")
    ] = False,
) -> None:
    """Go on with a run that was cut off, canceled or failed: only what is missing is done."""

    def play() -> int:
        from cluster.batch import commands  # noqa: PLC0415 - so that --help answers at once
        from cluster.batch.run_folder import RunFolder  # noqa: PLC0415

        folder = RunFolder.open(run.resolve())
        commands.start(folder)
        return commands.wait(folder, _console()) if wait else 0

    exit_with(play)


@batch.command(hidden=True)
def coordinate(run: Run) -> None:
    """Be the coordinator of a run: what `submit` and `restart` start."""

    def play() -> int:
        from cluster.batch import commands  # noqa: PLC0415 - so that --help answers at once

        return commands.coordinate(run)

    exit_with(play)


@batch.command()
def certify(
    collection: Annotated[str, typer.Argument(help="The RUN collection that has the calibrations.")],
    butler: Annotated[Path, typer.Option(help="The Data Butler repository.")],
    begin: Annotated[int, typer.Option("--from", help="The first night, YYYYMMDD.")],
    end: Annotated[int | None, typer.Option("--until", help="The first night no more; default: for ever.")] = None,
) -> None:
    """Have a run's calibrations hold from one night to another: prompt processing takes them."""

    def play() -> int:
        from backbone.butler import ButlerArchive  # noqa: PLC0415 - so that --help answers at once
        from schemas.clock import noon_of  # noqa: PLC0415

        last = None if end is None else noon_of(end)
        number = ButlerArchive.open(butler).certify(collection, "calibration", noon_of(begin), last)
        _console().print(f"{number} calibrations hold from {begin} {f'until {end}' if end else 'on'}")
        return 0

    exit_with(play)


def calibrate(
    output: Annotated[Path, typer.Option(help="A night's folder, played or to be played; made if it is not there.")],
    detectors: Annotated[str, typer.Option(help="Detectors by id, name or raft, or `all`.")] = "R22_S11",
    filters: Annotated[str, typer.Option(help="Physical filters of flats, with commas between.")] = "r_57",
    day_obs: Annotated[int, typer.Option(help="The night that the afternoon is before, YYYYMMDD.")] = 20260705,
    instrument: Annotated[str, typer.Option(help="LSSTCam or LATISS.")] = "LSSTCam",
    seed: Annotated[int, typer.Option(help="Of the camera.")] = 1,
    workers: Annotated[int, typer.Option(help="Cores to use.")] = 2,
) -> None:
    """Take an afternoon's calibrations with the simulated camera, make, verify and certify the products."""

    def play() -> int:
        from cluster.calibrate import run  # noqa: PLC0415 - so that --help answers at once
        from cluster.settings import Settings  # noqa: PLC0415
        from schemas.instrument import camera  # noqa: PLC0415

        chosen = tuple(detector.id for detector in camera(instrument).select(detectors))
        settings = Settings(output=output.resolve(), detectors=chosen, instrument=instrument)
        return run(settings, filters.split(","), day_obs, seed, workers, _console())

    exit_with(play)


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)


def _read(needs: Path, pipeline: str) -> "dict[str, Needs]":
    from cluster.batch.graph import labels_of  # noqa: PLC0415 - so that --help answers at once
    from cluster.batch.request import Needs  # noqa: PLC0415 - the same

    labels = labels_of(pipeline)
    try:
        told = yaml.safe_load(needs.read_text(encoding="utf-8"))
        found = TypeAdapter(dict[str, Needs]).validate_python(told)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadData(f"--needs {needs}: {where or repr(told)}: {first['msg']}") from error
    except (OSError, yaml.YAMLError) as error:
        raise BadData(f"--needs {needs}: {error}") from error
    if strange := sorted(found.keys() - set(labels)):
        raise BadData(f"--needs {needs}: {', '.join(strange)}: the steps of {pipeline} are {', '.join(labels)}")
    return found
