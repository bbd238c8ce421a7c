import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.sal_events import TOPICS, event_of, split_list
from schemas.errors import BadData
from schemas.events import IntegrationStarted, NextVisit, NextVisitCanceled, ReadoutEnded

NEXT_VISIT = "lsst.sal.ScriptQueue.logevent_nextVisit"
CANCELED = "lsst.sal.ScriptQueue.logevent_nextVisitCanceled"
STARTED = "lsst.sal.MTCamera.logevent_startIntegration"
ENDED = "lsst.sal.ATCamera.logevent_endReadout"

VISIT = {
    "groupId": "2026-07-05T22:36:08.255", "coordinateSystem": 2, "position": [-10.0, -20.0],
    "startTime": 1783290968.0, "rotationSystem": 2, "cameraAngle": 12.5, "filters": "r_57", "duration": 36.0,
    "nimages": 2, "instrument": "LSSTCam", "survey": "wide", "private_sndStamp": 1783290946.0,
}  # fmt: skip
IMAGE = {
    "additionalKeys": "imageType:groupId", "additionalValues": r"OBJECT:2026-07-05T22\:36\:08.255",
    "imagesInSequence": 2, "imageName": "MC_O_20260705_000004", "imageIndex": 2, "exposureTime": 15.0,
    "requestedExposureTime": 15.0, "timestampAcquisitionStart": 1783290986.0,
    "timestampEndOfReadout": 1783291004.0,
}  # fmt: skip


def test_a_next_visit_says_where_and_when() -> None:
    assert event_of(NEXT_VISIT, VISIT) == NextVisit(
        group="2026-07-05T22:36:08.255", instrument="LSSTCam", ra=350.0, dec=-20.0, rotation=12.5,
        filters="r_57", start_time=1783290968.0, duration=36.0, n_images=2, survey="wide",
        announced=1783290946.0,
    )  # fmt: skip


def test_a_canceled_visit_is_named() -> None:
    assert event_of(CANCELED, {"groupId": "g", "scriptSalIndex": 1}) == NextVisitCanceled(group="g")


def test_camera_messages_name_their_exposure_and_count_snaps_from_0() -> None:
    group = "2026-07-05T22:36:08.255"
    assert event_of(STARTED, IMAGE) == IntegrationStarted(
        group=group, instrument="LSSTCam", exposure=2026070500004, image_name="MC_O_20260705_000004", snap=1,
        n_snaps=2, exposure_time=15.0, started=1783290986.0,
    )  # fmt: skip
    assert event_of(ENDED, IMAGE | {"imageName": "AT_O_20260705_000004"}) == ReadoutEnded(
        group=group, instrument="LATISS", exposure=2026070500004, image_name="AT_O_20260705_000004", snap=1,
        n_snaps=2, exposure_time=15.0, started=1783290986.0, readout_ended=1783291004.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "values", "image_type"),
    [
        ("imageType:groupId", "BIAS:g", "bias"), ("groupId", "g", "science"), ("imageType:groupId", ":g", "science"),
        ("imageType:groupId", "ENGTEST:g", "engtest"),
    ],
)  # fmt: skip
def test_an_image_is_of_the_type_that_the_camera_tells_and_else_of_the_sky(
    keys: str, values: str, image_type: str
) -> None:
    ended = event_of(ENDED, IMAGE | {"additionalKeys": keys, "additionalValues": values})
    assert isinstance(ended, ReadoutEnded)
    assert ended.image_type == image_type


def test_a_visit_in_no_coordinates_looks_at_no_sky() -> None:
    on_sky = [event_of(NEXT_VISIT, VISIT | {"coordinateSystem": number}) for number in (1, 2)]
    assert [visit.on_sky for visit in on_sky if isinstance(visit, NextVisit)] == [False, True]


def test_a_topic_that_tells_of_no_event_is_passed_over() -> None:
    assert event_of("lsst.sal.MTCamera.logevent_startReadout", {}) is None


@pytest.mark.parametrize(
    ("topic", "change", "reason"),
    [
        (NEXT_VISIT, {"groupId": " "}, "groupId is empty"),
        (NEXT_VISIT, {"instrument": ""}, "instrument is empty"),
        (NEXT_VISIT, {"coordinateSystem": 3}, r"coordinateSystem 3 \(OBSERVED\) is not used here"),
        (NEXT_VISIT, {"coordinateSystem": 0}, r"coordinateSystem 0 \(unknown\)"),
        (NEXT_VISIT, {"rotationSystem": 4}, r"rotationSystem 4 \(MOUNT\)"),
        (NEXT_VISIT, {"position": [math.nan, 0.0]}, "position nan is not a finite number"),
        (NEXT_VISIT, {"position": [0.0, -90.5]}, "declination is out of range"),
        (NEXT_VISIT, {"position": [0.0]}, "is not two numbers"),
        (NEXT_VISIT, {"startTime": math.nan}, "startTime nan"),
        (NEXT_VISIT, {"startTime": 0.0}, r"startTime 0\.0 is not a time"),
        (NEXT_VISIT, {"cameraAngle": math.inf}, "cameraAngle inf"),
        (NEXT_VISIT, {"startTime": 1e300}, r"startTime 1e\+300 is not a time"),
        (NEXT_VISIT, {"nimages": -1}, r"nimages -1\.0 is not between 0 and 9999"),
        (NEXT_VISIT, {"nimages": 2**62}, r"nimages 4\.6.*e\+18 is not between 0 and 9999"),
        (NEXT_VISIT, {"duration": 1e9}, r"duration 1000000000\.0 is not between"),
        (NEXT_VISIT, {"position": [1e9, 0.0]}, "right ascension is out of range"),
        (NEXT_VISIT, {"cameraAngle": -361.0}, r"cameraAngle -361\.0 is not between"),
        (NEXT_VISIT, {"instrument": "HSC"}, "instrument 'HSC' is none of LSSTCam, LATISS"),
        (NEXT_VISIT, {"groupId": "g\0"}, r"groupId 'g\\x00' has characters"),
        (STARTED, {"imagesInSequence": 2**40}, r"imageIndex 2 of imagesInSequence 1099511627776"),
        (NEXT_VISIT, {"duration": math.nan}, "duration nan"),
        (NEXT_VISIT, {"filters": 3}, "filters 3 is not text"),
        (CANCELED, {"groupId": ""}, "groupId is empty"),
        (STARTED, {"imageName": "MC_O_2026_4"}, "'MC_O_2026_4' is not an image name"),
        (STARTED, {"imageName": ""}, "imageName is empty"),
        (STARTED, {"imageIndex": 0}, "imageIndex 0 of imagesInSequence 2"),
        (STARTED, {"imageIndex": 3}, "imageIndex 3 of imagesInSequence 2"),
        (STARTED, {"imageIndex": 1.0}, r"imageIndex 1\.0 is not an integer"),
        (ENDED, {"additionalValues": "BIAS\0:g"}, "imageType 'BIAS.x00' has characters"),
        (STARTED, {"additionalKeys": "imageType"}, "1 additionalKeys .* but 2 additionalValues"),
        (STARTED, {"additionalKeys": "", "additionalValues": ""}, "no groupId among"),
        (STARTED, {"additionalValues": "OBJECT:"}, "no groupId among"),
        (STARTED, {"additionalValues": "OBJECT:g\0"}, "groupId 'g.x00' has characters"),
        (STARTED, {"exposureTime": -1.0}, "exposureTime -1"),
        (STARTED, {"timestampAcquisitionStart": math.nan}, "timestampAcquisitionStart nan"),
        (ENDED, {"timestampEndOfReadout": math.nan}, "timestampEndOfReadout nan"),
    ],
)
def test_a_field_that_makes_no_sense_is_refused_by_name(topic: str, change: dict[str, object], reason: str) -> None:
    whole = VISIT if "ScriptQueue" in topic else IMAGE
    assert event_of(topic, whole) is not None
    with pytest.raises(BadData, match=reason):
        event_of(topic, whole | change)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_missing_field_is_refused_by_name(topic: str) -> None:
    whole = VISIT if "ScriptQueue" in topic else IMAGE
    refused = set()
    for name in whole:
        try:
            event_of(topic, {key: value for key, value in whole.items() if key != name})
        except BadData as error:
            assert str(error) == f"no field {name}"  # noqa: PT017 - some fields are not every topic's
            refused.add(name)
    assert refused >= ({"groupId"} if "ScriptQueue" in topic else {"additionalKeys", "imageName", "imageIndex"})


@given(st.lists(st.text("ab:\\ \n", max_size=6).map(str.strip), min_size=1, max_size=4))
def test_a_delimited_list_gives_back_its_values(values: list[str]) -> None:
    text = ":".join(value.replace("\\", "\\\\").replace(":", "\\:") for value in values)
    assert split_list(text) == values


def test_a_delimited_list_that_ends_within_an_escape_keeps_the_backslash() -> None:
    assert split_list("a:b\\") == ["a", "b\\"]
