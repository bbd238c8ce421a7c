"""What moves: trails, stars that moved and stars that vary on pairs of known truth, found, fitted and measured.

    python -m bench.movers [SEED ...]

3000 x 3000 pixels of 0.2", 8,000 stars, 2,000 galaxies; trails up to 25 pixels long, stars that moved by 1 to 5, stars
that vary, transients; S/N, of all their light seen through the PSF on blank sky, 10 to 60. Counted are those on usable
pixels, with no other within 10 pixels, whose peak, seen through the PSF, stands over 6: a trail's light is spread along
it, a dipole's lobes overlap, and a star or galaxy beneath has noise of its own.

One line for each kind and span of lengths (pixels), over all the seeds: how many there are and are found; into how
many detections those fall; how many are told as what they are (a dipole; a trail, of a length over 3 times its error;
or a point); how many are believed (reliability of 0.5 or more). Then, of those told rightly, the median error, its
robust width, and the robust width of error / error told, where one is told: of length (pixels), angle (degrees) and
flux (%; of a dipole the mean of its lobes).
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from access.difference.door import difference_files
from access.difference.images import Source
from access.difference.products import UNUSABLE
from actors.stage_times import StageTimes
from bench import judge, peers
from cluster.allocator import keep_freed_memory
from payloads.alert_production.score import MIN_RELIABILITY
from schemas.tables import Table
from simulators.pairs import Pair, Recipe, make_pair, write_pair

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LENGTHS = {
    "trail": (0.0, 3.0, 6.0, 10.0, 16.0, 25.0),
    "moved": (1.0, 2.0, 3.0, 4.0, 5.0),
    "variable": (0.0, np.inf),
    "transient": (0.0, np.inf),
}
"""Pixels: the spans that are told apart."""

LEAST_PEAK = 6.0
_ALONE = 10.0
"""Pixels between one change and the next, ends that they have included."""
_HALF = 10
"""Pixels about a place whose light counts as noise there."""
_TRAIL_SIGMA = 3.0
"""A trail shorter than this many errors of its length is a point that was tried as one."""


@dataclass(frozen=True, eq=False)
class Held:
    """What changed in a pair, (n,) each, held against what was found of it; errors are found less true.

    `length`: pixels; `pieces`: detections on it; `rightly`: told as what it is; `length_error`: pixels, `angle_error`:
    degrees, `flux_error`: of the true flux, each NaN where it was not told rightly; `*_sigma`: the errors told of them,
    NaN where none is.
    """

    kind: NDArray[np.str_]
    length: Floats
    there: Bools
    pieces: NDArray[np.int64]
    rightly: Bools
    believed: Bools
    length_error: Floats
    length_sigma: Floats
    angle_error: Floats
    angle_sigma: Floats
    flux_error: Floats
    flux_sigma: Floats


@dataclass(frozen=True)
class Spurious:
    """Detections at nothing that changed, those of them that are believed, and all detections."""

    all: int
    believed: int
    detections: int


def recipe(seed: int) -> Recipe:
    """Of the pairs. Some 240 of the stars are bright enough to vary: of those, few do, as in the sky."""
    return Recipe(
        seed, shape=(3000, 3000), stars=8000, galaxies=2000, transients=100, variables=25, trails=200, trail_px=25.0,
        moved=150, snr=(10.0, 60.0),
    )  # fmt: skip


def one(seed: int) -> tuple[Held, Spurious]:
    """Make a pair, difference it, hold what is found against the truth."""
    pair = make_pair(recipe(seed))
    with tempfile.TemporaryDirectory() as folder:
        write_pair(pair, Path(folder))
        science, template = (Source(Path(folder) / f"{name}.fits") for name in ("science", "template"))
        made = difference_files(science, template, None, StageTimes())
    sources, mask = made.products.sources, made.products.difference.pixels.mask
    apart = distances(sources, pair)
    x, y = (np.rint(np.asarray(pair.truth[name])).astype(int) for name in ("x", "y"))
    usable = mask[y, x] & UNUSABLE == 0
    nowhere = apart.min(axis=1, initial=np.inf) > judge.FALSE_PX
    believed = sources["reliability"] >= MIN_RELIABILITY
    return held(pair, sources, apart, usable), Spurious(
        int(nowhere.sum()), int((nowhere & believed).sum()), len(sources)
    )


def distances(sources: Table, pair: Pair) -> Floats:
    """(n, m) pixels from each detection to the line that each change covers: a trail's, or from lobe to lobe."""
    x, y, dx, dy = (np.asarray(pair.truth[name], np.float64) for name in ("x", "y", "dx", "dy"))
    off = np.stack([sources["x"][:, None] - x, sources["y"][:, None] - y])
    half = np.stack([dx, dy])
    along = (off * half[:, None]).sum(0) / np.maximum((half**2).sum(0), 1e-12)
    result: Floats = np.hypot(*(off - np.clip(along, -1.0, 1.0) * half[:, None]))
    return result


def held(pair: Pair, sources: Table, apart: Floats, usable: Bools) -> Held:
    """The brightest detection of each change, against it; `apart`: of `distances`."""
    on = apart < judge.FALSE_PX
    best = sources[np.where(on, sources["snr"][:, None], 0.0).argmax(axis=0)]
    pixel, kind = pair.recipe.pixel_arcsec, np.asarray(pair.truth["kind"])
    length, angle = (np.asarray(pair.truth[name], np.float64) for name in ("length", "angle"))
    told = _told(best, kind)
    rightly = on.any(axis=0) & _as_it_is(best, kind)
    turn = np.where(kind == "trail", 180.0, 360.0)  # a trail has no direction
    flux = true_flux(pair)
    errors = {
        "length": (told["length"] - length) / pixel, "length_sigma": told["length_sigma"] / pixel,
        "angle": np.mod(told["angle"] - angle + turn / 2.0, turn) - turn / 2.0, "angle_sigma": told["angle_sigma"],
        "flux": told["flux"] / flux - 1.0, "flux_sigma": told["flux_sigma"] / np.abs(flux),
    }  # fmt: skip
    known = {name: np.where(rightly, values, np.nan) for name, values in errors.items()}
    return Held(
        kind, length / pixel, usable & alone(pair) & (peak(pair) > LEAST_PEAK), on.sum(axis=0), rightly,
        on.any(axis=0) & (best["reliability"] >= MIN_RELIABILITY),
        known["length"], known["length_sigma"], known["angle"], known["angle_sigma"], known["flux"],
        known["flux_sigma"],
    )  # fmt: skip


def _as_it_is(best: Table, kind: NDArray[np.str_]) -> Bools:
    dipole = best["isDipole"]
    trail = ~dipole & (best["trailLength"] > _TRAIL_SIGMA * best["trailLengthErr"])
    result: Bools = np.select([kind == "trail", kind == "moved"], [trail, dipole], ~trail & ~dipole)
    return result


def _told(best: Table, kind: NDArray[np.str_]) -> dict[str, Floats]:
    """What each is said to be, by the columns of its own kind."""
    nothing = np.full(len(best), np.nan)
    columns = {
        "length": ("trailLength", "dipoleLength", None), "length_sigma": ("trailLengthErr", None, None),
        "angle": ("trailAngle", "dipoleAngle", None), "angle_sigma": ("trailAngleErr", None, None),
        "flux": ("trailFlux", "dipoleMeanFlux", "psfFlux"),
        "flux_sigma": ("trailFluxErr", "dipoleMeanFluxErr", "psfFluxErr"),
    }  # fmt: skip
    chosen = [kind == "trail", kind == "moved"]
    told = {}
    for name, of_kinds in columns.items():
        *moving, still = (nothing if column is None else best[column].astype(np.float64) for column in of_kinds)
        told[name] = np.select(chosen, moving, still)
    return told


def true_flux(pair: Pair) -> Floats:
    """In the detections' unit, the template's electrons; of a star that moved, its whole flux."""
    moved = np.asarray(pair.truth["kind"]) == "moved"
    flux = np.where(moved, pair.truth["flux_science"], pair.truth["flux"])
    result: Floats = peers.ratio(pair) * np.asarray(flux, np.float64)
    return result


def alone(pair: Pair) -> Bools:
    """(n,): whether no other change comes near."""
    half = np.hypot(pair.truth["dx"], pair.truth["dy"])
    places = np.stack([pair.truth["x"], pair.truth["y"]], axis=1).astype(np.float64)
    gap = judge.distances(places, places) - half[:, None] - half
    np.fill_diagonal(gap, np.inf)
    result: Bools = gap.min(axis=0) > _ALONE
    return result


def peak(pair: Pair) -> Floats:
    """(n,): S/N at the highest place of the image filtered with its PSF, which is taken for a Gaussian."""
    view = max(pair.recipe.science, pair.recipe.template, key=lambda each: each.fwhm_arcsec)
    sigma = view.fwhm_arcsec / pair.recipe.pixel_arcsec / 2.3548
    half = np.hypot(pair.truth["dx"], pair.truth["dy"])
    line = np.maximum(half / (2.0 * sigma), 1e-6)
    seen = np.where(np.asarray(pair.truth["kind"]) == "trail", np.sqrt(np.pi) / 2.0 * erf(line) / line, 1.0)
    result: Floats = np.abs(pair.truth["snr"]) * seen / np.sqrt(noise_of_host(pair))
    return result


def noise_of_host(pair: Pair) -> Floats:
    """(n,): variance at the place of each change, of the sky's; the template's share of the light counts there."""
    science, template, scale = pair.recipe.science, pair.recipe.template, peers.ratio(pair)
    sky = science.sky + science.read_noise**2 + (template.sky + template.read_noise**2) / scale**2
    weight = judge.moffat(judge.shape_of(science, pair.recipe.pixel_arcsec), _HALF) ** 2
    light = np.empty(len(pair.truth))
    for k, (x, y) in enumerate(zip(pair.truth["x"], pair.truth["y"], strict=True)):
        row, column = round(y) - _HALF, round(x) - _HALF
        stamp = pair.science[row : row + 2 * _HALF + 1, column : column + 2 * _HALF + 1] * science.gain - science.sky
        light[k] = max((stamp * weight).sum() / weight.sum(), 0.0)
    return 1.0 + light * (1.0 + 1.0 / scale) / sky


def together(parts: list[Held]) -> Held:
    """Of several pairs."""
    return Held(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Held)))


HEADING = (
    f"{'kind':9s} {'pixels':>7s} {'there':>6s} {'found':>6s} {'pieces':>6s} {'told':>6s} {'believed':>8s}   "
    f"{'length, px':>17s}   {'angle, deg':>17s}   {'flux, %':>17s}"
)


def lines(every: Held) -> Iterator[str]:
    """The table."""
    for kind, edges in LENGTHS.items():
        for low, high in pairwise(edges):
            span = "" if np.isinf(high) else f"{low:.0f}-{high:.0f}"
            chosen = every.there & (every.kind == kind) & (every.length >= low) & (every.length < high)
            yield f"{kind:9s} {span:>7s} {_counts(every, chosen)}   {_errors(every, chosen)}"


def _counts(every: Held, chosen: Bools) -> str:
    found = chosen & (every.pieces > 0)
    return (
        f"{chosen.sum():6d} {found.sum():6d} {every.pieces[found].sum():6d} {(chosen & every.rightly).sum():6d} "
        f"{(chosen & every.believed).sum():8d}"
    )


def _errors(every: Held, chosen: Bools) -> str:
    of = chosen & every.rightly
    return "   ".join([
        _spread(every.length_error[of], every.length_sigma[of], 2),
        _spread(every.angle_error[of], every.angle_sigma[of], 1),
        _spread(100.0 * every.flux_error[of], 100.0 * every.flux_sigma[of], 1),
    ])  # fmt: skip


def _spread(error: Floats, sigma: Floats, digits: int) -> str:
    """Median, robust width, that of the pulls; a dash for what is not told, and of fewer than three."""
    known = error[np.isfinite(error)]
    if known.size < 3:
        return f"{'-':>17s}"
    pulls = (error / sigma)[np.isfinite(error) & (sigma > 0.0)]
    pull = f"{judge.robust_width(pulls):5.2f}" if pulls.size >= 3 else f"{'-':>5s}"
    return f"{np.median(known):+5.{digits}f} {judge.robust_width(known):5.{digits}f} {pull}"


def main() -> None:
    """Print the table."""
    keep_freed_memory()
    seeds = [int(word) for word in sys.argv[1:]] or [1, 2]
    told = [one(seed) for seed in seeds]
    print("\n".join([HEADING, *lines(together([every for every, _ in told]))]))
    for seed, (_, false) in zip(seeds, told, strict=True):
        print(f"seed {seed}: {false.detections} detections, {false.all} at nothing, {false.believed} of these believed")


if __name__ == "__main__":
    main()
