"""The plots of a release, as SVG text; what there is nothing of says so in its place."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from access.release.curves import Curve
from access.release.examine import Examined
from access.release.figures import BRIGHT_COADD_SNR, middle, visit_offsets
from access.release.model import Fluxes, Found, Summary, Told
from access.release.repeated import BRIGHT_SNR, as_of_many
from access.svg import ACCENT, INK, SECOND, WARN, panels, svg
from schemas.tables import Table

COLOUR = {"u": "#0c71ff", "g": "#49be61", "r": "#c61c00", "i": "#ffc200", "z": "#f341a2", "y": "#5d0000"}
"""Rubin's, of RTN-045."""
_MARK = {"u": "o", "g": "^", "r": "v", "i": "s", "z": "*", "y": "p"}
_FEWEST = 5
"""Of a bin whose median is drawn."""
_MOST_POINTS = 3000
"""Of a scatter plot: more are a random choice, lest the page be too large."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A release: its figures, what they are of, its curves with their truth, and the MJD of its visits."""

    summary: Summary
    examined: Examined
    curves: Sequence[Curve]
    mjd: dict[int, float]


def completeness(kind: str) -> Callable[[Shown], str]:
    """Of `stars` or `galaxies`: the share found, by magnitude, with 68 % intervals, broken of those that are alone."""

    def plot(release: Shown) -> str:
        def draw(axes: Axes) -> None:
            for band in release.summary.bands:
                _shares(axes, band.band, getattr(band, kind))
                alone = getattr(band, f"{kind}_alone")
                places, shares = [middle(b) for b in alone], [100.0 * b.share for b in alone]
                axes.plot(places, shares, "--", color=COLOUR[band.band], linewidth=0.9)
            axes.axhline(50, color=INK, linewidth=0.5, linestyle=":")
            axes.set(
                xlabel="true AB magnitude", ylabel="%", ylim=(0, 104), title=f"Completeness: {kind} (broken: alone)"
            )
            _legend(axes)

        return svg(draw)

    return plot


def _shares(axes: Axes, band: str, bins: Sequence[Found]) -> None:
    if bins:
        share = 100.0 * np.array([(b.share, b.share - b.low, b.high - b.share) for b in bins])
        error = np.maximum(share[:, 1:].T, 0.0)
        axes.errorbar([middle(b) for b in bins], share[:, 0], error, marker=_MARK[band], **_style(band))


def _style(band: str) -> dict[str, Any]:
    return {"color": COLOUR[band], "label": band, "markersize": 4, "linewidth": 1.2, "elinewidth": 0.8}


def star_fluxes(release: Shown) -> str:
    """Bias of the PSF fluxes of stars that are alone, and their scatter, by magnitude."""
    bins = [(band.band, band.star_fluxes) for band in release.summary.bands]
    return _biases("PSF fluxes of stars less the truth", bins, 60.0)


def _line(bins: Sequence[Fluxes | Told], name: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    """The middles of the bins that have a figure, and it."""
    known = [(middle(b), scale * value) for b in bins if (value := getattr(b, name)) is not None]
    return [place for place, _ in known], [value for _, value in known]


def star_pulls(release: Shown) -> str:
    """The same in units of the errors."""

    def draw(axes: Axes) -> None:
        for band in release.summary.bands:
            style: dict[str, Any] = {"color": COLOUR[band.band], "marker": _MARK[band.band]}
            many = [b for b in band.star_fluxes if b.n >= _FEWEST]
            axes.plot(*_line(many, "pull"), linestyle=":", markersize=3, **style)
            axes.plot(*_line(many, "pull_width"), label=band.band, markersize=4, **style)
        axes.axhline(1, color=INK, linewidth=0.5)
        axes.axhline(0, color=INK, linewidth=0.5, linestyle=":")
        axes.set(xlabel="true AB magnitude", ylabel="(measured - true) / error", ylim=(-4, 6))
        axes.set_title("Pulls of stars: width, and median (dotted)")
        _legend(axes)

    return svg(draw)


def galaxy_fluxes(release: Shown) -> str:
    """The same of the Kron fluxes of galaxies."""
    bins = [(band.band, band.galaxy_fluxes) for band in release.summary.bands]
    return _biases("Kron fluxes of galaxies less the truth", bins, 600.0)


def _biases(title: str, series: Sequence[tuple[str, Sequence[Fluxes]]], most: float) -> str:
    """By band, with the errors of the medians; not beyond `most` mmag."""

    def draw(axes: Axes) -> None:
        for band, bins in series:
            many = [b for b in bins if b.n >= _FEWEST and b.scatter_mmag is not None]
            place, bias = _line(many, "bias_mmag")
            if place:
                spread = [1.25 * (b.scatter_mmag or 0.0) / np.sqrt(b.n) for b in many]
                axes.errorbar(place, bias, spread, marker=_MARK[band], **_style(band))
        axes.axhline(0, color=INK, linewidth=0.5)
        low, high = axes.get_ylim()
        axes.set(xlabel="true AB magnitude", ylabel="mmag (too faint: above 0)", title=title)
        axes.set_ylim(max(low, -most), min(high, most))
        _legend(axes)

    return svg(draw)


def told_apart(release: Shown) -> str:
    """Shares of stars and of galaxies that are taken for stars."""

    def draw(axes: Axes) -> None:
        for band in release.summary.bands:
            style: dict[str, Any] = {"color": COLOUR[band.band], "marker": _MARK[band.band], "markersize": 4}
            axes.plot(*_line(band.told_apart, "stars_as_stars", 100.0), **style, label=band.band)
            axes.plot(*_line(band.told_apart, "galaxies_as_stars", 100.0), linestyle="--", **style)
        axes.set(xlabel="true AB magnitude", ylabel="taken for stars, %", ylim=(-2, 104))
        axes.set_title("Stars, and galaxies (broken), taken for stars")
        _legend(axes)

    return svg(draw)


def false_objects(release: Shown) -> str:
    """How many objects are at nothing, by S/N."""

    def draw(axes: Axes) -> None:
        bins = [b for b in release.summary.false if b.objects]
        names = [f"{b.snr_min:g}-{b.snr_max:g}" if b.snr_max else f">{b.snr_min:g}" for b in bins]
        labels = [f"{name}\n({b.objects})" for name, b in zip(names, bins, strict=True)]
        axes.bar(labels, [100.0 * b.false / b.objects for b in bins], color=WARN, width=0.6)
        for place, b in enumerate(bins):
            axes.annotate(str(b.false), (place, 100.0 * b.false / b.objects), ha="center", va="bottom", fontsize=8)
        axes.set(xlabel="S/N in the best band (how many objects)", ylabel="at nothing, %", title="False objects")
        axes.tick_params("x", labelsize=8)

    return svg(draw)


def positions(release: Shown) -> str:
    """Measured less true places of bright stars that are alone."""

    def draw(axes: Axes) -> None:
        rows = release.examined.held.sources
        rows = rows[(rows["kind"] == "star") & rows["alone"] & (rows["snr"] >= BRIGHT_COADD_SNR)]
        _, first = np.unique(rows["objectId"], return_index=True)  # an object has one place in all bands
        rows = _some(rows[first])
        axes.scatter(rows["d_ra_mas"], rows["d_dec_mas"], s=4, alpha=0.4, color=ACCENT, linewidths=0)
        axes.axhline(0, color=INK, linewidth=0.5)
        axes.axvline(0, color=INK, linewidth=0.5)
        limit = max(20.0, 1.2 * float(np.percentile(np.abs(_offsets(rows)), 99))) if len(rows) else 20.0
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axes.set(xlabel="RA, mas", ylabel="dec, mas", title="Places of bright stars less the truth")

    return svg(draw)


def _offsets(rows: Table) -> NDArray[np.float64]:
    return np.concatenate([rows["d_ra_mas"], rows["d_dec_mas"]]).astype(np.float64)


def _some(rows: Table) -> Table:
    if len(rows) <= _MOST_POINTS:
        return rows
    return rows[np.sort(np.random.default_rng(0).choice(len(rows), _MOST_POINTS, replace=False))]


def repeatability(release: Shown) -> str:
    """Scatter of constant stars from visit to visit, by magnitude."""

    def draw(axes: Axes) -> None:
        for band, stars in _of_bands(release, release.examined.repeated.stars):
            rows = _some(stars)
            rms = as_of_many(rows["rms_mmag"], rows["n"])
            axes.scatter(rows["mag"], rms, s=3, alpha=0.35, color=COLOUR[band], linewidths=0, label=band)
        axes.axhline(5, color=INK, linewidth=0.5, linestyle="--")
        axes.axhline(8, color=INK, linewidth=0.5, linestyle=":")
        axes.set(xlabel="AB magnitude", ylabel="rms over visits, mmag", yscale="log", ylim=(0.5, 300))
        axes.set_title("Repeatability (LSST SRD: 8, 5 mmag)")
        _legend(axes)

    return svg(draw)


def visits(release: Shown) -> str:
    """Median offset of the bright stars of each visit-detector."""

    def draw(axes: Axes) -> None:
        first = np.floor(min(release.mjd.values(), default=0.0))
        for band, rows in _of_bands(release, release.examined.repeated.visits):
            offsets = visit_offsets(rows[rows["snr"] >= BRIGHT_SNR])
            since = [release.mjd[visit] - first for visit in offsets["visit"].tolist()]
            axes.scatter(since, offsets["off_mmag"], s=9, color=COLOUR[band], label=band, marker=_MARK[band])
        axes.axhline(0, color=INK, linewidth=0.5)
        axes.set(xlabel=f"days since MJD {first:.0f}", ylabel="mmag too bright", title="Zero points of visit-detectors")
        _legend(axes)

    return svg(draw)


def constancy(release: Shown) -> str:
    """Fluxes of constant stars about their means, in units of their errors."""

    def draw(axes: Axes) -> None:
        edges = np.linspace(-6, 6, 61)
        for band, rows in _of_bands(release, release.examined.repeated.visits):
            pull = rows["pull"][np.isfinite(rows["pull"])]
            counts, _ = np.histogram(np.clip(pull, -6, 6), edges)
            axes.stairs(counts / max(len(pull), 1) / 0.2, edges, color=COLOUR[band], label=band)
        axes.plot(edges, np.exp(-0.5 * edges**2) / np.sqrt(2 * np.pi), color=INK, linewidth=0.8, linestyle="--")
        axes.set(xlabel="(flux - mean) / error", ylabel="density", yscale="log", ylim=(1e-4, 1))
        axes.set_title("Constant stars; a unit Gaussian (broken)")
        _legend(axes)

    return svg(draw)


def distances(release: Shown) -> str:
    """Scatter of the distances between stars some 5 arcmin apart."""

    def draw(axes: Axes) -> None:
        top = 30.0
        for band, rows in _of_bands(release, release.examined.repeated.pairs):
            rms = np.clip(as_of_many(rows["rms_mas"], rows["n"]), 0.0, top)
            axes.hist(rms, bins=np.linspace(0, top, 61).tolist(), histtype="step", color=COLOUR[band], label=band)
        axes.axvline(10, color=INK, linewidth=0.5, linestyle="--")
        axes.set(
            xlabel="rms over visits, mas", ylabel="pairs of stars", title="Distances of 5 arcmin (LSST SRD: 10 mas)"
        )
        _legend(axes)

    return svg(draw)


def _of_bands(release: Shown, table: Table) -> Iterator[tuple[str, Table]]:
    """The rows of each band that has any."""
    for band in release.summary.contents.bands:
        rows = table[table["band"] == band]
        if len(rows):
            yield band, rows


def light_curves(release: Shown) -> str:
    """Those of which there are curves: points with errors, and what was true at those moments as rings."""
    height = -(-len(release.curves) // 2)

    def draw(figure: Figure) -> None:
        for number, curve in enumerate(release.curves, 1):
            _curve(figure.add_subplot(height, 2, number), curve)

    return panels((11.0, 2.6 * height), draw)


def _curve(axes: Axes, curve: Curve) -> None:
    first = np.floor(curve.points["mjd"].min())
    for band in np.unique(curve.points["band"]).tolist():
        rows = curve.points[curve.points["band"] == band]
        change, true = (_change(rows, name) for name in ("flux", "true"))
        style: dict[str, Any] = {"color": COLOUR[band], "markersize": 3.5, "linestyle": "", "elinewidth": 0.8}
        axes.errorbar(rows["mjd"] - first, change, rows["err"] / 1e3, marker=_MARK[band], label=band, **style)
        axes.scatter(rows["mjd"] - first, true, s=42, facecolors="none", edgecolors=COLOUR[band], linewidths=0.8)
    axes.set_title(f"{curve.kind} {curve.ra:.5f} {curve.dec:+.5f}".strip(), fontsize=9)
    axes.set_xlabel(f"days since MJD {first:.0f}", fontsize=8)
    axes.set_ylabel("flux less its mean, \u00b5Jy", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.legend(frameon=False, fontsize=7, ncols=6)


def _change(rows: Table, name: str) -> NDArray[np.float64]:
    """Less the mean with the errors' weights, microjansky: the light of a transient's galaxy is not its own."""
    weight = rows["err"].astype(np.float64) ** -2.0
    change: NDArray[np.float64] = (rows[name] - np.sum(weight * rows[name]) / weight.sum()) / 1e3
    return change


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)
    else:
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", color=SECOND)


AGAINST_REFERENCE = (
    completeness("stars"), completeness("galaxies"), star_fluxes, star_pulls, galaxy_fluxes, told_apart,
    false_objects, positions,
)  # fmt: skip
REPEATED = (repeatability, visits, constancy, distances)
