"""The report's plots, as SVG text."""

import numpy as np
from matplotlib.axes import Axes

from access.report.collect import PROMISE_S, Collected
from access.report.truth_check import joined
from access.svg import ACCENT, INK, SECOND, WARN, svg


def latency(night: Collected) -> str:
    """How long after its last pixel each alert was acknowledged, and the promise."""

    def draw(axes: Axes) -> None:
        seconds = night.latency_s[np.isfinite(night.latency_s)]
        top = max(PROMISE_S * 1.1, float(seconds.max()) * 1.05) if len(seconds) else PROMISE_S * 1.1
        axes.hist(seconds, bins=np.linspace(0, top, 60).tolist(), color=ACCENT)
        axes.axvline(PROMISE_S, color=WARN, linestyle="--", label="60 s")
        axes.set(xlabel="last pixel read out to acknowledgement, s", ylabel="alerts", title="Alert latency")
        axes.legend(frameon=False)

    return svg(draw)


def latency_by_visit(night: Collected) -> str:
    """Median and slowest alert of each visit."""

    def draw(axes: Axes) -> None:
        rows = [v for v in night.report.visits if v.latency.max_s is not None]
        places = np.arange(len(rows))
        axes.bar(places, [v.latency.max_s or 0.0 for v in rows], color="#c6d8f5", label="slowest")
        axes.bar(places, [v.latency.median_s or 0.0 for v in rows], color=ACCENT, width=0.5, label="median")
        axes.axhline(PROMISE_S, color=WARN, linestyle="--")
        axes.set_xticks(places, [v.group[11:19] for v in rows], rotation=60, fontsize=7, parse_math=False)
        axes.set(ylabel="s", title="Latency by visit")
        axes.legend(frameon=False)

    return svg(draw)


def stages(night: Collected) -> str:
    """CPU seconds per visit-detector, by stage."""

    def draw(axes: Axes) -> None:
        names = list(night.report.stages_per_detector)[::-1]
        axes.barh(names, [night.report.stages_per_detector[name] for name in names], color=ACCENT)
        axes.set(xlabel="CPU s per detector and visit", title="Where the time goes")

    return svg(draw)


def completeness(night: Collected) -> str:
    """Share of true changes detected, and alerted on, by S/N."""

    def draw(axes: Axes) -> None:
        bins = [b for b in night.report.truth.completeness if b.true]
        labels = [
            f"{b.snr_min:g}-{b.snr_max:g}\n({b.true})" if b.snr_max else f">{b.snr_min:g}\n({b.true})" for b in bins
        ]
        axes.plot(labels, [100 * (b.detected or 0.0) for b in bins], "o-", color=ACCENT, label="detected")
        axes.plot(labels, [100 * (b.alerted or 0.0) for b in bins], "s--", color=SECOND, label="alerted")
        axes.set(xlabel="true S/N of the change (how many)", ylabel="%", ylim=(0, 104), title="Completeness")
        axes.legend(frameon=False, loc="lower right")

    return svg(draw)


def positions(night: Collected) -> str:
    """Measured less true position of matched alerts."""

    def draw(axes: Axes) -> None:
        residuals = joined(night.compared)
        axes.scatter(residuals.d_ra_mas, residuals.d_dec_mas, s=5, alpha=0.5, color=ACCENT)
        axes.axhline(0, color=INK, linewidth=0.5)
        axes.axvline(0, color=INK, linewidth=0.5)
        axes.set(xlim=(-300, 300), ylim=(-300, 300), aspect="equal")
        axes.set(xlabel="RA, mas", ylabel="dec, mas", title="Position residuals")

    return svg(draw)


def photometry(night: Collected) -> str:
    """Measured less true flux of matched alerts, in units of the stated error."""

    def draw(axes: Axes) -> None:
        pull = joined(night.compared).pull
        pull = pull[np.isfinite(pull)]
        edges = np.linspace(-6, 6, 61)
        axes.hist(np.clip(pull, -6, 6), bins=edges.tolist(), color=ACCENT)
        gauss = len(pull) * 0.2 * np.exp(-0.5 * edges**2) / np.sqrt(2 * np.pi)
        axes.plot(edges, gauss, color=WARN, label="unit Gaussian")
        axes.set(xlabel="(measured - true) / error", ylabel="alerts", title="Photometric pulls")
        axes.legend(frameon=False)

    return svg(draw)


ALL = (latency, latency_by_visit, stages, completeness, positions, photometry)
