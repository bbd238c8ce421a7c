import csv
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import BadData
from schemas.instrument import BANDS, camera

CORNERS = Path(__file__).parents[3] / "shared/data/camera/detectors_corners.csv"


def test_the_focal_plane_has_189_ccds_of_two_formats() -> None:
    detectors = camera("LSSTCam").detectors
    assert [d.id for d in detectors] == list(range(189))
    assert sum(d.format.vendor == "ITL" for d in detectors) == 72
    assert {(d.format.width, d.format.height) for d in detectors} == {(4096, 4004), (4072, 4000)}


@pytest.mark.skipif(not CORNERS.exists(), reason="the measured corners are not here")
def test_detectors_lie_where_the_real_ones_do() -> None:
    corners = defaultdict(list)
    with CORNERS.open() as file:
        for row in csv.DictReader(file):
            corners[int(row["detector"])].append((float(row["x"]), float(row["y"])))
    real = np.degrees([np.mean(corners[d.id], axis=0) for d in camera("LSSTCam").detectors]) * 3600
    ours = np.array([d.center_arcsec for d in camera("LSSTCam").detectors])
    assert np.abs(real - ours).max() < 6.0  # 0.05 % of plate scale at the edge, 1.75 deg out


def test_amplifiers_tile_the_detector() -> None:
    for name in ("R01_S00", "R22_S11"):
        (detector,) = camera("LSSTCam").select(name)
        covered = np.zeros((detector.format.height, detector.format.width), int)
        for amp in detector.amplifiers:
            covered[amp.y0 : amp.y0 + detector.format.amp_height, amp.x0 : amp.x0 + detector.format.amp_width] += 1
        assert (covered == 1).all()
        assert len({amp.name for amp in detector.amplifiers}) == 16


def test_detectors_are_chosen_by_id_name_raft_or_all() -> None:
    cam = camera("LSSTCam")
    assert [d.name for d in cam.select("R22_S11, 0")] == ["R01_S00", "R22_S11"]
    assert len(cam.select("R22")) == 9
    assert len(cam.select("all")) == 189
    assert camera("LATISS").select("all")[0].name == "RXX_S00"


@pytest.mark.parametrize(("ask", "named"), [("R99", "R99"), ("R22,500", "500"), ("", "no detector named")])
def test_a_detector_that_is_not_there_is_refused_by_name(ask: str, named: str) -> None:
    with pytest.raises(BadData, match=named):
        camera("LSSTCam").select(ask)


def test_a_filter_or_camera_that_is_not_there_is_refused_by_name() -> None:
    assert {camera("LSSTCam").band_of(f) for f in camera("LSSTCam").filters} == set(BANDS)
    with pytest.raises(BadData, match="H_alpha"):
        camera("LSSTCam").band_of("H_alpha")
    with pytest.raises(BadData, match="HSC"):
        camera("HSC")


def test_a_detector_that_was_sent_to_another_process_is_read_from_the_same_corners() -> None:
    for number in (0, 94):
        sent = pickle.loads(pickle.dumps(camera("LSSTCam")[number]))  # noqa: S301 (made here)
        assert sent.amplifiers == camera("LSSTCam")[number].amplifiers
