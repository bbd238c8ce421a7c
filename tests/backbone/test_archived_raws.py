"""A visit's raws from a real archive, with what their own headers say of them."""

import asyncio
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from backbone.archived_raws import ArchivedRaws
from backbone.butler import ButlerArchive
from backbone.butler_errors import NotKept
from schemas.errors import BadData
from schemas.image import Observation, Raw
from schemas.instrument import camera
from tests.backbone import kept_objects as kept
from tests.backbone.kept_objects import E2V_DETECTOR, ITL_DETECTOR

VISIT = kept.observation().visit


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> ButlerArchive:
    """Both snaps of one detector, the first alone of another."""
    archive = ButlerArchive.create(tmp_path_factory.mktemp("raws") / "butler")
    archive.register_camera(camera("LSSTCam"))
    for raw in (kept.raw(), kept.raw(snap=1), kept.raw(detector=ITL_DETECTOR)):
        archive.put_raw(raw)
    return archive


def test_the_last_snap_of_a_visit_is_told_by_the_headers_as_it_was_observed(archive: ButlerArchive) -> None:
    assert ArchivedRaws(archive).last_of("LSSTCam", VISIT, E2V_DETECTOR) == kept.observation(1)


def test_raws_that_came_when_their_visit_was_over_are_of_the_band_of_their_filter(tmp_path: Path) -> None:
    archive = ButlerArchive.create(tmp_path / "butler")
    archive.register_camera(camera("LSSTCam"))
    for raw in (kept.raw(), kept.raw(snap=1)):
        archive.put_raw(replace(raw, observation=replace(raw.observation, band="")))
    assert archive.observation_of(kept.raw_id(snap=1)).band == ""
    assert ArchivedRaws(archive).last_of("LSSTCam", VISIT, E2V_DETECTOR) == kept.observation(1)


@pytest.mark.parametrize("snap", [0, 1])
async def test_a_raw_is_the_one_that_was_archived(archive: ButlerArchive, snap: int) -> None:
    raw = await ArchivedRaws(archive).read(kept.observation(snap), E2V_DETECTOR)
    assert raw.observation == kept.observation(snap)
    assert np.array_equal(raw.segments, kept.raw(snap=snap).segments)


async def test_a_raw_that_is_not_archived_is_named(archive: ButlerArchive) -> None:
    raws, name = ArchivedRaws(archive), f"raw/LSSTCam/{VISIT + 1}/{ITL_DETECTOR}"
    with pytest.raises(NotKept, match=f"{name} is not in the archive"):
        raws.last_of("LSSTCam", VISIT, ITL_DETECTOR)
    with pytest.raises(NotKept, match=f"{name} is not in the archive"):
        await raws.read(kept.observation(1), ITL_DETECTOR)


def test_a_raw_whose_file_is_gone_or_damaged_is_named(archive: ButlerArchive) -> None:
    raws = ArchivedRaws(archive)
    path = Path(urlsplit(archive.uri(kept.raw_id())).path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100_000] + b"x" + whole[100_001:])
    with pytest.raises(BadData, match=f"raw/LSSTCam/{VISIT}/94: .*checksums wrong"):
        asyncio.run(raws.read(kept.observation(), E2V_DETECTOR))
    path.unlink()
    with pytest.raises(BadData, match=f"raw/LSSTCam/{VISIT}/94: "):
        raws.last_of("LSSTCam", VISIT, E2V_DETECTOR)
    path.write_bytes(whole)


def test_an_exposure_that_another_visit_took_is_not_taken_for_a_snap(archive: ButlerArchive) -> None:
    """A visit that says it had a snap more than the camera numbered."""
    lone = renumbered(kept.observation(), 10)
    stranger = replace(renumbered(kept.observation(), 11), visit=lone.visit + 1, group="another")
    for observation in (lone, stranger):
        made = kept.raw()
        archive.put_raw(Raw(observation, E2V_DETECTOR, made.segments, made.sha256))
    with pytest.raises(BadData, match=rf"{stranger.image_name} detector 94 is snap 0 of visit {stranger.visit}"):
        ArchivedRaws(archive).last_of("LSSTCam", lone.visit, E2V_DETECTOR)


def renumbered(observation: Observation, number: int) -> Observation:
    visit = observation.visit - observation.visit % 100_000 + number
    name = f"{observation.image_name[:-6]}{number:06d}"
    return replace(observation, visit=visit, exposure=visit, image_name=name, group=f"group {number}")
