import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadData
from schemas.identity import (
    MAX_OBJECTS,
    MAX_SOURCES,
    DatasetId,
    dia_forced_source_id,
    dia_source_id,
    dia_source_ids_of,
    exposure_id,
    image_name,
    object_id,
    parent_object_id,
    parse_exposure_id,
    parse_image_name,
    tract_patch_of,
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


@given(visits, st.integers(0, 255), numbers)
def test_ids_of_a_visit_lie_in_its_range_and_no_others_do(visit: int, detector: int, number: int) -> None:
    packed = dia_source_id(visit, detector, number)
    least, most = dia_source_ids_of(visit)
    assert least <= packed <= most
    assert {visit_detector_of(each)[0] for each in (least, most)} == {visit}
    first, last = dia_source_ids_of(visit, detector)
    assert first <= packed <= last
    assert visit_detector_of(first) == visit_detector_of(last) == (visit, detector)
    assert not first <= dia_forced_source_id(visit, detector, number) <= last


@given(st.sampled_from([20250422, 20991231]), st.integers(0, 99_999))
def test_an_exposure_id_is_read_and_written(day_obs: int, seq_num: int) -> None:
    assert parse_exposure_id(exposure_id(day_obs, seq_num)) == (day_obs, seq_num)


@pytest.mark.parametrize(
    ("visit", "detector", "why"),
    [
        (5, None, "5 is not the number of a visit"), (2026130100001, None, "2026130100001 is not the number"),
        (2026070500001, 256, "detector 256 of visit 2026070500001"), (2026070500001, -1, "detector -1"),
    ],
)  # fmt: skip
def test_what_is_no_visit_or_detector_has_no_ids(visit: int, detector: int | None, why: str) -> None:
    with pytest.raises(BadData, match=why):
        dia_source_ids_of(visit, detector)


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


def test_an_objects_id_tells_its_tract_and_patch_and_is_never_null() -> None:
    assert object_id(0, 0, 0) > 0
    assert tract_patch_of(object_id(111_224, 399, MAX_OBJECTS - 1)) == (111_224, 399)
    assert tract_patch_of(parent_object_id(111_224, 399, MAX_OBJECTS - 1)) == (111_224, 399)
    numbers = (0, 1, MAX_OBJECTS - 1)
    named = [(tract, patch, number) for tract in (0, 5) for patch in (0, 399) for number in numbers]
    ids = {make(*name) for make in (object_id, parent_object_id) for name in named}
    assert len(ids) == 24
    assert max(ids) < 1 << 63


@pytest.mark.parametrize(("tract", "patch", "number"), [(-1, 0, 0), (0, 512, 0), (0, -1, 0), (3, 4, MAX_OBJECTS)])
def test_an_object_that_cannot_be_has_no_id(tract: int, patch: int, number: int) -> None:
    with pytest.raises(BadData, match=f"tract {tract}"):
        object_id(tract, patch, number)
