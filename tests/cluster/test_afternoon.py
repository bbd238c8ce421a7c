"""Calibration exposures by way of the observatory: real broker, registry, OCS and DAQ, the night's actors."""

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from lsst.daf.butler import Butler, DatasetType
from rich.console import Console
from typer.testing import CliRunner

from backbone.butler import ButlerArchive
from backbone.schema_registry import SchemaRegistry
from cluster.afternoon import BEGIN_S, AfternoonOptions, _made, archived, check_standing, lacking, observatory_of
from cluster.cli import app
from cluster.services import free_port
from cluster.settings import Settings
from schemas.clock import NightClock
from schemas.errors import BadData, Broken
from schemas.identity import DatasetId
from schemas.instrument import camera
from simulators.camera import calibrations
from simulators.ocs.afternoon import plan_afternoon
from simulators.ocs.schedule import PlannedVisit
from simulators.ocs.timeline import ANNOUNCED_S

SEED, DAY, DETECTOR, SPEED = 3, 20260705, 94, 4.0
WITHIN_S = 120.0


def _plan() -> list[PlannedVisit]:
    """A bias, and a flat after it."""
    plan = plan_afternoon("g_6", DAY)
    return [plan[0], replace(plan[-1], start_tai=plan[0].start_tai + plan[0].duration)]


async def test_exposures_that_the_ocs_tells_of_are_archived_as_what_they_are(broker: str, tmp_path: Path) -> None:
    plan = _plan()
    settings = Settings(output=tmp_path, detectors=(DETECTOR,), kafka=broker, daq=f"grpc://127.0.0.1:{free_port()}")
    archive = ButlerArchive.create(settings.butler)
    archive.register_camera(settings.camera)
    clock = NightClock.starting(plan[0].start_tai - ANNOUNCED_S, delay_s=BEGIN_S, speed=SPEED)
    with ExitStack() as stack:
        async with SchemaRegistry(tmp_path / "schemas.json") as registry:
            named = settings.model_copy(update={"registry": registry.url})
            observatory = observatory_of(named, plan, SEED, stack, clock)
            assert len(lacking(named, plan)) == len(plan)
            await archived(named, clock, lambda: observatory.ocs.returncode is not None, WITHIN_S)
    assert lacking(settings, plan) == []
    for visit in plan:
        seen = visit.observation(0)
        kept = archive.get(DatasetId.of_raw("LSSTCam", seen.exposure, DETECTOR))
        told = kept.observation
        assert (told.image_type, told.physical_filter, told.band) == (visit.image_type, "g_6", "g")
        assert kept.sha256 == calibrations.raw(SEED, seen, camera("LSSTCam")[DETECTOR]).sha256
    records = Butler.from_config(str(settings.butler)).query_dimension_records("exposure", instrument="LSSTCam")
    assert {record.observation_type for record in records} == {"bias", "flat"}


async def test_a_service_that_ended_is_not_waited_for(broker: str, tmp_path: Path) -> None:
    settings = Settings(output=tmp_path, detectors=(DETECTOR,), kafka=broker)
    options = AfternoonOptions(physical_filter="g_6", day_obs=DAY, standing="u/none", seed=SEED, speed=SPEED)
    with ExitStack() as stack:
        async with SchemaRegistry(tmp_path / "schemas.json") as registry, asyncio.timeout(WITHIN_S):
            named = settings.model_copy(update={"registry": registry.url})
            with pytest.raises(Broken, match=f"the OCPS ended with 2: .*{settings.butler}: there is no such folder"):
                await _made(named, tmp_path, options, stack, Console(quiet=True))


@pytest.mark.parametrize(("option", "value"), [("--filter", "H_alpha"), ("--day-obs", "20260732")])
def test_an_afternoon_that_cannot_be_is_refused_by_name_before_it_begins(
    tmp_path: Path, option: str, value: str
) -> None:
    given = ["afternoon", "--output", str(tmp_path / "n"), "--standing", "u/none", option, value]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert value in result.output
    assert not (tmp_path / "n" / "butler").exists()


def test_electronics_that_do_not_stand_are_refused_by_name_before_anything_is_exposed(tmp_path: Path) -> None:
    given = ["afternoon", "--output", str(tmp_path), "--standing", "LSSTCam/calib/20260701", "--detectors", "94,95"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert "--standing LSSTCam/calib/20260701: no crosstalk" in result.output
    butler = Settings(output=tmp_path).butler
    with Butler.from_config(str(butler), writeable=True, run="LSSTCam/calib/20260701") as repository:
        for kind in ("crosstalk", "photon_transfer"):
            types = DatasetType(kind, ("instrument", "detector"), "StructuredDataDict", universe=repository.dimensions)
            repository.registry.registerDatasetType(types)
            for detector in (94, 95)[: 2 if kind == "crosstalk" else 1]:
                repository.put({}, kind, instrument="LSSTCam", detector=detector)
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert "--standing LSSTCam/calib/20260701: no photon_transfer of detectors [95]" in result.output
    assert not (tmp_path / "afternoon").exists()
    told = Settings(output=tmp_path, detectors=(94,))
    check_standing(told, "LSSTCam/raw/all,LSSTCam/calib/20260701")
    with pytest.raises(BadData, match=r"--standing LSSTCam/calib/\*"):
        check_standing(told, "LSSTCam/calib/*")
