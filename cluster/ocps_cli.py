"""`pachon ocps`: what it takes, and the process that it starts for each job."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.exits import exit_with

PIPELINES = Path(__file__).parents[1] / "pipelines"


class Begin(StrEnum):
    """States in which a service may begin."""

    STANDBY = "standby"
    DISABLED = "disabled"
    ENABLED = "enabled"


def ocps(
    kafka: Annotated[str, typer.Option(help="The broker, host:port.")],
    registry: Annotated[str, typer.Option(help="The schema registry, http://host:port.")],
    butler: Annotated[Path, typer.Option(help="The Data Butler repository.")],
    runs: Annotated[Path, typer.Option(help="Folder of the jobs.")] = Path("ocps"),
    pipelines: Annotated[Path, typer.Option(help="Folder of the pipelines that may be commanded.")] = PIPELINES,
    inputs: Annotated[str, typer.Option("--input", help="Collections to read, with commas between.")] = (
        "LSSTCam/defaults"
    ),
    index: Annotated[int, typer.Option(help="SAL index: 1 LATISS, 2 LSSTComCam, 3 LSSTCam.")] = 3,
    night: Annotated[Path | None, typer.Option(help="Folder of a night: on its Ray, while it is played.")] = None,
    ray_address: Annotated[str, typer.Option(help="A Ray cluster that runs; default: one for each job.")] = "",
    state: Annotated[
        Begin | None, typer.Option(help="State to begin in; default: that of the last service, at first enabled.")
    ] = None,
) -> None:
    """Run pipelines at the OCS's command, and acknowledge."""

    def play() -> int:
        from backbone.csc import State  # noqa: PLC0415 - so that --help answers at once
        from cluster.ocps import run  # noqa: PLC0415
        from cluster.ocps_request import OcpsOptions  # noqa: PLC0415

        options = OcpsOptions(
            kafka=kafka, registry=registry, butler=butler.resolve(), runs=runs.resolve(), pipelines=pipelines.resolve(),
            inputs=tuple(inputs.split(",")), index=index, night=night and night.resolve(), ray_address=ray_address,
            state=state and State[state.name],
        )  # fmt: skip
        return run(options, Console(soft_wrap=True, highlight=False))

    exit_with(play)


def ocps_submit(folder: Annotated[Path, typer.Argument(help="The job's.")]) -> None:
    """Make and start a job's run: what `ocps` starts."""

    def play() -> int:
        from cluster.ocps_run import submit  # noqa: PLC0415 - so that --help answers at once

        return submit(folder)

    exit_with(play)


def afternoon(
    output: Annotated[Path, typer.Option(help="A night's folder, played or to be played; made if it is not there.")],
    standing: Annotated[
        str, typer.Option(help="Collection of crosstalk and photon transfer that stand: of `pachon calibrate`.")
    ],
    detectors: Annotated[str, typer.Option(help="Detectors by id, name or raft, or `all`.")] = "R22_S11",
    physical_filter: Annotated[str, typer.Option("--filter", help="Of the flats.")] = "r_57",
    day_obs: Annotated[int, typer.Option(help="The night that the afternoon is before, YYYYMMDD.")] = 20260705,
    instrument: Annotated[str, typer.Option(help="LSSTCam or LATISS.")] = "LSSTCam",
    seed: Annotated[int, typer.Option(help="Of the camera.")] = 1,
    speed: Annotated[float, typer.Option(help="How much faster than real time exposures are taken.")] = 1.0,
) -> None:
    """Take an afternoon's 25 exposures by way of OCS and DAQ, and have their calibrations made at the OCS's command."""

    def play() -> int:
        from cluster.afternoon import AfternoonOptions, run  # noqa: PLC0415 - so that --help answers at once
        from cluster.settings import Settings  # noqa: PLC0415
        from schemas.instrument import camera  # noqa: PLC0415

        chosen = tuple(detector.id for detector in camera(instrument).select(detectors))
        folder = output.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        options = AfternoonOptions(
            physical_filter=physical_filter, day_obs=day_obs, standing=standing, seed=seed, speed=speed
        )
        settings = Settings(output=folder, detectors=chosen, instrument=instrument)
        return run(settings, options, Console(soft_wrap=True, highlight=False))

    exit_with(play)
