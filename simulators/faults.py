"""What can go wrong in a night, described: who carries it out reads it here, and nothing happens in this module.

The observatory's part is carried out by `simulators.ocs.disturbance`, the camera's by `simulators.camera.faults`, what
needs processes by whoever holds them. A night's faults come from the library, by name; from a storm of them, by its
seed; or from a file, YAML or JSON: a list of names and of faults written out,

    - kill-archiver
    - {do: freeze, process: broker, seconds: 60, at: {visit: 2, fact: RawReady, detector: 94, after_s: 1.5}}
    - {do: observatory, what: late, message: endReadout, seconds: 40, visit: 3}
    - {do: camera, what: cut, visit: 2, visits: 3}
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from schemas.errors import BadData
from schemas.events import EVENTS

ALERT_FILE, ALERT_SEEN = "AlertFile", "AlertSeen"
"""Moments that no fact tells of: a file of a visit-detector lies in the alert archive; its first alert is in the topic.
"""

Other = Literal[
    "camera_reader", "ccd_worker", "associator", "alert_emitter", "lite_emitter", "herald", "archiver", "catch_up",
    "offline", "shelf", "raylet", "gcs", "broker", "postgres", "daq",
]  # fmt: skip
"""A pool's host; the pixel store; Ray's own processes; the servers; the camera's DAQ."""

Process = Literal[Other, "driver"]
"""The driver holds the bus, and carries the faults out: it can kill itself, but not wake itself."""

Seconds = Annotated[float, Field(ge=0.0, le=86400.0, allow_inf_nan=False)]
Ordinal = Annotated[int, Field(ge=1)]


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class When(_Described):
    """`after_s` wall seconds after the first `fact` of a kind about the `visit`-th planned visit, counted from 1.

    `detector`: only facts about this one. Without a visit: after the night's beginning.
    """

    visit: Ordinal | None = None
    fact: str = "NextVisit"
    detector: Annotated[int, Field(ge=0)] | None = None
    after_s: Seconds = 0.0

    @field_validator("fact")
    @classmethod
    def _is_told(cls, fact: str) -> str:
        if fact not in {*EVENTS, ALERT_FILE, ALERT_SEEN}:
            raise ValueError(f"no fact {fact!r} is ever told")
        return fact


class Kill(_Described):
    """A process dies at once, as by SIGKILL. Whether it comes back is for others to see to."""

    do: Literal["kill"] = "kill"
    process: Process
    at: When


class Freeze(_Described):
    """A process, with all its children, stands still for some wall seconds: SIGSTOP, then SIGCONT."""

    do: Literal["freeze"] = "freeze"
    process: Other
    seconds: Seconds
    at: When


class DiskFull(_Described):
    """For some wall seconds a process can write nothing more to any file (RLIMIT_FSIZE 0: every write says EFBIG)."""

    do: Literal["disk_full"] = "disk_full"
    process: Other
    seconds: Seconds
    at: When


class Observatory(_Described):
    """The observatory control says something wrong about a visit; see `simulators.ocs.disturbance` for `what`.

    `message`: which one comes late, as SAL names it. `seconds` (of the night): how late, how much later the second
    time, or by how much its clock is ahead. `skew` concerns the whole night, whatever the visit.
    """

    do: Literal["observatory"] = "observatory"
    what: Literal[
        "late", "twice", "reversed", "malformed", "stranger", "no_images", "no_next_visit", "no_last_snap",
        "canceled_before", "canceled_during", "canceled_after", "skew",
    ]  # fmt: skip
    visit: Ordinal = 1
    message: Literal["nextVisit", "startIntegration", "endReadout"] = "endReadout"
    seconds: Annotated[float, Field(ge=-86400.0, le=86400.0, allow_inf_nan=False)] = 2.0


class Camera(_Described):
    """The camera's DAQ fails for `visits` visits on end, in one detector or (None) in all.

    See `simulators.camera.faults` for `what`.
    """

    do: Literal["camera"] = "camera"
    what: Literal["cut", "silent", "short", "corrupt", "dark", "saturated", "burst", "swarm"]
    visit: Ordinal
    visits: Ordinal = 1
    detector: Annotated[int, Field(ge=0)] | None = None


class Rush(_Described):
    """Visits come `factor` times as fast as planned, with exposures as much shorter as that needs."""

    do: Literal["rush"] = "rush"
    factor: Annotated[float, Field(gt=1.0, le=10.0)] = 3.0


ProcessFault = Kill | Freeze | DiskFull
Fault = Annotated[Kill | Freeze | DiskFull | Observatory | Camera | Rush, Field(discriminator="do")]


@dataclass(frozen=True)
class Planned:
    """A fault with the name it was asked for by."""

    name: str
    fault: Fault


@dataclass(frozen=True)
class Named:
    """A fault of the library: what it does in a word, and `make(visit, detector)`."""

    what: str
    make: Callable[[int, int], Sequence[Fault]]


def _kill(process: Process, fact: str, after_s: float = 0.0) -> Callable[[int, int], Sequence[Fault]]:
    return lambda visit, detector: [
        Kill(process=process, at=When(visit=visit, fact=fact, detector=detector, after_s=after_s))
    ]


def _plain_kill(process: Process, fact: str, after_s: float = 0.0) -> Callable[[int, int], Sequence[Fault]]:
    return lambda visit, _: [Kill(process=process, at=When(visit=visit, fact=fact, after_s=after_s))]


def _freeze(process: Other, fact: str, seconds: float) -> Callable[[int, int], Sequence[Fault]]:
    return lambda visit, _: [Freeze(process=process, seconds=seconds, at=When(visit=visit, fact=fact))]


def _full(seconds: float, *processes: Other) -> Callable[[int, int], Sequence[Fault]]:
    return lambda visit, _: [
        DiskFull(process=process, seconds=seconds, at=When(visit=visit, fact="DetectorReadOut"))
        for process in processes
    ]


def _observatory(what: str, **more: Any) -> Callable[[int, int], Sequence[Fault]]:  # noqa: ANN401 - fields of the model
    return lambda visit, _: [Observatory.model_validate({"what": what, "visit": visit, **more})]


def _camera(what: str, visits: int = 1, *, whole: bool = False) -> Callable[[int, int], Sequence[Fault]]:
    return lambda visit, detector: [
        Camera.model_validate({"what": what, "visit": visit, "visits": visits, "detector": None if whole else detector})
    ]


LIBRARY: dict[str, Named] = {
    "kill-worker-before": Named("a CCD's worker dies as it loads for a visit", _kill("ccd_worker", "VisitAssigned")),
    "kill-worker-during": Named("... as it differences", _kill("ccd_worker", "RawReady", 1.0)),
    "kill-worker-after": Named("... when it has said what it found", _kill("ccd_worker", "DiaSourcesReady")),
    "kill-associator-before-commit": Named(
        "the associator dies, alerts on disk, nothing committed", _kill("associator", ALERT_FILE)
    ),
    "kill-associator-after-commit": Named("... when all is committed", _kill("associator", "AlertsReady")),
    "kill-emitter-before-send": Named("the emitter dies before it sends", _kill("alert_emitter", "AlertsReady")),
    "kill-emitter-before-answer": Named(
        "... when its first alert is in the topic, before it hears so", _kill("alert_emitter", ALERT_SEEN)
    ),
    "kill-lite-emitter": Named("the lite emitter dies", _plain_kill("lite_emitter", "AlertsSent")),
    "kill-camera-reader": Named("the camera reader dies as it reads", _kill("camera_reader", "DetectorReadOut", 0.2)),
    "kill-herald": Named("the herald dies", _plain_kill("herald", "VisitDone")),
    "kill-archiver": Named("the archiver dies as it writes a raw", _plain_kill("archiver", "RawReady", 0.1)),
    "kill-shelf": Named("the pixel store dies, pixels on it", _plain_kill("shelf", "RawReady", 0.2)),
    "kill-raylet": Named("Ray's node manager dies", _plain_kill("raylet", "RawReady", 0.5)),
    "kill-gcs": Named("Ray's control store dies", _plain_kill("gcs", "RawReady", 0.5)),
    "kill-driver": Named("the process that holds the bus dies", _plain_kill("driver", "RawReady", 0.5)),
    "kill-broker": Named("the broker dies, and all that it held in memory", _plain_kill("broker", "AlertsReady")),
    "kill-postgres": Named("PostgreSQL crashes", _plain_kill("postgres", "RawReady", 0.5)),
    "hang-worker": Named("a CCD's worker hangs for 200 s", lambda visit, detector: [
        Freeze(process="ccd_worker", seconds=200.0, at=When(visit=visit, fact="RawReady", detector=detector))
    ]),
    "hang-emitter": Named("the emitter hangs for 20 s", _freeze("alert_emitter", "DiaSourcesReady", 20.0)),
    "broker-down-60": Named("the broker does not answer for 60 s", _freeze("broker", "RawReady", 60.0)),
    "broker-down-300": Named("... for 300 s", _freeze("broker", "RawReady", 300.0)),
    "postgres-down-120": Named("PostgreSQL does not answer for 120 s", _freeze("postgres", "RawReady", 120.0)),
    "disk-full": Named("no file can be written for 60 s", _full(60.0, "associator", "archiver")),
    "late-next-visit": Named("nextVisit comes 45 s late", _observatory("late", message="nextVisit", seconds=45.0)),
    "late-end-readout": Named("endReadout comes 15 s late", _observatory("late", seconds=15.0)),
    "events-twice": Named("each message of a visit comes again after 3 s", _observatory("twice", seconds=3.0)),
    "events-reversed": Named("a visit's messages come last to first, when it is over", _observatory("reversed")),
    "events-malformed": Named("before each message come four that make no sense", _observatory("malformed")),
    "unknown-instrument": Named("a visit of another telescope is announced, too", _observatory("stranger")),
    "no-images": Named("a visit is announced, and never taken", _observatory("no_images")),
    "no-next-visit": Named("a visit is taken that nobody announced", _observatory("no_next_visit")),
    "no-last-snap": Named("the last snap never comes", _observatory("no_last_snap")),
    "canceled-before": Named("a visit is canceled before its first exposure", _observatory("canceled_before")),
    "canceled-during": Named("... while its first exposure runs", _observatory("canceled_during")),
    "canceled-after": Named("... when all has been read out", _observatory("canceled_after")),
    "clock-skew": Named("the observatory's clock is 2 s ahead", _observatory("skew", seconds=2.0)),
    "daq-cut": Named("the DAQ cannot be reached for 3 visits", _camera("cut", 3, whole=True)),
    "silent-detector": Named("a detector's pixels never come", _camera("silent")),
    "short-detector": Named("half of its amplifiers come", _camera("short")),
    "corrupt-detector": Named("a pixel is not what its checksum says", _camera("corrupt")),
    "dark-detector": Named("every pixel is 0", _camera("dark")),
    "saturated-detector": Named("every pixel is at the converter's end", _camera("saturated")),
    "burst": Named("10,000 sources appear on a detector", _camera("burst")),
    "swarm": Named("40,000 sources appear on a detector", _camera("swarm")),
    "rush": Named("visits come three times as fast", lambda _, __: [Rush()]),
}  # fmt: skip
"""By name."""

_WHOLE_NIGHT = {"rush", "clock-skew"}
_STORM = "storm:"


def planned(asked: str, visits: int, detectors: Sequence[int]) -> tuple[Planned, ...]:
    """The faults of a night of `visits` visits: of a name, of `storm:SEED`, or of a file.

    A name's fault comes in the second visit (in the first, if it is the only one), in the first of the `detectors`.
    Raises BadData, naming what was asked and what of it makes no sense.
    """
    if asked in LIBRARY:
        found = tuple(_named(asked, min(2, visits), detectors[0]))
    elif asked.startswith(_STORM):
        found = tuple(storm(_seed(asked), visits, detectors))
    elif Path(asked).suffix in {".yaml", ".yml", ".json"}:
        found = tuple(_read(Path(asked), min(2, visits), detectors[0]))
    else:
        raise BadData(f"fault {asked!r} is no file (.yaml, .json), no storm:SEED, and none of {', '.join(LIBRARY)}")
    _check(asked, found, visits, detectors)
    return found


_LIST: TypeAdapter[tuple[Planned, ...]] = TypeAdapter(tuple[Planned, ...])


def dump(path: Path, found: Sequence[Planned]) -> None:
    """Write a night's faults, for the processes that carry them out."""
    path.write_bytes(_LIST.dump_json(tuple(found), indent=1))


def load(path: Path) -> tuple[Fault, ...]:
    """What `dump` wrote, without the names. Raises BadData, naming the file."""
    return tuple(each.fault for each in read_planned(path))


def read_planned(path: Path) -> tuple[Planned, ...]:
    """What `dump` wrote. Raises BadData, naming the file."""
    try:
        return _LIST.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BadData(f"faults {path}: {error}") from error


def storm(seed: int, visits: int, detectors: Sequence[int]) -> Iterator[Planned]:
    """A fault in each visit, drawn from the library: none comes twice before all have come."""
    rng = random.Random(seed)
    deck: list[str] = []
    for visit in range(1, visits + 1):
        if not deck:
            deck = sorted(set(LIBRARY) - _WHOLE_NIGHT)
            rng.shuffle(deck)
        yield from _named(deck.pop(), visit, rng.choice(list(detectors)))
    if rng.random() < 0.5:
        yield from _named("clock-skew", 1, detectors[0])


def _named(name: str, visit: int, detector: int) -> Iterator[Planned]:
    return (Planned(name, fault) for fault in LIBRARY[name].make(visit, detector))


def _seed(asked: str) -> int:
    number = asked.removeprefix(_STORM)
    if not number.isdecimal():
        raise BadData(f"fault {asked!r}: {number!r} is no seed, a whole number")
    return int(number)


_ITEMS: TypeAdapter[list[str | Fault]] = TypeAdapter(list[str | Fault])


def _read(path: Path, visit: int, detector: int) -> Iterator[Planned]:
    try:
        items = _ITEMS.validate_python(yaml.safe_load(path.read_text("utf-8")))  # JSON is YAML
    except OSError as error:
        raise BadData(f"faults {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadData(f"faults {path}: no YAML: {error}") from error
    except ValidationError as error:
        raise BadData(f"faults {path}: {_first(error)}") from error
    for number, item in enumerate(items, start=1):
        if not isinstance(item, str):
            yield Planned(f"{path.stem} {number}", item)
        elif item in LIBRARY:
            yield from _named(item, visit, detector)
        else:
            raise BadData(f"faults {path}: entry {number}, {item!r}, is none of {', '.join(LIBRARY)}")


def _first(error: ValidationError) -> str:
    """Of several complaints the one that goes deepest: it is about the kind of entry that was meant."""
    deepest = max(error.errors(include_url=False), key=lambda each: len(each["loc"]))
    place, *rest = [str(part) for part in deepest["loc"]] or ["all"]
    where = f"entry {int(place) + 1}" if place.isdecimal() else "the whole"
    field = ".".join(part for part in rest if part.isidentifier())
    return f"{where}{f', {field}' if field else ''}: {deepest['msg']}"


def _check(asked: str, found: Sequence[Planned], visits: int, detectors: Sequence[int]) -> None:
    """Refuse what could never come to pass in this night."""
    for each in found:
        fault = each.fault
        where = fault.at if isinstance(fault, ProcessFault) else fault
        visit, detector = getattr(where, "visit", None), getattr(where, "detector", None)
        if visit is not None and visit > visits:
            raise BadData(f"fault {asked!r}: {each.name} is of visit {visit}, and the night has {visits}")
        if detector is not None and detector not in detectors:
            raise BadData(f"fault {asked!r}: {each.name} is of detector {detector}, which the night does not use")
        if isinstance(fault, ProcessFault) and fault.at.visit is None and "fact" in fault.at.model_fields_set:
            raise BadData(f"fault {asked!r}: {each.name} waits for {fault.at.fact} of no visit")
