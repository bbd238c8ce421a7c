import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadData
from schemas.identity import (
    MAX_SOURCES,
    DatasetId,
    dia_forced_source_id,
    dia_source_id,
    exposure_id,
    image_name,
    parse_image_name,
    visit_detector_of,
)

visits = st.builds(exposure_id, st.sampled_from([20250422, 20260705, 20991231]), st.integers(0, 99_999))
detectors = st.integers(0, 204)
numbers = st.integers(0, MAX_SOURCES - 1)


@given(visits, detectors, numbers)
def test_an_id_tells_its_visit_and_detector_and_fits_64_bits(visit: int, detector: int, number: int) -> None:
    packed = dia_source_id(visit, detector, number)
    assert 0 < packed < 2**63
    assert visit_detector_of(packed) == (visit, detector)


@given(visits, detectors, numbers, numbers)
def test_sources_and_forced_sources_share_no_id(visit: int, detector: int, one: int, other: int) -> None:
    assert dia_source_id(visit, detector, one) != dia_forced_source_id(visit, detector, other)


def test_a_number_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(BadData, match="detector 94"):
        dia_forced_source_id(2026070500001, 94, MAX_SOURCES)
    with pytest.raises(BadData, match="-1"):
        dia_source_id(2026070500001, 94, -1)


def test_image_names_are_read_and_written() -> None:
    assert parse_image_name(image_name(20260705, 42)) == (20260705, 42)
    with pytest.raises(BadData, match="MC_O_nonsense"):
        parse_image_name("MC_O_nonsense")


def test_a_sequence_number_beyond_the_night_is_refused() -> None:
    with pytest.raises(BadData, match="100000"):
        exposure_id(20260705, 100_000)


def test_a_dataset_is_named_by_type_and_data_id() -> None:
    name = DatasetId(dataset_type="raw", instrument="LSSTCam", exposure=7, detector=94)
    assert str(name) == "raw/LSSTCam/7/94"
    assert name.data_id() == {"instrument": "LSSTCam", "exposure": 7, "detector": 94}
