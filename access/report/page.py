"""The report as one HTML page that needs nothing beside it."""

import time
from html import escape

from access.html import STYLE, in_cards, number, percent, table
from access.report import plots
from access.report.collect import Collected
from access.report.model import Balance, Report, VisitRow, Witnessed

_RARE = {"alerts_reduced", "lite_failed", "lite_owed"}
"""Of the balance: told among the troubles, where there are any."""


UNHEARD = "nothing was told of it"
OWED = "owed until the night is started again"


def page(night: Collected) -> str:
    """The whole page."""
    report = night.report
    figures = "".join(f"<figure>{plot(night)}</figure>" for plot in plots.ALL)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Pachon: night {escape(report.night)}</title>"
        f"<style>{STYLE}</style><body><h1>The night of {escape(report.night)}</h1>"
        f"<p>seed {report.seed}, speed {report.speed:g}; latencies are seconds of the wall's clock.</p>"
        f"{_cards(report)}<h2>Plots</h2><div class=plots>{figures}</div>"
        f"<h2>Visits</h2>{_visit_table(report.visits)}{_balance(report)}{_truth(report)}{_troubles(report)}{_faults(report)}</body></html>"
    )


def _cards(report: Report) -> str:
    latency, balance, truth = report.latency, report.balance, report.truth
    cards = [
        ("visits done", f"{balance.visits} of {balance.visits_planned}", balance.visits == balance.visits_planned),
        ("alerts acknowledged", f"{balance.alerts_acknowledged} of {balance.alerts_made}",
         balance.alerts_acknowledged == balance.alerts_made),
        ("latency, median", number(latency.median_s, " s"), True),
        ("latency, p98", number(latency.p98_s, " s"), (latency.p98_s or 0.0) <= 60.0),
        ("within 60 s", percent(latency.within_60s), (latency.within_60s or 0.0) >= 0.98),
        ("purity", percent(truth.purity), (truth.purity or 0.0) >= 0.95),
        ("counts reconcile", "yes" if report.reconciles else "no", report.reconciles),
    ]  # fmt: skip
    return in_cards(cards)


def _visit_table(visits: list[VisitRow]) -> str:
    head = ("group", "no.", "visit", "filter", "state", "detectors", "failed", "redone", "raws", "DIASources", "alerts",
            "acknowledged", "median s", "max s")  # fmt: skip
    return table(head, [_visit_cells(visit) for visit in visits])


def _visit_cells(visit: VisitRow) -> tuple[str, ...]:
    return (
        visit.group, str(visit.number or ""), str(visit.visit or ""), visit.filter, visit.state, str(visit.detectors),
        str(len(visit.detectors_failed)), str(visit.redone), str(visit.raws), str(visit.dia_sources),
        str(visit.alerts_made), str(visit.alerts_acknowledged), number(visit.latency.median_s),
        number(visit.latency.max_s),
    )  # fmt: skip


def _balance(report: Report) -> str:
    fields = report.balance.model_dump(exclude={"failed", *_RARE})
    rows = [(name.replace("_", " "), str(value)) for name, value in fields.items()]
    return "<h2>Balance</h2>" + table(("what", "how many"), rows)


def _truth(report: Report) -> str:
    truth = report.truth
    rows = [
        ("purity of alerts", percent(truth.purity)),
        ("purity of DIASources before the score", percent(truth.purity_before_score)),
        ("median distance from the true place", number(truth.position_mas, " mas")),
        ("robust width of one coordinate", number(truth.position_width_mas, " mas")),
        ("flux bias above S/N 20", percent(truth.flux_bias, 2)),
        ("robust width of flux pulls", number(truth.flux_pull_width)),
        ("alerts matched", str(truth.matched)),
    ]
    return "<h2>Against the truth</h2>" + table(("figure", "value"), rows)


def _troubles(report: Report) -> str:
    rows = [("visit refused", group, why) for group, why in report.refused.items()]
    rows += [("visit planned", group, UNHEARD) for group in report.unheard]
    rows += [("raw not archived", name, why) for name, why in report.raws_missing.items()]
    rows += [("catch-up did not end", "what else the camera holds", why) for why in (report.catch_up_failed,) if why]
    rows += [("message refused", f"{n} times", why) for why, n in report.inputs_refused.items()]
    rows += [("detector failed", f"{v.group} {d}", why) for v in report.visits for d, why in v.detectors_failed.items()]
    rows += [("notice failed", name, why) for name, why in report.notices_failed.items()]
    rows += [("not finished", f"{n} of {pool}", OWED) for pool, n in report.owed.items()]
    rows += [(what, f"{n} alerts", why) for what, n, why in of_alerts(report.balance)]
    if not rows:
        return "<h2>Troubles</h2><p>None.</p>"
    return "<h2>Troubles</h2>" + table(("what", "which", "why"), rows, "text")


def _faults(report: Report) -> str:
    """What was made to go wrong, and what a consumer saw; nothing for a night in which nothing was."""
    rows = [
        (f.name, f.what, "" if f.visit is None else str(f.visit), f.state, tai_text(f.at), tai_text(f.until), f.reason)
        for f in report.faults
    ]
    text = table(("fault", "what", "in visit", "state", "at, TAI", "until, TAI", "why"), rows, "text")
    text = f"<h2>Faults</h2>{text}" if rows else ""
    return text + (f"<p>{escape(of_witness(report.witnessed))}.</p>" if report.witnessed is not None else "")


def of_witness(saw: Witnessed) -> str:
    """What a consumer of the topic saw, in a sentence."""
    return (
        f"a consumer saw {saw.alerts} alerts in {saw.messages} messages, {percent(saw.within_60s)} within 60 s;"
        f" {saw.missing} missing, {saw.unknown} unknown, {saw.differing} with other bytes"
    )


def of_alerts(balance: Balance) -> list[tuple[str, int, str]]:
    """What became of alerts, how many, and why, where it is not what should: rows only where there are any."""
    rows = [("sent with smaller cutouts", balance.alerts_reduced, "refused as too large")]
    rows += [("not sent lite", n, why) for why, n in balance.lite_failed.items()]
    rows += [("not sent lite", balance.lite_owed, "still owed when the night ended")]
    return [row for row in rows if row[1]]


def tai_text(at: float | None) -> str:
    """A time (TAI s) as the groups of visits are written; "" for none."""
    return "" if at is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at * 10) % 10}"
