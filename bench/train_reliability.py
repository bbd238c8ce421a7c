"""Train the reliability model on simulated nights, put it beside `score.py`, print its ROC on nights left out.

    python -m bench.train_reliability SEED [SEED ...]

Real is what lies within 1 arcsec of something that changed by 3 sigma or more; between 1 and 3 arcsec of such is left
out. The last seed's night is held out for the figures; the model that is kept has learned from all.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.stage_times import StageTimes
from backbone.butler import ButlerArchive
from cluster import prepare
from cluster.products import ButlerProducts
from cluster.settings import Settings
from payloads.alert_production import pipeline, score
from schemas.image import Raw
from schemas.wcs import to_tangent
from simulators.camera.exposure import FocalPlane, Recipe
from simulators.camera.truth import sources_truth
from simulators.ocs.schedule import PlannedVisit, load_schedule
from simulators.sky.sky import Sky

DETECTORS = (4, 60, 94, 130)
VISITS = 4
REAL_SNR, NEAR_ARCSEC, FAR_ARCSEC = 3.0, 1.0, 3.0

Labelled = tuple[NDArray[np.float64], NDArray[np.bool_]]


def night(seed: int) -> Iterator[Labelled]:
    """Features and labels of each visit-detector of a night."""
    plan = load_schedule("own", n=VISITS, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(output=Path(folder), detectors=DETECTORS)
        lacking, _ = prepare.missing(settings, plan)
        prepare.make_and_put(lacking, seed, settings)
        products = ButlerProducts(ButlerArchive.open(settings.butler), settings.instrument)
        plane = FocalPlane(seed, settings.instrument, Sky(seed), fields=1)
        for visit in plan:
            for detector in DETECTORS:
                yield labelled(plane, visit, detector, products)


def labelled(plane: FocalPlane, visit: PlannedVisit, detector: int, products: ButlerProducts) -> Labelled:
    """Features and labels of one visit-detector."""
    seen = [visit.observation(snap) for snap in range(visit.n_snaps)]
    recipes = [Recipe(observation, seen[0].midpoint) for observation in seen]
    charges = [plane.charge(recipe, detector) for recipe in recipes]
    raws = [
        Raw(o, detector, plane.segments(r, detector, c), "") for o, r, c in zip(seen, recipes, charges, strict=True)
    ]
    context = products.context_for(plane.camera[detector], visit.ra, visit.dec, visit.rotation, visit.physical_filter)
    snaps = [pipeline.reduce_snap(raw, context) for raw in raws]
    made = pipeline.process_visit(snaps, seen, context, stage=StageTimes(), processed=0.0)
    truth = sources_truth(plane.field(recipes[0], detector), recipes[0], charges[0])
    truth = truth[np.abs(truth["snr"]) >= REAL_SNR]
    place = visit.ra, visit.dec
    x, y = to_tangent(made.sources["ra"], made.sources["dec"], place)
    tx, ty = to_tangent(truth["ra"], truth["dec"], place)
    distance = 3600.0 * np.hypot(x[:, None] - tx, y[:, None] - ty).min(axis=1, initial=np.inf)
    clear = (distance <= NEAR_ARCSEC) | (distance > FAR_ARCSEC)
    return score.features(made.sources, made.stamps)[clear], (distance <= NEAR_ARCSEC)[clear]


def main() -> None:
    """Train, measure, keep."""
    nights = []
    for seed in map(int, sys.argv[1:]):
        parts = list(night(seed))
        nights.append(tuple(np.concatenate(part) for part in zip(*parts, strict=True)))
        print(f"night {seed}: {nights[-1][1].sum()} real, {(~nights[-1][1]).sum()} bogus", flush=True)
    values, real = (np.concatenate(parts) for parts in zip(*nights[:-1], strict=True))
    trial = score.train(values, real, "trial", {})
    measured = score.roc(score.probability(trial, nights[-1][0]), nights[-1][1])
    for name, value in measured.items():
        print(f"{name:24s} {value:.4f}")
    for threshold in (0.1, 0.2, 0.3, 0.5, 0.7):
        kept = score.probability(trial, nights[-1][0]) >= threshold
        purity, completeness = nights[-1][1][kept].mean(), kept[nights[-1][1]].mean()
        print(f"kept at {threshold}: purity {purity:.3f}, completeness {completeness:.3f}")
    every = tuple(np.concatenate(parts) for parts in zip(*nights, strict=True))
    final = score.train(*every, "nights1", measured)
    Path(score.__file__).with_name("reliability.json").write_text(score.to_json(final), encoding="utf-8")


if __name__ == "__main__":
    main()
