import io
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from backbone.butler import ButlerArchive
from cluster import calibrate
from cluster.batch.run_folder import RunFolder
from cluster.cli import app
from cluster.settings import Settings
from schemas.clock import midnight_of, noon_of
from schemas.errors import BadData
from schemas.identity import DatasetId
from schemas.instrument import camera
from tests.backbone import kept_objects as kept

LSSTCAM = camera("LSSTCam")


def test_an_afternoon_has_all_that_the_pipeline_takes() -> None:
    seen = calibrate.afternoon(LSSTCAM, ["r_57", "g_6"], 20260705)
    assert Counter(each.image_type for each in seen) == {"bias": 10, "dark": 5, "spot": 4, "flat": 40}
    assert Counter(each.band for each in seen if (each.image_type, each.n_snaps) == ("flat", 1)) == {"r": 10, "g": 10}
    assert len({each.exposure for each in seen}) == len(seen)


def test_the_two_of_a_pair_share_light_and_time() -> None:
    pairs = [each for each in calibrate.afternoon(LSSTCAM, ["r_57"], 20260705) if each.n_snaps == 2]
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert (one.group, one.visit, one.exposure_time) == (other.group, other.visit, other.exposure_time)
        assert (one.snap, other.snap) == (0, 1)
        assert other.started >= one.readout_ended


def test_exposures_come_one_after_another_before_the_night() -> None:
    seen = calibrate.afternoon(LSSTCAM, ["r_57"], 20260705)
    assert seen[0].started == noon_of(20260705)
    assert all(later.started >= each.readout_ended for each, later in pairwise(seen))
    assert seen[-1].readout_ended < midnight_of(20260705)


def test_a_filter_that_the_camera_has_not_is_refused_by_name() -> None:
    with pytest.raises(BadData, match="H_alpha"):
        calibrate.afternoon(LSSTCAM, ["H_alpha"], 20260705)


def test_raws_are_archived_once(tmp_path: Path) -> None:
    settings = Settings(output=tmp_path, detectors=(kept.E2V_DETECTOR,))
    archive = ButlerArchive.create(settings.butler)
    archive.register_camera(LSSTCAM)
    (bias, *_) = calibrate.afternoon(LSSTCAM, ["r_57"], 20260705)
    assert calibrate.take(settings, [bias], 1, 1) == 1
    assert calibrate.take(settings, [bias], 1, 1) == 0
    name = DatasetId.of_raw("LSSTCam", bias.exposure, kept.E2V_DETECTOR)
    assert archive.observation_of(name).image_type == "bias"


@pytest.mark.parametrize(("made", "code"), [(2, 0), (1, 1)])
def test_a_calibration_that_is_lacking_is_told_also_if_nothing_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: int, code: int
) -> None:
    (tmp_path / "run").write_text("u/run")
    monkeypatch.setattr(calibrate, "take", lambda *_: 0)
    monkeypatch.setattr(calibrate.commands, "submit", lambda *_: RunFolder(tmp_path))
    monkeypatch.setattr(calibrate.commands, "wait", lambda *_: 0)
    monkeypatch.setattr(ButlerArchive, "certify", lambda *_: made)
    settings = Settings(output=tmp_path, detectors=(kept.E2V_DETECTOR,))
    console = Console(record=True, quiet=False, file=io.StringIO())
    assert calibrate.run(settings, ["r_57", "g_6"], 20260705, 1, 1, console) == code
    assert f"{made} of 2 calibrations hold" in console.export_text()


@pytest.mark.parametrize(("night", "said"), [("20260732", "20260732 is not a night"), ("20260705", "u/nothing")])
def test_what_cannot_be_certified_is_refused_in_a_line(tmp_path: Path, night: str, said: str) -> None:
    ButlerArchive.create(tmp_path / "butler").register_camera(LSSTCAM)
    given = ["batch", "certify", "u/nothing", "--butler", str(tmp_path / "butler"), "--from", night]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert said in result.output
