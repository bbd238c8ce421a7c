"""Other packages on single stages, each on the pixels that ours has: what is found, and core-seconds.

    python -m bench.peers_of_stages [SEED]

On one simulated raw, an LSSTCam CCD in r: signature removal against ccdproc, cosmic rays against astroscrappy
(L.A.Cosmic, van Dokkum 2001, PASP 113, 1420). On the difference of the plain pair of `bench.difference`: detection
against sep (Barbary 2016, JOSS 1, 58; after Bertin & Arnouts 1996). Core-seconds are medians of three, after one to
warm up for ours; what is not installed has one line that says so.
"""

import importlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from astropy import units
from astropy.nddata import StdDevUncertainty
from scipy import ndimage

from access.difference.door import Differenced, difference_files
from access.difference.images import Source
from access.difference.products import UNUSABLE
from actors.stage_times import StageTimes
from bench import judge
from bench.camera import DETECTOR, STARTED, observation
from bench.judge import Bools, Floats
from cluster.allocator import keep_freed_memory
from payloads.alert_production.detect import detect
from payloads.imaging import background, cosmic_rays
from payloads.imaging.isr import remove_signature
from schemas.image import Calibration, Image, Mask, MaskedImage, Raw
from schemas.instrument import Detector
from schemas.tables import Table
from simulators import pairs
from simulators.camera import hits
from simulators.camera.exposure import FocalPlane, Recipe
from simulators.camera.products import calibration
from simulators.camera.truth import sources_truth
from simulators.sky.sky import Sky
from simulators.sky.sources import Kind

REPEATS = 3
_UNUSABLE = int(Mask.BAD | Mask.SAT | Mask.NO_DATA | Mask.UNMASKED_NAN)
_TRAILED = 4
_STRUCK_SIGMA, _UNTOUCHED_SIGMA = 5.0, 0.5
_STAR_SIGMA, _CLEAR_PX = 10.0, 3
_FWHM_PX = 4.5
_CORE_PX = 5
"""Half-width of the filter that sep is given; the whole PSF's takes it a minute."""

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Seen:
    """Two snaps of one detector. `rays`: electrons that cosmic rays left in each; `table`: of `sources_truth`."""

    detector: Detector
    calibration: Calibration
    raws: list[Raw]
    rays: list[Image]
    table: Table


def seen(seed: int) -> Seen:
    """Simulate them."""
    plane = FocalPlane(seed, "LSSTCam", Sky(seed))
    master = calibration(seed, plane.camera, DETECTOR, "r")
    raws, rays, tables = [], [], []
    for snap in (0, 1):
        recipe = Recipe(observation(snap), STARTED + 7.5)
        charge = plane.charge(recipe, DETECTOR)
        raws.append(Raw.of(recipe.observation, DETECTOR, plane.segments(recipe, DETECTOR, charge)))
        left = np.zeros_like(charge)
        hits.add_cosmic_rays(left, seed, recipe.observation.exposure, DETECTOR, recipe.observation.exposure_time)
        rays.append(left)
        tables.append(sources_truth(plane.field(recipe, DETECTOR), recipe, charge))
    return Seen(plane.camera[DETECTOR], master, raws, rays, tables[0])


def timed(step: Callable[[], Made], repeats: int = REPEATS) -> tuple[Made, float]:
    """What it gives, and its CPU seconds, the median."""
    seconds = []
    for _ in range(repeats):
        before = process_time()
        made = step()
        seconds.append(process_time() - before)
    return made, float(np.median(seconds))


def warm(step: Callable[[], Made]) -> tuple[Made, float]:
    """The same after a first run, in which kernels are compiled."""
    step()
    return timed(step)


def installed(name: str) -> ModuleType | None:
    """The package, or a line that it is not here."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        print(f"  not installed: {name}")
        return None


def signature(raw: Raw, known: Seen) -> MaskedImage:
    """A table of signature removal; ours, of this raw."""
    print("signature removal: core-s, and by how much the image differs from ours (robust width, in its noise)")
    made, seconds = warm(lambda: remove_signature(raw, known.calibration, known.detector))
    print(f"  {'ours':32s} {seconds:7.3f}")
    ccdproc = installed("ccdproc")
    if ccdproc is not None:
        other, seconds = timed(lambda: by_ccdproc(ccdproc, raw, known))
        good = made.mask == 0
        off = judge.robust_width(((other - made.image) / np.sqrt(made.variance))[good])
        print(f"  {'ccdproc, which has no crosstalk':32s} {seconds:7.3f}  {off:.3f}")
    return made


def by_ccdproc(ccdproc: Any, raw: Raw, known: Seen) -> Floats:  # noqa: ANN401 (a package that may be absent)
    """Overscan, trim, gain, deviation for each amplifier; bias, dark and flat for the whole. Electrons."""
    form, data = known.detector.format, ccdproc.CCDData
    whole, error = (np.empty((form.height, form.width)) for _ in range(2))
    active = np.s_[: form.amp_height, form.prescan : form.prescan + form.amp_width]
    for amplifier, segment in zip(known.detector.amplifiers, raw.segments, strict=True):
        ccd = data(segment.astype(np.float64), unit="adu")
        ccd = ccdproc.subtract_overscan(ccd, overscan=ccd[:, active[1].stop + _TRAILED :], overscan_axis=1)
        ccd = ccdproc.trim_image(ccd[active])
        ccd = ccdproc.gain_correct(ccd, float(known.calibration.gain[amplifier.index]) * units.electron / units.adu)
        noise = float(known.calibration.read_noise[amplifier.index]) * units.electron
        ccd = ccdproc.create_deviation(ccd, readnoise=noise, disregard_nan=True)
        box = np.s_[amplifier.y0 : amplifier.y0 + form.amp_height, amplifier.x0 : amplifier.x0 + form.amp_width]
        turned = np.s_[:: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1]
        whole[box], error[box] = ccd.data[turned], ccd.uncertainty.array[turned]
    ccd = data(whole, unit="electron", uncertainty=StdDevUncertainty(error))
    ccd = ccdproc.subtract_bias(ccd, data(known.calibration.bias, unit="electron"))
    exposure = raw.observation.exposure_time * units.s
    ccd = ccdproc.subtract_dark(
        ccd, data(known.calibration.dark, unit="electron"), dark_exposure=1.0 * units.s, data_exposure=exposure,
        scale=True,
    )  # fmt: skip
    result: Floats = ccdproc.flat_correct(ccd, data(known.calibration.flat, unit="")).data
    return result


def rays(snaps: list[MaskedImage], known: Seen) -> None:
    """A table of cosmic rays, in the first snap."""
    print("cosmic rays: core-s, of struck pixels found, of stars flagged in their core, pixels flagged with no charge")
    sky = sky_of(snaps[0])
    fwhm = cosmic_rays.coarse_fwhm(snaps[0].image, snaps[0].variance, sky, _FWHM_PX)
    both = cosmic_rays.Others(snaps[0].image + snaps[1].image, snaps[0].variance + snaps[1].variance, 2)
    for name, others in (("ours, of one snap", None), ("ours, of two", both)):
        flagged, seconds = warm(lambda others=others: by_ours(snaps[0], sky, fwhm, others))  # type: ignore[misc]
        print_rays(name, seconds, flagged, snaps[0], known)
    package = installed("astroscrappy")
    if package is not None:
        flagged, seconds = timed(lambda: by_astroscrappy(package, snaps[0]), 1)
        print_rays("astroscrappy, its defaults", seconds, flagged, snaps[0], known)


def sky_of(snap: MaskedImage) -> cosmic_rays.Sky:
    """As `combine_snaps` takes it."""
    return cosmic_rays.Sky(background.mesh(snap.image, snap.mask, _UNUSABLE, 256, 8)[0])


def by_ours(snap: MaskedImage, sky: cosmic_rays.Sky, fwhm: float, others: cosmic_rays.Others | None) -> Bools:
    """Flagged pixels."""
    found = np.zeros(snap.shape, np.uint8)
    cosmic_rays.find(snap.image, snap.variance, snap.mask, _UNUSABLE, sky, fwhm, found, 1, others)
    flagged: Bools = found != 0
    return flagged


def by_astroscrappy(package: Any, snap: MaskedImage) -> Bools:  # noqa: ANN401 (it may be absent)
    """Flagged pixels; it is given the variance and the mask."""
    flagged: Bools = package.detect_cosmics(
        snap.image, inmask=snap.mask & _UNUSABLE != 0, invar=snap.variance, satlevel=np.inf
    )[0]
    return flagged


def print_rays(name: str, seconds: float, flagged: Bools, snap: MaskedImage, known: Seen) -> None:
    """A line of the table."""
    noise, judgeable = np.sqrt(snap.variance), ~ndimage.binary_dilation(snap.mask & _UNUSABLE != 0, np.ones((3, 3)))
    left = known.rays[0]
    struck = (left > _STRUCK_SIGMA * noise) & judgeable
    extra = int((flagged & judgeable & (left < _UNTOUCHED_SIGMA * noise)).sum())
    harmed, stars = stars_harmed(flagged, snap, known)
    print(
        f"  {name:32s} {seconds:7.3f}  {(flagged & struck).sum()}/{struck.sum()} ="
        f" {100.0 * (flagged & struck).sum() / struck.sum():.2f} %  {harmed}/{stars}  {extra}"
    )


def stars_harmed(flagged: Bools, snap: MaskedImage, known: Seen) -> tuple[int, int]:
    """Of stars whose centre stands out and that no ray came near: those with a flag in their 3 x 3 pixels; all."""
    table = known.table[(known.table["kind"] != Kind.GALAXY) & known.table["usable"]]
    y, x = np.rint(table["y"]).astype(int), np.rint(table["x"]).astype(int)
    near_ray = ndimage.maximum_filter(known.rays[0] > 0.0, 2 * _CLEAR_PX + 1)
    peak = (snap.image - np.median(snap.image)) / np.sqrt(snap.variance)
    chosen = (peak[y, x] > _STAR_SIGMA) & ~near_ray[y, x]
    touched = ndimage.maximum_filter(flagged, 3)[y, x]
    return int((touched & chosen).sum()), int(chosen.sum())


def detection(seed: int) -> None:
    """A table of detection on our difference of a pair."""
    print("detection on our difference: core-s, transients found of S/N 5-6, 6-8, >8 on usable pixels, false ones")
    pair = pairs.make_pair(pairs.Recipe(seed))
    made = differenced(pair)
    usable = made.products.difference.pixels.mask & UNUSABLE == 0
    _, seconds = warm(lambda: detect(made.subtraction))
    sources = made.products.sources
    print_found("ours", seconds, np.stack([sources["x"], sources["y"]], axis=1), pair, usable)
    sep = installed("sep")
    if sep is not None:
        pixels, psf = made.products.difference.pixels, judge.at_centre(made.products.difference.psf)
        places, seconds = timed(lambda: by_sep(sep, pixels, psf, ~usable))
        print_found("sep, 5 sigma, filter of 11 x 11", seconds, places, pair, usable)


def differenced(pair: pairs.Pair) -> Differenced:
    """As a user would have it."""
    with tempfile.TemporaryDirectory() as folder:
        pairs.write_pair(pair, Path(folder))
        science, template = (Source(Path(folder) / f"{name}.fits") for name in ("science", "template"))
        return difference_files(science, template, None, StageTimes())


def by_sep(sep: Any, pixels: MaskedImage, psf: Floats, spoilt: Bools) -> Floats:  # noqa: ANN401 (it may be absent)
    """Places (n, 2) of what is above and below 5 sigma. It convolves directly: the PSF's core has to do."""
    edge = psf.shape[0] // 2 - _CORE_PX
    core = psf[edge : psf.shape[0] - edge, edge : psf.shape[1] - edge]
    sep.set_extract_pixstack(3_000_000)
    image = np.where(spoilt, np.float32(0.0), pixels.image)
    error = np.sqrt(np.where(spoilt, np.float32(1.0), pixels.variance))
    image -= sep.Background(image, mask=spoilt, bw=256, bh=256).back()
    found = [sep.extract(sign * image, judge.THRESHOLD, err=error, mask=spoilt, filter_kernel=core, minarea=1)
             for sign in (1.0, -1.0)]  # fmt: skip
    return np.concatenate([np.stack([each["x"], each["y"]], axis=1) for each in found])


def print_found(name: str, seconds: float, places: Floats, pair: pairs.Pair, usable: Bools) -> None:
    """A line of the table."""
    x, y, snr = (np.asarray(pair.truth[column], np.float64) for column in ("x", "y", "snr"))
    apart = judge.distances(places, np.stack([x, y], axis=1))
    found = apart.min(axis=0, initial=np.inf) < judge.FOUND_PX
    fine = usable[np.rint(y).astype(int), np.rint(x).astype(int)]
    counts = " ".join(f"{(found & chosen).sum()}/{chosen.sum()}" for chosen in judge.binned(snr, fine))
    false = int((apart.min(axis=1, initial=np.inf) > judge.FALSE_PX).sum())
    print(f"  {name:32s} {seconds:7.3f}  {counts}  {false}")


def main() -> None:
    """Print the tables."""
    keep_freed_memory()
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    known = seen(seed)
    first = signature(known.raws[0], known)
    rays([first, remove_signature(known.raws[1], known.calibration, known.detector)], known)
    detection(seed)


if __name__ == "__main__":
    main()
