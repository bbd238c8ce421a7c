"""Which fields of an alert are filled, said in `docs/alerts.md`. `python -m tests.make_alert_fields` writes it there.

What is said of a field is below; `seen` is what the real path does with it. `disagreements` holds one against the
other, and all against the newest official schema.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

from payloads.alert_production import measure
from payloads.alert_production.alert_schema import Record, alert_schema, fields_of
from schemas.instrument import BANDS
from schemas.tables import Table, empty
from tests.actors.alert_sample import crowded, measured, sample

PAGE = Path(__file__).parents[1] / "docs/alerts.md"
BEGIN, END = "<!-- made by tests/make_alert_fields.py -->\n", "<!-- as far as here -->"
ALWAYS, WHEN, NULL, FALSE = "always", "when ", "always null: ", "always false: "
"""How what is said of a field begins."""

Fates = Mapping[str, Sequence[str]]
"""What is said -> of which fields."""

Seen = Mapping[str, Mapping[str, str]]
"""Record -> field -> how what is to be said of it begins."""

_MEANS = "psfFluxMean psfFluxMeanErr fpFluxMean fpFluxMeanErr scienceFluxMean scienceFluxMeanErr"
_TRAIL = "Flux FluxErr Ra RaErr Dec DecErr Length LengthErr Angle AngleErr Chi2"
_DIPOLE = "MeanFlux MeanFluxErr FluxDiff FluxDiffErr Length Angle Chi2"
_ELEMENTS = ("q", "e", "i", "node", "argperi", "peri_time")


def _banded(names: str) -> list[str]:
    return [f"{band}_{name}" for name in names.split() for band in BANDS]


NOT_ALWAYS: dict[str, Fates] = {
    "alert": {
        "when it is of a DIAObject": ["prvDiaSources", "prvDiaForcedSources", "diaObject"],
        "when it is of a Solar System object": ["ssSource", "mpc_orbits"],
        "always null: neither `nextVisit` nor the camera's events tell the scheduler's target": ["target_name"],
    },
    "diaSource": {
        "when it is of a DIAObject": ["diaObjectId"],
        "when it is of a Solar System object": ["ssObjectId"],
        "when the footprint is long, and the fit converges": [f"trail{name}" for name in _TRAIL.split()],
        "when footprints of both signs touch": [f"dipole{name}" for name in _DIPOLE.split()],
        "when the moments converge": ["extendedness"],
        "always null: there is no deblender": ["parentDiaSourceId"],
        "always null: what is withdrawn is in no alert": ["timeWithdrawnMjdTai"],
        "always null: its key has no number for a fit of the pixels": ["trailAlgorithm"],
        "always false: there is no deblender": ["shape_flag_parent_source"],
        "always false: to set the others cannot fail": ["pixelFlags"],
        "always false: glints in a row are not looked for": ["glint_trail"],
    },
    "diaForcedSource": {"always null: what is withdrawn is in no alert": ["timeWithdrawnMjdTai"]},
    "diaObject": {
        "when it was seen in that band": _banded(f"{_MEANS} psfFluxMin psfFluxMax psfFluxErrMean"),
        "when it was seen twice in that band": _banded("psfFluxSigma psfFluxMaxSlope"),
    },
    "ssSource": {"when H is known": ["ephVmag"]},
    "mpc_orbits": {
        "when the catalogue of orbits tells it": [
            field.name for field in fields_of("mpc_orbits") if field.nullable and field.name not in _ELEMENTS
        ],
    },
}


def said() -> dict[str, Fates]:
    """Of every field of every record what is said: `always`, where nothing else is."""
    result: dict[str, Fates] = {}
    for record, fates in NOT_ALWAYS.items():
        others = {name for names in fates.values() for name in names}
        result[record] = {ALWAYS: [name for name in names_of(record) if name not in others], **fates}
    return result


def names_of(record: str) -> list[str]:
    if record == "alert":
        return [field["name"] for field in alert_schema()["fields"]]
    return [field.name for field in fields_of(record)]


def seen() -> Seen:
    """From alerts of the real path."""
    alerts = asyncio.run(sample())
    records = {
        "alert": alerts,
        "diaSource": [alert["diaSource"] for alert in alerts],
        "diaForcedSource": [row for alert in alerts for row in alert["prvDiaForcedSources"] or ()],
        **{name: [alert[name] for alert in alerts if alert[name]] for name in ("diaObject", "ssSource", "mpc_orbits")},
    }
    result = {record: {name: _filled(rows, name) for name in names_of(record)} for record, rows in records.items()}
    quiet = [name for name in result["diaSource"] if not any(row[name] for row in records["diaSource"])]
    result["diaSource"] |= dict.fromkeys(never_set(quiet), FALSE)
    return result


def _filled(rows: Iterable[Record], name: str) -> str:
    null = {row[name] is None for row in rows}
    return {frozenset({False}): ALWAYS, frozenset({True}): NULL, frozenset({True, False}): WHEN}[frozenset(null)]


def never_set(names: Iterable[str]) -> list[str]:
    """Those flags of a DIASource that nothing sets, true or false: they stay as they were in the empty table."""

    def set_before(table: str, rows: int) -> Table:
        result = empty(table, rows)
        for name in flags:
            result[name] = True
        return result

    flags = [name for name in names if empty("DiaSource", 0).dtype[name].kind == "b"]
    with patch.object(measure, "empty", set_before):
        sources = measured(crowded()).sources
    return [name for name in flags if sources[name].all()]


def disagreements(actual: Seen) -> list[str]:
    """Where what is said of a field is not what is seen, or not said once."""
    wrong = []
    for record, fates in said().items():
        times = Counter(name for names in fates.values() for name in names)
        wrong += [f"{record}.{name}: said {times[name]} times" for name in names_of(record) if times[name] != 1]
        wrong += [f"{record}.{name}: no such field" for name in set(times) - set(names_of(record))]
        told = {name: text for text, names in fates.items() for name in names}
        wrong += [
            f"{record}.{name}: said {told[name]!r}, seen {begin!r}"
            for name, begin in actual[record].items()
            if name in told and _beginning(told[name]) != begin
        ]
    return wrong


def _beginning(text: str) -> str:
    return next(begin for begin in (NULL, FALSE, WHEN, ALWAYS) if text.startswith(begin))


def table() -> str:
    """As it stands in the page."""
    lines = ["| record | fields | filled |", "|---|---|---|"]
    for record, fates in said().items():
        lines += [f"| `{record}` | {_joined(names)} | {text} |" for text, names in fates.items()]
    return "\n".join(lines) + "\n"


def _joined(names: Sequence[str]) -> str:
    """A statistic that all bands have stands once."""
    every, shown = "{" + ",".join(BANDS) + "}", []
    for name in names:
        band, _, rest = name.partition("_")
        if not (band in BANDS and {f"{each}_{rest}" for each in BANDS} <= set(names)):
            shown.append(f"`{name}`")
        elif band == BANDS[0]:
            shown.append(f"`{every}_{rest}`")
    return ", ".join(shown)


def main() -> None:
    """Write the table, if all that is said is seen."""
    wrong = disagreements(seen())
    if wrong:
        raise SystemExit("\n".join(wrong))
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], "utf-8")


if __name__ == "__main__":
    main()
