"""Which template prompt processing takes: those made of visits, before those there were."""

from pathlib import Path

import numpy as np
import pytest
from lsst.daf.butler import Butler, CollectionType

from backbone.butler import ButlerArchive
from schemas import skymap
from schemas.errors import BadData
from schemas.image import Template
from schemas.instrument import camera
from tests.backbone import kept_objects as kept

TRACT, PATCH = skymap.tract_at(150.1, 2.2), 210
NAME = kept.patch_id(TRACT, PATCH)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    archive = ButlerArchive.create(tmp_path / "butler")
    archive.register_camera(camera("LSSTCam"))
    archive.put(NAME, kept.template_patch(TRACT, PATCH))
    return tmp_path / "butler"


def produced(folder: Path, run: str, level: float) -> None:
    """What a pipeline put into a RUN collection."""
    made: Template = kept.template_patch(TRACT, PATCH)
    made.pixels.image[:] = level
    butler = Butler.from_config(str(folder), writeable=True)
    butler.collections.register(run, CollectionType.RUN)
    butler.put(made, "template_patch", NAME.data_id() | {"skymap": skymap.NAME}, run=run)


def level_at(folder: Path) -> float:
    return float(np.median(ButlerArchive.open(folder).get(NAME).pixels.image))


def test_what_a_pipeline_made_is_not_used_until_it_is_said_so(folder: Path) -> None:
    before = level_at(folder)
    produced(folder, "templates/a", 100.0)
    assert level_at(folder) == before
    assert ButlerArchive.open(folder).use_templates("templates/a") == 1
    assert level_at(folder) == 100.0


def test_the_last_that_were_said_are_used(folder: Path) -> None:
    archive = ButlerArchive.open(folder)
    for run, level in (("templates/a", 100.0), ("templates/b", 200.0), ("templates/b", 200.0)):
        if level_at(folder) != level:
            produced(folder, run, level)
        archive.use_templates(run)
    assert level_at(folder) == 200.0


@pytest.mark.parametrize("run", ["templates/none", "templates"])
def test_a_collection_without_templates_is_refused_by_name(tmp_path: Path, run: str) -> None:
    archive = ButlerArchive.create(tmp_path / "butler")
    archive.register_camera(camera("LSSTCam"))
    with pytest.raises(BadData, match=run):
        archive.use_templates(run)


def test_a_repository_made_before_there_were_such_still_has_its_templates(folder: Path) -> None:
    before = level_at(folder)
    butler = Butler.from_config(str(folder), writeable=True)
    chain = butler.collections.get_info("LSSTCam/defaults").children
    butler.collections.redefine_chain("LSSTCam/defaults", [name for name in chain if name != "templates/made"])
    butler.collections.x_remove("templates/made")
    assert level_at(folder) == before
