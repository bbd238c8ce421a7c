"""Names and numbers of things: exposures, visits, datasets, sources.

Ids are computed from what they name, never drawn from a counter: a retry gives the same ones.
"""

import datetime as dt
import hashlib
import re

from pydantic import BaseModel, ConfigDict

from schemas.errors import BadData

_IMAGE_NAME = re.compile(r"^(?P<source>[A-Z]{2})_(?P<controller>[A-Z])_(?P<day_obs>\d{8})_(?P<seq_num>\d{6})$")
_FIRST_DAY = dt.date(2010, 1, 1).toordinal()
_SEQ_BITS, _DETECTOR_BITS, _NUMBER_BITS = 17, 8, 22
_MAX_DETECTOR = (1 << _DETECTOR_BITS) - 1

_PATCH_BITS, _OBJECT_BITS = 9, 22

MAX_SEQ_NUM = 99_999
MAX_SOURCES = 1 << (_NUMBER_BITS - 1)
"""How many DIASources, and as many forced sources, one visit-detector can hold."""
MAX_OBJECTS = (1 << (_OBJECT_BITS - 1)) - 1
"""How many Objects, and as many blends, one patch can hold."""


def exposure_id(day_obs: int, seq_num: int) -> int:
    """Exposure id `YYYYMMDDNNNNN`, as the Data Butler's LSSTCam has it. A visit's id is its first exposure's.

    Raises BadData if `seq_num` is not in 0..99999.
    """
    if not 0 <= seq_num <= MAX_SEQ_NUM:
        raise BadData(f"sequence number {seq_num} of {day_obs} is not in 0..{MAX_SEQ_NUM}")
    return day_obs * 100_000 + seq_num


def parse_exposure_id(number: int) -> tuple[int, int]:
    """(day_obs, seq_num) of the id of an exposure or visit."""
    return divmod(number, 100_000)


def day_obs_of_visit(visit: int) -> int:
    """The night of a visit or exposure, YYYYMMDD."""
    return parse_exposure_id(visit)[0]


def image_name(day_obs: int, seq_num: int, source: str = "MC", controller: str = "O") -> str:
    """The camera's image name, `MC_O_20250422_000250`."""
    return f"{source}_{controller}_{day_obs:08d}_{seq_num:06d}"


def parse_image_name(name: str) -> tuple[int, int]:
    """(day_obs, seq_num) of an image name. Raises BadData if it is none."""
    match = _IMAGE_NAME.match(name)
    if match is None:
        raise BadData(f"{name!r} is not an image name such as MC_O_20250422_000250")
    return int(match["day_obs"]), int(match["seq_num"])


def dia_source_id(visit: int, detector: int, number: int) -> int:
    """64-bit id of the `number`-th DIASource of a visit-detector: day | seq_num | detector | number."""
    return _pack(visit, detector, number, 0)


def dia_forced_source_id(visit: int, detector: int, number: int) -> int:
    """64-bit id of the `number`-th DIAForcedSource of a visit-detector; shares no value with `dia_source_id`."""
    return _pack(visit, detector, number, MAX_SOURCES)


def dia_source_ids_of(visit: int, detector: int | None = None) -> tuple[int, int]:
    """The least and the greatest id that a DIASource of a visit, or of one of its detectors, can have.

    Raises BadData for a number that is none of a visit or detector.
    """
    first, last = (0, _MAX_DETECTOR) if detector is None else (detector, detector)
    return dia_source_id(visit, first, 0), dia_source_id(visit, last, MAX_SOURCES - 1)


def visit_detector_of(dia_source: int) -> tuple[int, int]:
    """(visit, detector) that made an id. Raises BadData for a number that is none."""
    packed = dia_source >> _NUMBER_BITS
    detector = packed & ((1 << _DETECTOR_BITS) - 1)
    seq_num = (packed >> _DETECTOR_BITS) & ((1 << _SEQ_BITS) - 1)
    try:
        day = dt.date.fromordinal(_FIRST_DAY + (packed >> (_DETECTOR_BITS + _SEQ_BITS)))
    except (ValueError, OverflowError) as error:
        raise BadData(f"{dia_source} is not the id of a DIASource: {error}") from error
    return exposure_id(int(day.strftime("%Y%m%d")), seq_num), detector


def object_id(tract: int, patch: int, number: int) -> int:
    """64-bit id of the `number`-th Object of a patch, never 0: tract | patch | number + 1."""
    return _pack_object(tract, patch, number, 1)


def parent_object_id(tract: int, patch: int, number: int) -> int:
    """64-bit id of the `number`-th blend of a patch; shares no value with `object_id`."""
    return _pack_object(tract, patch, number, 1 + MAX_OBJECTS)


def tract_patch_of(number: int) -> tuple[int, int]:
    """(tract, patch) in which an Object, or a blend, was found, from its id."""
    return divmod(number >> _OBJECT_BITS, 1 << _PATCH_BITS)


def ss_object_id(designation: str) -> int:
    """Positive 63-bit id of a Solar System object: BLAKE2b of its unpacked primary designation (`2008 AB`).

    Among ten million objects the chance that any two share one is 5e-6. Raises BadData for an empty designation.
    """
    if not designation:
        raise BadData("an empty designation names no Solar System object")
    digest = hashlib.blake2b(designation.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1


def _pack(visit: int, detector: int, number: int, first: int) -> int:
    if not 0 <= number < MAX_SOURCES:
        raise BadData(f"source number {number} of visit {visit} detector {detector} is not in 0..{MAX_SOURCES - 1}")
    if not 0 <= detector <= _MAX_DETECTOR:
        raise BadData(f"detector {detector} of visit {visit} is not in 0..{_MAX_DETECTOR}")
    day_obs, seq_num = parse_exposure_id(visit)
    try:
        day = dt.date(day_obs // 10_000, day_obs // 100 % 100, day_obs % 100).toordinal() - _FIRST_DAY
    except (ValueError, OverflowError) as error:
        raise BadData(f"{visit} is not the number of a visit, YYYYMMDDNNNNN: {error}") from error
    packed = (day << _SEQ_BITS) | seq_num
    return (((packed << _DETECTOR_BITS) | detector) << _NUMBER_BITS) | (first + number)


def _pack_object(tract: int, patch: int, number: int, first: int) -> int:
    if tract < 0 or not 0 <= patch < 1 << _PATCH_BITS:
        raise BadData(f"there is no patch {patch} of tract {tract}")
    if not 0 <= number < MAX_OBJECTS:
        raise BadData(f"object number {number} of tract {tract} patch {patch} is not in 0..{MAX_OBJECTS - 1}")
    return (((tract << _PATCH_BITS) | patch) << _OBJECT_BITS) | (first + number)


class DatasetId(BaseModel):
    """The name of anything kept or passed: a dataset type and what distinguishes one dataset from the next."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_type: str
    instrument: str | None = None
    exposure: int | None = None
    visit: int | None = None
    detector: int | None = None
    band: str | None = None
    physical_filter: str | None = None
    tract: int | None = None
    patch: int | None = None

    @classmethod
    def of_raw(cls, instrument: str, exposure: int, detector: int) -> "DatasetId":
        """The name of a raw: one detector of one exposure."""
        return cls(dataset_type="raw", instrument=instrument, exposure=exposure, detector=detector)

    def data_id(self) -> dict[str, int | str]:
        """The distinguishing values that are set, by dimension name (as the Data Butler takes them)."""
        return self.model_dump(exclude={"dataset_type"}, exclude_none=True)

    def __str__(self) -> str:
        """`raw/LSSTCam/2026070500004/94`, for file names, logs and keys."""
        return "/".join([self.dataset_type, *(str(v) for v in self.data_id().values())])
