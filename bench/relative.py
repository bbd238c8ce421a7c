"""How well a week's frames are calibrated together, against the truth, and what that costs.

    python -m bench.relative            # star tables, made up: a raft's 9 detectors in 30 visits, and variations
    python -m bench.relative images [N] # one detector's images of N visits (6), simulated and reduced

Rms over all frames, before and after: of the WCS against the true one, mas an axis; of the zero points against the true
ones, mmag, less their mean in brackets; of bright stars' sightings about their mean. With images a zero point's truth
is taken from the frame's stars, the median of theirs over the true fluxes: what is left of it is noise as well.
"""

import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.prepare import raws_of
from payloads.drp.relative import Frame, RelativeCalibration, relative_calibration
from payloads.drp.single_frame import single_frame
from schemas.clock import mjd_from_tai
from schemas.tables import Table
from schemas.wcs import Wcs, separation_arcsec
from simulators.camera.exposure import FocalPlane, Recipe
from simulators.camera.products import calibration
from simulators.ocs.schedule import PlannedVisit, load_schedule
from simulators.sky.sky import Sky
from simulators.sky.sources import Kind
from tests.payloads.drp import star_week

Floats = NDArray[np.float64]

MMAG = 2500.0 / np.log(10.0)
WEEK = star_week.Recipe(visits=30, detectors="R22", density=12_000.0)
KINDS = {
    "plain": WEEK,
    "crowded": star_week.Recipe(visits=22, detectors="R22", density=32_000.0),
    "sparse": star_week.Recipe(visits=30, detectors="R22", density=1200.0),
    "very sparse": star_week.Recipe(visits=30, detectors="R22", density=500.0),
    "clouds": star_week.Recipe(
        visits=30, detectors="R22", density=12_000.0, clouds={3: 1.0, 8: 0.3, 9: 0.5}, slope=0.01
    ),
    "wrong by 0.1 arcsec": star_week.Recipe(visits=30, detectors="R22", density=12_000.0, wcs_error_mas=100.0),
    "one visit": star_week.Recipe(visits=1, detectors="R22", density=12_000.0),
}
SEED, DETECTOR = 1, 94
BRIGHT_SNR, MATCH_PX = 100.0, 2.0


@dataclass(frozen=True)
class Known:
    """Frames and what is true of them: WCS, and the natural logarithm of what fluxes must be multiplied by."""

    frames: list[Frame]
    refcat: Table
    wcs: list[Wcs]
    log_scale: Floats


def grid(frame: Frame) -> tuple[Floats, Floats]:
    x, y = np.meshgrid(np.linspace(40, frame.summary.nx - 40, 12), np.linspace(40, frame.summary.ny - 40, 12))
    return x.ravel(), y.ravel()


def wcs_off(frame: Frame, wcs: Wcs, true: Wcs) -> float:
    """Rms between two maps over a frame, mas an axis."""
    x, y = grid(frame)
    apart = separation_arcsec(*wcs.pixel_to_sky(x, y), *true.pixel_to_sky(x, y))
    return float(1000.0 * np.sqrt(np.mean(apart**2) / 2.0))


def rms(values: list[float] | Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def judged(name: str, known: Known) -> RelativeCalibration:
    """Calibrate and print a line."""
    started = time.process_time()
    made = relative_calibration(known.frames, known.refcat)
    spent = time.process_time() - started
    maps = [made.wcs_of(frame.summary.visit, frame.summary.detector) for frame in known.frames]
    before = rms([wcs_off(f, f.summary.wcs, true) for f, true in zip(known.frames, known.wcs, strict=True)])
    after = rms([wcs_off(f, wcs, true) for f, wcs, true in zip(known.frames, maps, known.wcs, strict=True)])
    levels = -known.log_scale, np.log(made.scale) - known.log_scale
    scales = [f"{MMAG * rms(level):6.2f} ({MMAG * np.std(level):5.2f})" for level in levels]
    stars = sum(len(frame.stars) for frame in known.frames)
    print(
        f"{name:20s} {len(known.frames):5d} {stars:7d} {before:7.2f} {after:6.2f} {scales[0]:>15s} {scales[1]:>15s}"
        f" {made.before.internal_mas:7.2f} {made.after.internal_mas:6.2f}"
        f" {made.before.internal_mmag:7.2f} {made.after.internal_mmag:6.2f} {made.kept.sum():4d} {spent:6.2f}",
        flush=True,
    )
    return made


def made_up(recipe: star_week.Recipe) -> Known:
    of = star_week.week(recipe)
    return Known(of.frames, of.refcat, of.wcs, np.log(of.scale))


def visits_of(n: int) -> list[PlannedVisit]:
    """One field, a tenth of a degree about it, turned by up to 60 degrees."""
    rng, first = np.random.default_rng(SEED), load_schedule("own", n=1, n_snaps=1, seed=SEED)[0]
    return [
        first.__class__(
            **{
                **vars(first),
                "seq_num": first.seq_num + 10 * k,
                "start_tai": first.start_tai + 400.0 * k,
                "ra": first.ra + rng.uniform(-0.05, 0.05),
                "dec": first.dec + rng.uniform(-0.05, 0.05),
                "rotation": first.rotation + rng.uniform(-30.0, 30.0),
            }
        )
        for k in range(n)
    ]


def from_images(n: int) -> Known:
    """Simulate and reduce."""
    sky = Sky(SEED)
    plane, rows = FocalPlane(SEED, "LSSTCam", sky, fields=1), []
    visits = visits_of(n)
    refcat = sky.refcat(visits[0].ra, visits[0].dec, 2.0)
    for visit in visits:
        chosen = plane.camera[DETECTOR]
        observation = visit.observation(0)
        band = observation.band
        made = single_frame(
            raws_of(plane, visit, DETECTOR), calibration(SEED, plane.camera, DETECTOR, band), chosen, refcat
        )
        true = plane.field(Recipe(observation, observation.midpoint), DETECTOR).wcs
        frame = Frame(made.summary, made.stars)
        rows.append((frame, true, np.log(star_ratio(frame, true, sky))))
        print(f"visit {made.summary.visit}: {len(made.stars)} stars, FWHM {made.summary.fwhm_px:.2f} px", flush=True)
    frames, maps, logs = zip(*rows, strict=True)
    return Known(list(frames), refcat, list(maps), np.array(logs))


def star_ratio(frame: Frame, true: Wcs, sky: Sky) -> float:
    """Median of the true flux over the measured one, of bright constant stars without flags."""
    told, stars = frame.summary, frame.stars
    ra, dec = true.pixel_to_sky(told.nx / 2.0, told.ny / 2.0)
    there = sky.sources(float(ra), float(dec), 0.17, told.band, mjd_from_tai(told.midpoint))
    there = there[there["kind"] == Kind.STAR]
    x, y = true.sky_to_pixel(there["ra"], there["dec"])
    good = stars[(stars["flags"] & 15 == 0) & (stars["flux"] > BRIGHT_SNR * stars["flux_err"])]
    apart = np.hypot(good["x"][:, None] - x, good["y"][:, None] - y)
    near = apart.min(axis=1) < MATCH_PX
    return float(np.median(there["flux"][apart.argmin(axis=1)[near]] / good["flux"][near]))


def main() -> None:
    """Print the table."""
    arguments = sys.argv[1:]
    known = {"images": from_images(int((arguments[1:] or ["6"])[0]))} if arguments else {}
    print(
        f"{'':20s} {'frames':>5s} {'stars':>7s} {'WCS mas':>14s} {'zero point mmag':>31s} {'sightings mas':>14s}"
        f" {'mmag':>14s} kept core-s"
    )
    for name, each in known.items():
        judged(name, each)
    for name, recipe in ({} if arguments else KINDS).items():
        judged(name, made_up(recipe))
    print(f"memory at the most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0:.0f} MB")


if __name__ == "__main__":
    main()
