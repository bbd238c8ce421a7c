"""Train the reliability model on simulated pairs, put it beside `score.py`, print its ROC on pairs left out.

    python -m bench.train_reliability [pairs] [side]

Real: new, faded, trailing and varying sources, half of the new ones on galaxies. Bogus: whatever else is
detected at 5 sigma when the WCS is off by up to 0.8 pixels, cosmic rays and hot columns are not masked, and
stars saturate.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from payloads.alert_production import score
from payloads.alert_production.detect import detect
from payloads.alert_production.measure import measure
from payloads.alert_production.stamps import make_stamps
from payloads.alert_production.subtract import subtract
from tests.payloads.alert_production.pairs import make_pair

MATCH_PIXELS = 3.0


def labelled(seed: int, side: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Features and labels of one pair."""
    rng = np.random.default_rng(1000 + seed)
    count = int(40 * (side / 1024) ** 2)
    pair = make_pair(
        side, seed, science_fwhm=rng.uniform(3.3, 6.5), template_fwhm=rng.uniform(3.5, 4.5), injected=count,
        faded=count // 3, trails=count // 4, variables=count // 2, snr=(4.5, 300.0),
        astrometric_error=rng.choice([0.05, 0.3, 0.8]), density=rng.uniform(0.8, 2.5),
        cosmic_rays=count, hot_columns=count // 10,
    )  # fmt: skip
    subtraction = subtract(pair.science, pair.template)
    sources = measure(detect(subtraction), subtraction, pair.science, visit=2026070500001, detector=0, processed=0.0)
    stamps = make_stamps(sources, pair.science, subtraction.warped, subtraction.difference)
    distance = np.hypot(sources["x"][:, None] - pair.x, sources["y"][:, None] - pair.y)
    allowed = MATCH_PIXELS + pair.length / 2
    real = np.asarray((distance < allowed).any(axis=1))
    ambiguous = ~real & (distance < 12.0 + pair.length / 2).any(1)
    return score.features(sources, stamps)[~ambiguous], real[~ambiguous]


def main() -> None:
    pairs, side = (int(given) for given in sys.argv[1:3]) if len(sys.argv) > 2 else (40, 1024)
    sets = []
    for seed in range(pairs):
        sets.append(labelled(seed, side))
        print(f"pair {seed}: {sets[-1][1].sum()} real, {(~sets[-1][1]).sum()} bogus", flush=True)
    held_out = pairs // 4
    values, real = (np.concatenate(parts) for parts in zip(*sets[held_out:], strict=True))
    test_values, test_real = (np.concatenate(parts) for parts in zip(*sets[:held_out], strict=True))
    trial = score.train(values, real, "trial", {})
    measured = score.roc(score.probability(trial, test_values), test_real)
    for name, value in measured.items():
        print(f"{name:24s} {value:.4f}")
    for name, used in zip(score.FEATURES, np.bincount(trial.trees.feature.ravel(), minlength=99), strict=False):
        print(f"  {name:20s} in {used} nodes")
    both = np.concatenate([values, test_values]), np.concatenate([real, test_real])
    final = score.train(*both, "trees-1", measured)
    path = Path(score.__file__).with_name("reliability.json")
    path.write_text(score.to_json(final), encoding="utf-8")


if __name__ == "__main__":
    main()
