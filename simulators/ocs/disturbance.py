"""What the observatory says wrongly: from a visit's moments to disturbed ones. Pure; pixels are the camera's affair.

late: one kind of message comes `seconds` late. twice: every message comes again `seconds` later. reversed: all come
when the visit is over, the last one first. malformed: before every message that matters come four in its topic that
cannot be used: no Avro, an unknown schema, a field missing, a NaN. stranger: the visit is announced a second time, for
an instrument that is not ours. no_images: announced, never taken. no_next_visit: taken, never announced.
no_last_snap: the last exposure is never taken. canceled_before, _during, _after: called off before the first exposure,
while it runs (it ends, no other follows), or when all is read out. skew: the observatory stamps its messages `seconds`
ahead of the camera's and everybody else's time.
"""

import dataclasses
import itertools
import math
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence

from schemas.image import Observation
from simulators.faults import Fault, Observatory, Rush
from simulators.ocs import sal
from simulators.ocs.schedule import READOUT_S, SHUTTER_S, PlannedVisit
from simulators.ocs.timeline import CANCELED_S, Moment, canceled, timeline

_STEP_S = 0.01
"""Between messages that come one on the other's heels."""
_SHORTEST_S = 1.0
"""Exposure of a visit in a hurry."""
_AFTER_S = 1.0
"""From the last readout to a late cancellation."""
_UNKNOWN_SCHEMA = 987_654
_NO_AVRO = b"no Avro, and in no frame"
_TIMES = {"startTime", "timestampAcquisitionStart", "timestampStartOfReadout", "timestampEndOfReadout",
          "timestampDateObs", "timestampDateEnd"}  # fmt: skip
_MATTER = {
    "nextVisit": ("groupId", "duration"),
    "startIntegration": ("additionalValues", "timestampAcquisitionStart"),
    "endReadout": ("imageName", "timestampEndOfReadout"),
}
"""Message -> the field that a malformed one lacks, and the one in which it has a NaN."""


def disturbed(
    plan: Sequence[PlannedVisit], canceled_groups: Collection[str], faults: Iterable[Fault]
) -> Iterator[Moment]:
    """The moments of a night as `timeline` has them, with what goes wrong in the observatory."""
    wrong = [fault for fault in faults if isinstance(fault, Observatory)]
    ahead = sum(fault.seconds for fault in wrong if fault.what == "skew")

    def changed(number: int, visit: PlannedVisit, moments: list[Moment]) -> list[Moment]:
        for fault in wrong:
            if fault.visit == number and fault.what != "skew":
                moments = disturb(moments, visit, fault)
        return [_skewed(moment, ahead) for moment in moments] if ahead else moments

    return timeline(plan, canceled_groups, changed)


def hurried(plan: Sequence[PlannedVisit], faults: Iterable[Fault]) -> list[PlannedVisit]:
    """A plan whose visits come as much faster as the faults have it, with exposures short enough for that."""
    factor = math.prod(fault.factor for fault in faults if isinstance(fault, Rush))
    if factor == 1.0 or len(plan) < 2:
        return list(plan)
    first = plan[0].start_tai
    cadence = min(after.start_tai - before.start_tai for before, after in itertools.pairwise(plan)) / factor
    visits: list[PlannedVisit] = []
    for visit in plan:
        exposed = max(_SHORTEST_S, min(visit.exposure_time, cadence / visit.n_snaps - SHUTTER_S - READOUT_S))
        start = first + (visit.start_tai - first) / factor
        earliest = visits[-1].start_tai + visits[-1].duration if visits else first
        visits.append(dataclasses.replace(visit, start_tai=max(start, earliest), exposure_time=exposed))
    return visits


def skew_of(faults: Iterable[Fault]) -> float:
    """How far ahead (s) the observatory's clock is."""
    return sum(f.seconds for f in faults if isinstance(f, Observatory) and f.what == "skew")


def disturb(moments: list[Moment], visit: PlannedVisit, fault: Observatory) -> list[Moment]:
    """A visit's moments, in order of time, with one fault."""
    made = _WAYS[fault.what](moments, visit, fault)
    return sorted(made, key=lambda moment: moment.tai)


def message_of(moment: Moment) -> str:
    """The message's name as SAL has it, or `expose`."""
    return moment.kind.rpartition("_")[2]


def _late(moments: list[Moment], _: PlannedVisit, fault: Observatory) -> list[Moment]:
    return [m._replace(tai=m.tai + fault.seconds) if message_of(m) == fault.message else m for m in moments]


def _twice(moments: list[Moment], _: PlannedVisit, fault: Observatory) -> list[Moment]:
    return moments + [m._replace(tai=m.tai + fault.seconds) for m in _said(moments)]


def _reversed(moments: list[Moment], _: PlannedVisit, __: Observatory) -> list[Moment]:
    over = moments[-1].tai
    told = [m._replace(tai=over + _STEP_S * number) for number, m in enumerate(reversed(_said(moments)), 1)]
    return [m for m in moments if isinstance(m.payload, Observation)] + told


def _malformed(moments: list[Moment], _: PlannedVisit, __: Observatory) -> list[Moment]:
    bad = [m._replace(payload=payload) for m in moments for payload in _nonsense(m)]
    return bad + moments  # sorting keeps the order of what has one time


def _nonsense(moment: Moment) -> list[sal.Record | bytes]:
    fields = _MATTER.get(message_of(moment))
    if fields is None or not isinstance(moment.payload, dict):
        return []
    lacks, is_nan = fields
    short = {name: value for name, value in moment.payload.items() if name != lacks}
    return [_NO_AVRO, struct.pack(">bI", 0, _UNKNOWN_SCHEMA) + bytes(64), short, moment.payload | {is_nan: math.nan}]


def _stranger(moments: list[Moment], visit: PlannedVisit, _: Observatory) -> list[Moment]:
    other = {"instrument": "ComCam", "groupId": f"{visit.group}-other"}
    announced = [m._replace(payload=m.payload | other) for m in moments
                 if message_of(m) == "nextVisit" and isinstance(m.payload, dict)]  # fmt: skip
    return moments + announced


def _no_images(moments: list[Moment], _: PlannedVisit, __: Observatory) -> list[Moment]:
    return [m for m in moments if message_of(m) == "nextVisit"]


def _no_next_visit(moments: list[Moment], _: PlannedVisit, __: Observatory) -> list[Moment]:
    return [m for m in moments if message_of(m) != "nextVisit"]


def _no_last_snap(moments: list[Moment], visit: PlannedVisit, _: Observatory) -> list[Moment]:
    last = visit.observation(visit.n_snaps - 1).image_name
    return [m for m in moments if _image(m) != last]


def _canceled_before(moments: list[Moment], visit: PlannedVisit, _: Observatory) -> list[Moment]:
    announced = _no_images(moments, visit, _)
    return [*announced, canceled(visit, announced[0].tai + CANCELED_S)]


def _canceled_during(moments: list[Moment], visit: PlannedVisit, _: Observatory) -> list[Moment]:
    first = visit.observation(0)
    kept = [m for m in moments if _image(m) in {"", first.image_name}]
    return [*kept, canceled(visit, first.midpoint)]


def _canceled_after(moments: list[Moment], visit: PlannedVisit, _: Observatory) -> list[Moment]:
    return [*moments, canceled(visit, visit.start_tai + visit.duration + _AFTER_S)]


_WAYS = {
    "late": _late,
    "twice": _twice,
    "reversed": _reversed,
    "malformed": _malformed,
    "stranger": _stranger,
    "no_images": _no_images,
    "no_next_visit": _no_next_visit,
    "no_last_snap": _no_last_snap,
    "canceled_before": _canceled_before,
    "canceled_during": _canceled_during,
    "canceled_after": _canceled_after,
}


def _said(moments: list[Moment]) -> list[Moment]:
    """What goes over Kafka."""
    return [m for m in moments if not isinstance(m.payload, Observation)]


def _image(moment: Moment) -> str:
    """The image that a moment is about, "" if none."""
    if isinstance(moment.payload, Observation):
        return moment.payload.image_name
    return str(moment.payload.get("imageName", "")) if isinstance(moment.payload, dict) else ""


def _skewed(moment: Moment, seconds: float) -> Moment:
    """The same at the same time, with other times in it."""
    if not isinstance(moment.payload, dict):
        return moment
    moved = {
        name: value + seconds for name, value in moment.payload.items() if name in _TIMES and isinstance(value, float)
    }
    return moment._replace(payload=moment.payload | moved)
