"""What the simulated camera costs: core-seconds a snap by step, and against a plain copy of the same array.

python -m bench.camera
"""

import hashlib
from collections.abc import Callable
from time import process_time

import numpy as np

from schemas.image import Observation
from schemas.instrument import camera
from schemas.skymap import tract_at
from simulators.camera.ccd import response
from simulators.camera.exposure import Field, FocalPlane, Recipe
from simulators.camera.products import calibration, template_patch
from simulators.camera.truth import sources_truth
from simulators.sky.sky import Sky

SEED, DETECTOR, STARTED = 1, 94, 1_783_216_800.0
REPEATS = 7


def median_seconds(step: Callable[[], object]) -> float:
    """CPU seconds of this process, the median after one run to warm up."""
    step()
    seconds = []
    for _ in range(REPEATS):
        before = process_time()
        step()
        seconds.append(process_time() - before)
    return float(np.median(seconds))


def observation(snap: int) -> Observation:
    exposure = 2026070500004 + snap
    return Observation(
        "LSSTCam", "g", 2026070500004, exposure, snap, 2, f"MC_O_20260705_{exposure % 100000:06d}", "r_57",
        "r", 250.0, -20.0, 30.0, 15.0, STARTED + 17.0 * snap, STARTED + 17.0 * (snap + 1),
    )  # fmt: skip


def new_field(sky: Sky, recipe: Recipe) -> Field:
    return FocalPlane(SEED, "LSSTCam", sky).field(recipe, DETECTOR)


def main() -> None:
    sky, recipe = Sky(SEED), Recipe(observation(0), STARTED + 7.5)
    plane = FocalPlane(SEED, "LSSTCam", sky)
    field, charge = plane.field(recipe, DETECTOR), plane.charge(recipe, DETECTOR)
    segments = plane.segments(recipe, DETECTOR, charge)
    print(f"{len(field.sources)} sources, raw {segments.nbytes / 1e6:.0f} MB")
    visit = median_seconds(lambda: new_field(sky, recipe))
    steps = {
        "sky and response, once a visit": visit,
        "  of which the response": median_seconds(lambda: response(field.chip, "r")),
        "charge": median_seconds(lambda: plane.charge(recipe, DETECTOR)),
        "read out": median_seconds(lambda: plane.segments(recipe, DETECTOR, charge)),
        "SHA-256": median_seconds(lambda: hashlib.sha256(segments.data).digest()),
        "truth": median_seconds(lambda: sources_truth(field, recipe, charge)),
    }
    per_snap = visit / 2 + sum(steps[name] for name in ("charge", "read out", "SHA-256", "truth"))
    copy = median_seconds(segments.copy)
    for name, seconds in steps.items():
        print(f"{name:32s} {seconds:7.3f} core-s")
    print(f"{'a snap of two, all in':32s} {per_snap:7.3f} core-s = {segments.nbytes / per_snap / 1e9:.2f} GB/s")
    print(f"{'numpy copy of the raw':32s} {copy:7.3f} core-s = {segments.nbytes / copy / 1e9:.2f} GB/s")
    print(f"{'a snap against the copy':32s} {per_snap / copy:7.1f} x")
    lsstcam, tract = camera("LSSTCam"), tract_at(250.0, -20.0)
    master = median_seconds(lambda: calibration(SEED, lsstcam, DETECTOR, "r"))
    patch = median_seconds(lambda: template_patch(sky, SEED, tract, 190, "r"))
    print(f"{'calibration':32s} {master:7.3f} core-s")
    print(f"{'template patch':32s} {patch:7.3f} core-s")


if __name__ == "__main__":
    main()
