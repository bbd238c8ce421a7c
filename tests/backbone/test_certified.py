"""Which calibration holds when: certified ones for their time, before those that hold unbounded."""

from pathlib import Path

import numpy as np
import pytest
from lsst.daf.butler import Butler, CollectionType

from backbone.butler import ButlerArchive
from backbone.butler_errors import NotKept
from schemas.clock import midnight_of
from schemas.errors import BadData
from schemas.image import Calibration
from schemas.instrument import camera
from tests.backbone import kept_objects as kept

NAME = kept.calibration_id()
FIRST, SECOND, THIRD = map(midnight_of, (20260705, 20260706, 20260707))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    archive = ButlerArchive.create(tmp_path / "butler")
    archive.register_camera(camera("LSSTCam"))
    archive.put(NAME, kept.calibration())
    return tmp_path / "butler"


def produced(folder: Path, run: str, gain: float) -> Calibration:
    """What a pipeline put into a RUN collection."""
    made = kept.calibration()
    made.gain[:] = gain
    butler = Butler.from_config(str(folder), writeable=True)
    butler.collections.register(run, CollectionType.RUN)
    butler.put(made, "calibration", NAME.data_id(), run=run)
    return made


def gain_at(folder: Path, time: float) -> float:
    return float(ButlerArchive.open(folder).get_certified(NAME, time).gain[0])


def test_without_a_certified_one_the_unbounded_holds(folder: Path) -> None:
    assert gain_at(folder, FIRST) == kept.calibration().gain[0]


def test_a_certified_one_holds_from_its_begin_to_its_end(folder: Path) -> None:
    produced(folder, "LSSTCam/calib/a", 2.0)
    assert ButlerArchive.open(folder).certify("LSSTCam/calib/a", "calibration", SECOND, THIRD) == 1
    assert gain_at(folder, FIRST) == kept.calibration().gain[0]
    assert gain_at(folder, SECOND) == 2.0
    assert gain_at(folder, THIRD) == kept.calibration().gain[0]


def test_one_certified_later_takes_the_place_of_the_other_in_its_time_only(folder: Path) -> None:
    archive = ButlerArchive.open(folder)
    for run, gain, begin in (("LSSTCam/calib/a", 2.0, FIRST), ("LSSTCam/calib/b", 3.0, SECOND)):
        produced(folder, run, gain)
        archive.certify(run, "calibration", begin, None)
    assert [gain_at(folder, time) for time in (FIRST, SECOND, THIRD)] == [2.0, 3.0, 3.0]
    archive.certify("LSSTCam/calib/b", "calibration", SECOND, None)
    assert [gain_at(folder, time) for time in (FIRST, SECOND, THIRD)] == [2.0, 3.0, 3.0]


def test_plain_butler_finds_it_in_the_instrument_s_defaults(folder: Path) -> None:
    made = produced(folder, "LSSTCam/calib/a", 2.0)
    ButlerArchive.open(folder).certify("LSSTCam/calib/a", "calibration", None, None)
    butler = Butler.from_config(str(folder), collections="LSSTCam/defaults")
    assert np.array_equal(butler.get("calibration", NAME.data_id()).gain, made.gain)


@pytest.mark.parametrize(
    ("run", "dataset_type", "said"),
    [
        ("LSSTCam/calib/a", "raw", "a raw is not certified"),
        ("LSSTCam/calib/nothing", "calibration", "LSSTCam/calib/nothing"),
        ("LSSTCam/raw/all", "calibration", "has no calibration"),
    ],
)
def test_what_is_not_to_be_certified_is_refused(folder: Path, run: str, dataset_type: str, said: str) -> None:
    with pytest.raises(BadData, match=said):
        ButlerArchive.open(folder).certify(run, dataset_type, FIRST, None)


def test_what_there_is_none_of_is_named(folder: Path) -> None:
    other = NAME.model_copy(update={"physical_filter": "g_6"})
    with pytest.raises(NotKept, match="calibration/LSSTCam/94/g_6"):
        ButlerArchive.open(folder).get_certified(other, FIRST)
