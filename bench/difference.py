"""How good and how fast the door is, and what others make of the same pixels: pairs of which everything is known.

    python -m bench.difference [--hotpants BINARY] [SEED ...] [--kinds NAME ...]

For each kind of pair and each seed, ours and every peer that is installed (see `bench.peers`), judged by the same code
(see `bench.judge`): what is found of the transients on usable pixels, by S/N; false footprints, and those not within
20 pixels of a star brighter than 16.5; how wide flux / error really is; flux bias and pulls of S/N over 8 at their true
places; usable part; CPU seconds and memory of the whole commands, the warp of the template included. A second table
has what only ours tells: the door's own detections held against the truth.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from access.difference.door import Differenced, difference_files
from access.difference.images import Source
from access.difference.products import UNUSABLE
from actors.stage_times import StageTimes
from bench import judge, peers
from bench.child import FailedError
from bench.peers import Outcome
from cluster.allocator import keep_freed_memory
from payloads.alert_production.score import MIN_RELIABILITY
from simulators.pairs import SCIENCE, TEMPLATE, Pair, Recipe, make_pair, write_pair

KINDS = {
    "plain": {},
    "template wider": {"science": replace(SCIENCE, fwhm_arcsec=0.8), "template": replace(TEMPLATE, fwhm_arcsec=1.1)},
    "30 mas misplaced": {"science": replace(SCIENCE, misplaced=30.0)},
    "crowded": {"stars": 60_000},
    "undersampled": {"science": replace(SCIENCE, fwhm_arcsec=0.4), "template": replace(TEMPLATE, fwhm_arcsec=0.36)},
    "trailed": {
        "science": replace(SCIENCE, ellipticity=(0.257, 35.0)), "template": replace(TEMPLATE, fwhm_arcsec=0.9),
    },
    "30 mas jitter": {"science": replace(SCIENCE, jitter=30.0)},
    "high wings": {"science": replace(SCIENCE, beta=2.5), "template": replace(TEMPLATE, beta=2.5)},
    "low wings": {"science": replace(SCIENCE, beta=4.5), "template": replace(TEMPLATE, beta=4.5)},
    "spikes": {
        "science": replace(SCIENCE, spikes=0.005), "template": replace(TEMPLATE, spikes=0.005, rotation=10.0),
        "brightest": 12.0,
    },
    "poor seeing": {"science": replace(SCIENCE, fwhm_arcsec=2.0), "template": replace(TEMPLATE, fwhm_arcsec=0.7)},
}  # fmt: skip
"""What differs from the defaults of `simulators.pairs.Recipe`, by kind of pair. Trailed: axes of 1.3 to 1."""

DEFAULT_KINDS = ("plain", "template wider", "30 mas misplaced", "crowded")
NOTES = {"spikes": "spikes: the reference is told the PSF of a point too faint to show any"}

OURS, DETECTIONS = "pachon, difference", "pachon, detections"
"""Its difference, judged like the others', and what it finds there itself, whose noise counts registration."""


@dataclass(frozen=True)
class Figures:
    """Of the door's detections on one pair. `verdict`: theirs; `position_pull`: robust widths."""

    verdict: judge.Verdict
    false_kept: int
    real_lost: int
    position_mas: tuple[float, float]
    position_pull: tuple[float, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Judged:
    """A row of the table of all. `verdict`: None for a peer that failed, of which `note` tells."""

    kind: str
    seed: int
    name: str
    verdict: judge.Verdict | None
    seconds: float = np.nan
    megabytes: float = np.nan
    note: str = ""


def measured(pair: Pair, made: Differenced, bright: judge.Floats, seconds: dict[str, float]) -> Figures:
    """Sources held against the truth."""
    sources, truth, mask = made.products.sources, pair.truth, made.products.difference.pixels.mask
    x, y, snr = (np.asarray(truth[name], np.float64) for name in ("x", "y", "snr"))
    usable = mask[np.rint(y).astype(int), np.rint(x).astype(int)] & UNUSABLE == 0
    places = np.stack([sources["x"], sources["y"]], axis=1)
    distance = judge.distances(places, np.stack([x, y], axis=1))
    false = distance.min(axis=1, initial=np.inf) > judge.FALSE_PX
    found = distance.min(axis=0, initial=np.inf) < judge.FOUND_PX
    good = found & usable & (np.abs(snr) > 8.0)
    match = sources[distance.argmin(axis=0)[good]]
    flux = np.asarray(truth["flux"], np.float64)[good] * peers.ratio(pair)
    off = np.stack([match["x"] - x[good], match["y"] - y[good]])
    pulls = off / np.stack([match["xErr"], match["yErr"]])
    believed = sources["reliability"] >= MIN_RELIABILITY
    verdict = judge.Verdict(
        found=[(int((found & chosen).sum()), int(chosen.sum())) for chosen in judge.binned(snr, usable)],
        false=int(false.sum()), far=judge.far_from(bright, places[false]),
        width=made.products.summary["score_width"],
        bias=100.0 * float(np.median(match["psfFlux"] / flux - 1.0)),
        pull=judge.robust_width((match["psfFlux"] - flux) / match["psfFluxErr"]),
        usable=float((mask & UNUSABLE == 0).mean()),
    )  # fmt: skip
    return Figures(
        verdict, int((false & believed).sum()), int((~false & ~believed).sum()),
        tuple(1000.0 * pair.recipe.pixel_arcsec * np.median(off, axis=1)),
        (judge.robust_width(pulls[0]), judge.robust_width(pulls[1])), seconds,
    )  # fmt: skip


def ours(pair: Pair, bright: judge.Floats, folder: Path) -> tuple[Outcome, Figures]:
    """Difference a written pair here, for its products, and as a user would, for what it costs."""
    times = StageTimes()
    made = difference_files(Source(folder / "science.fits"), Source(folder / "template.fits"), None, times)
    figures, difference = measured(pair, made, bright, times.seconds), made.products.difference
    ratio, usable = peers.ratio(pair), difference.pixels.mask & UNUSABLE == 0
    # Whitened: a point in it is no more the science image's PSF, but the one that it tells.
    psf = judge.at_centre(difference.psf)
    filtered = judge.filtered(difference.pixels.image / ratio, difference.pixels.variance / ratio**2, usable, psf)
    try:
        return Outcome(OURS, filtered, peers.pachon(folder)), figures
    except FailedError as error:
        return Outcome(OURS, None, None, str(error)), figures


def one(kind: str, seed: int, others: dict[str, peers.Peer]) -> tuple[list[Judged], Figures]:
    """Make a pair; ours and the others on it."""
    pair = make_pair(Recipe(seed, **KINDS[kind]))  # type: ignore[arg-type]
    bright = judge.bright_stars(pair)
    with tempfile.TemporaryDirectory() as folder:
        write_pair(pair, Path(folder))
        first, figures = ours(pair, bright, Path(folder))
        rows = [_judged(kind, seed, first, pair, bright)]
        rows.append(replace(rows[0], name=DETECTIONS, verdict=figures.verdict))
        rows += [_judged(kind, seed, made, pair, bright) for made in peers.outcomes(others, pair, Path(folder))]
    return rows, figures


def _judged(kind: str, seed: int, outcome: Outcome, pair: Pair, bright: judge.Floats) -> Judged:
    if outcome.made is None or outcome.spent is None:
        return Judged(kind, seed, outcome.name, None, note=outcome.note)
    verdict = judge.judged(outcome.made, pair, bright)
    return Judged(kind, seed, outcome.name, verdict, outcome.spent.seconds, outcome.spent.megabytes)


HEADING = (
    f"{'pair':26s} {'program':18s} {'5-6':>8s} {'6-8':>8s} {'>8':>9s} false   far  width  flux %  pull usable"
    "  CPU s     MB"
)


def row(label: str, name: str, verdict: judge.Verdict, seconds: float, megabytes: float) -> str:
    """A line of the table of all."""
    found = " ".join(f"{f'{n}/{there}':>{width}s}" for (n, there), width in zip(verdict.found, (8, 8, 9), strict=True))
    return (
        f"{label:26s} {name:18s} {found} {verdict.false:5.0f} {verdict.far:5.0f}  {verdict.width:5.2f}  "
        f"{verdict.bias:+6.2f}  {verdict.pull:4.2f}  {verdict.usable:5.3f}  {seconds:5.1f} {megabytes:6.0f}"
    )


def print_rows(rows: list[Judged]) -> None:
    """Of one pair."""
    for each in rows:
        label = f"{each.kind}, seed {each.seed}"
        if each.verdict is None:
            print(f"{label:26s} {each.name:18s} failed: {each.note}", flush=True)
        else:
            print(row(label, each.name, each.verdict, each.seconds, each.megabytes), flush=True)


def summed(rows: list[Judged]) -> Iterator[str]:
    """A line for each kind of pair and program: what was found in all, medians of the rest, over the seeds."""
    for kind, name in dict.fromkeys((each.kind, each.name) for each in rows):
        chosen = [each for each in rows if (each.kind, each.name) == (kind, name) and each.verdict is not None]
        verdicts = [each.verdict for each in chosen if each.verdict is not None]
        if verdicts:
            label = f"{kind}, {len(verdicts)} seeds"
            seconds, memory = (float(np.median([getattr(e, w) for e in chosen])) for w in ("seconds", "megabytes"))
            yield row(label, name, judge.together(verdicts), seconds, memory)


OWN_HEADING = (
    f"{'detections of pachon':26s}  FP kept lost  x mas y mas pulls       "
    "CPU s here: warp+subtract+detect, all but reading"
)


def own_row(name: str, figures: Figures) -> str:
    """A line of the table of ours: false ones, those that the score keeps, real ones that it loses; positions."""
    (dx, dy), spent, false = figures.position_mas, figures.seconds, figures.verdict.false
    differencing = sum(spent[stage] for stage in ("warp", "subtract", "detect"))
    return (
        f"{name:26s} {false:3.0f} {figures.false_kept:4d} {figures.real_lost:4d}  {dx:+5.1f} {dy:+5.1f} "
        f"{figures.position_pull[0]:.2f} {figures.position_pull[1]:.2f}  {differencing:.2f} "
        f"{sum(spent.values()) - spent['read']:.2f}"
    )


def _options() -> argparse.Namespace:
    usage = "python -m bench.difference [--hotpants BINARY] [SEED ...] [--kinds NAME ...]"
    parser = argparse.ArgumentParser(usage=usage, description="Ours and others on pairs of known truth.")
    parser.add_argument("--hotpants", type=Path, help="its binary")
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED", help="default: 1 2 3")
    told = f"of {', '.join(map(repr, KINDS))}; default: the first {len(DEFAULT_KINDS)}"
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=DEFAULT_KINDS, metavar="NAME", help=told)
    return parser.parse_args()


def main() -> None:
    """Print the tables. The first pair is made twice: kernels are compiled in the first."""
    options = _options()
    keep_freed_memory()
    others, absent = peers.available(options.hotpants and options.hotpants.absolute())
    seeds, rows, own = options.seeds or [1, 2, 3], [], []
    one("plain", seeds[0], {})
    notes = [NOTES[kind] for kind in options.kinds if kind in NOTES]
    print("\n".join([*absent, *notes, HEADING]), flush=True)
    for kind in options.kinds:
        for seed in seeds:
            made, figures = one(kind, seed, others)
            print_rows(made)
            rows += made
            own.append(own_row(f"{kind}, seed {seed}", figures))
    print("\n".join(["", "over the seeds: found in all, medians of the rest", HEADING, *summed(rows)]))
    print("\n".join(["", OWN_HEADING, *own]))


if __name__ == "__main__":
    main()
