"""Writes the report: `report.json`, `report.html`, `facts.jsonl`, and the table on screen."""

import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from access.html import number, percent
from access.report.collect import Collected
from access.report.model import Report
from access.report.page import OWED, UNHEARD, of_alerts, of_witness, page, tai_text
from backbone.journal import Entry


def write(night: Collected, folder: Path) -> None:
    """`report.json`, `report.html`, and the night's facts as `facts.jsonl`; each whole or not at all."""
    facts = "".join(_fact_line(entry) for entry in night.journal)
    report = night.report.model_dump_json(indent=2)
    for name, text in (("report.json", report), ("report.html", page(night)), ("facts.jsonl", facts)):
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)


def _fact_line(entry: Entry) -> str:
    """A fact on one line: when it was told (TAI s), its kind, itself."""
    event = entry.event
    return json.dumps({"at": entry.at, "kind": event.kind, **event.model_dump(mode="json")}) + "\n"


def show(report: Report, console: Console) -> None:
    """The figures a person looks at first."""
    table = Table(title=f"The night of {report.night}", show_header=False)
    for name, value in _rows(report):
        table.add_row(name, value)
    console.print(table)
    for line in (*_of_faults(report), *_of_troubles(report)):
        console.print(line, markup=False, highlight=False)


def _of_troubles(report: Report) -> Iterator[str]:
    """What did not go as it should."""
    for group, reason in report.refused.items():
        yield f"visit {group} refused: {reason}"
    for group in report.unheard:
        yield f"visit {group} was planned, {UNHEARD}"
    for visit in report.visits:
        for detector, reason in visit.detectors_failed.items():
            yield f"visit {visit.group} detector {detector} failed: {reason}"
    for name, reason in report.raws_missing.items():
        yield f"{name} not archived: {reason}"
    if report.catch_up_failed:
        yield f"catch-up did not end: {report.catch_up_failed}"
    for name, reason in report.notices_failed.items():
        yield f"notice {name} failed: {reason}"
    for pool, count in report.owed.items():
        yield f"{count} of {pool} not finished: {OWED}"
    for what, count, why in of_alerts(report.balance):
        yield f"{count} alerts {what}: {why}"


def _of_faults(report: Report) -> list[str]:
    """What was made to go wrong, and what a consumer saw of it."""
    lines = []
    for fault in report.faults:
        where = "" if fault.visit is None else f" in visit {fault.visit}"
        when = f" at {tai_text(fault.at)}" if fault.at is not None else ""
        if fault.until is not None:
            when = f", from {tai_text(fault.at)} to {tai_text(fault.until)}"
        told = f"fault {fault.name}: {fault.what}{where}, {fault.state}{when}"
        lines.append(told + (fault.reason and f": {fault.reason}"))
    return lines if report.witnessed is None else [*lines, of_witness(report.witnessed)]


def _rows(report: Report) -> list[tuple[str, str]]:
    latency, balance, truth = report.latency, report.balance, report.truth
    bins = ", ".join(
        f"{f'{b.snr_min:g}-{b.snr_max:g}' if b.snr_max else f'>{b.snr_min:g}'}: {percent(b.detected, 0)}"
        for b in truth.completeness
        if b.true
    )
    return [
        ("visits done", f"{balance.visits} of {balance.visits_planned}"),
        ("raws taken / read / archived", f"{balance.raws_taken} / {balance.raws} / {balance.raws_archived}"),
        ("raws caught up / missing", f"{balance.raws_caught_up} / {balance.raws_missing}"),
        ("DIASources / new DIAObjects", f"{balance.dia_sources} / {balance.dia_objects}"),
        ("alerts made / acknowledged", f"{balance.alerts_made} / {balance.alerts_acknowledged}"),
        ("detectors failed / redone", f"{sum(balance.failed.values())} / {balance.redone}"),
        ("counts reconcile", "yes" if report.reconciles else "NO"),
        (
            "latency median / p98 / max",
            " / ".join(number(v, " s") for v in (latency.median_s, latency.p98_s, latency.max_s)),
        ),
        ("alerts within 60 s", percent(latency.within_60s)),
        ("completeness by S/N", bins or "-"),
        ("purity", percent(truth.purity)),
        ("position: median, width", f"{number(truth.position_mas)}, {number(truth.position_width_mas)} mas"),
        ("flux bias, pull width", f"{percent(truth.flux_bias, 2)}, {number(truth.flux_pull_width)}"),
        ("CPU s per detector", f"{sum(report.stages_per_detector.values()):.2f}"),
    ]
