"""How good and how fast the door is, on pairs of images of which everything is known.

    python -m bench.difference [SEED ...]

For each kind of pair and each seed: what is found of the transients on usable pixels, by S/N; false detections (more
than 3.5 pixels from any transient) before the score, and what the score keeps of them and loses of the real; robust
width of the score image; flux bias and pulls, position bias and pulls, of S/N over 8; CPU seconds by stage.
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from access.difference.door import Differenced, difference_files
from access.difference.images import Source
from access.difference.products import UNUSABLE
from actors.stage_times import StageTimes
from cluster.allocator import keep_freed_memory
from payloads.alert_production.score import MIN_RELIABILITY
from simulators.pairs import SCIENCE, TEMPLATE, Pair, Recipe, make_pair, write_pair

BINS = (5.0, 6.0, 8.0, np.inf)
FOUND_PX, FALSE_PX = 2.5, 3.5

KINDS = {
    "plain": {},
    "template wider": {"science": replace(SCIENCE, fwhm_arcsec=0.8), "template": replace(TEMPLATE, fwhm_arcsec=1.1)},
    "30 mas misplaced": {"science": replace(SCIENCE, misplaced=30.0)},
    "crowded": {"stars": 60_000},
}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """Of one pair. `found`: (found, there) by bin of S/N; pulls: robust widths."""

    found: list[tuple[int, int]]
    false: int
    false_kept: int
    real_lost: int
    width: float
    flux_bias: float
    flux_pull: float
    position_mas: tuple[float, float]
    position_pull: tuple[float, float]
    usable: float
    seconds: dict[str, float]


def measured(pair: Pair, made: Differenced, seconds: dict[str, float]) -> Figures:
    """Sources held against the truth."""
    sources, truth, mask = made.products.sources, pair.truth, made.products.difference.pixels.mask
    x, y, snr = (np.asarray(truth[name], np.float64) for name in ("x", "y", "snr"))
    usable = mask[np.rint(y).astype(int), np.rint(x).astype(int)] & UNUSABLE == 0
    distance = np.hypot(sources["x"][:, None] - x, sources["y"][:, None] - y)
    false = distance.min(axis=1, initial=np.inf) > FALSE_PX
    found = distance.min(axis=0, initial=np.inf) < FOUND_PX
    bins = [usable & (np.abs(snr) >= low) & (np.abs(snr) < high) for low, high in pairwise(BINS)]
    good = found & usable & (np.abs(snr) > 8.0)
    match = sources[distance.argmin(axis=0)[good]]
    scale = 10.0 ** (0.4 * (pair.recipe.template.zero_point - pair.recipe.science.zero_point))
    flux = np.asarray(truth["flux"], np.float64)[good] * scale
    off = np.stack([match["x"] - x[good], match["y"] - y[good]])
    pulls = off / np.stack([match["xErr"], match["yErr"]])
    believed = sources["reliability"] >= MIN_RELIABILITY
    return Figures(
        found=[(int((found & chosen).sum()), int(chosen.sum())) for chosen in bins],
        false=int(false.sum()), false_kept=int((false & believed).sum()), real_lost=int((~false & ~believed).sum()),
        width=made.products.summary["score_width"],
        flux_bias=100.0 * float(np.median(match["psfFlux"] / flux - 1.0)),
        flux_pull=_width((match["psfFlux"] - flux) / match["psfFluxErr"]),
        position_mas=tuple(1000.0 * pair.recipe.pixel_arcsec * np.median(off, axis=1)),
        position_pull=(_width(pulls[0]), _width(pulls[1])),
        usable=float((mask & UNUSABLE == 0).mean()), seconds=seconds,
    )  # fmt: skip


def _width(values: Floats) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def one(recipe: Recipe) -> Figures:
    """Make a pair, difference it as a user would."""
    pair, times = make_pair(recipe), StageTimes()
    with tempfile.TemporaryDirectory() as folder:
        write_pair(pair, Path(folder))
        science, template = (Source(Path(folder) / f"{name}.fits") for name in ("science", "template"))
        made = difference_files(science, template, None, times)
    return measured(pair, made, times.seconds)


def row(name: str, figures: Figures) -> str:
    """A line of the table."""
    found = "  ".join(f"{n:3d}/{there:<3d}" for n, there in figures.found)
    dx, dy = figures.position_mas
    spent = figures.seconds
    return (
        f"{name:22s} {found}  {figures.false:3d} {figures.false_kept:3d} {figures.real_lost:3d}  {figures.width:.3f}  "
        f"{figures.flux_bias:+5.2f} {figures.flux_pull:.2f}  {dx:+5.1f} {dy:+5.1f} {figures.position_pull[0]:.2f} "
        f"{figures.position_pull[1]:.2f}  {figures.usable:.3f}  "
        f"{spent['subtract'] + spent['detect']:.2f} {sum(spent.values()) - spent['read']:.2f}"
    )


def main() -> None:
    """Print the table. The first pair is made twice: kernels are compiled in the first."""
    keep_freed_memory()
    seeds = [int(text) for text in sys.argv[1:]] or [1, 2, 3]
    one(Recipe(seeds[0]))
    print(
        f"{'pair':22s} {'5-6':>7s}  {'6-8':>7s}  {'>8':>7s}  FP kept lost  width  flux % pull  x mas y mas pulls"
        "      usable  CPU s: subtract+detect, all"
    )
    for name, changes in KINDS.items():
        for seed in seeds:
            print(row(f"{name}, seed {seed}", one(Recipe(seed, **changes))), flush=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
