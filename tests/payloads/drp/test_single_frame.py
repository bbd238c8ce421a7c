"""Raws that are not one visit-detector's."""

from dataclasses import replace

import numpy as np
import pytest

from payloads.drp.single_frame import single_frame
from schemas.errors import BadData
from schemas.image import Raw
from schemas.instrument import camera
from schemas.tables import REFCAT_DTYPE
from tests.backbone import kept_objects as kept

DETECTOR = camera("LSSTCam")[kept.E2V_DETECTOR]


def reduced(*raws: Raw) -> None:
    single_frame(raws, kept.calibration(), DETECTOR, np.zeros(0, REFCAT_DTYPE))


def test_no_raw_is_refused_by_the_detectors_number() -> None:
    with pytest.raises(BadData, match="no raw of detector 94"):
        reduced()


def test_a_visit_without_its_last_snap_is_refused_by_name() -> None:
    with pytest.raises(BadData, match=r"has 2 snaps, not \[0\]"):
        reduced(kept.raw())


def test_snaps_of_two_visits_are_refused_by_name() -> None:
    second = kept.raw(snap=1)
    other = replace(second, observation=replace(second.observation, visit=second.observation.visit + 8))
    with pytest.raises(BadData, match="raws of one visit and detector 94"):
        reduced(kept.raw(), other)


def test_raws_of_another_detector_are_refused() -> None:
    with pytest.raises(BadData, match="raws of one visit and detector 94"):
        reduced(kept.raw(detector=kept.ITL_DETECTOR), kept.raw(detector=kept.ITL_DETECTOR, snap=1))
