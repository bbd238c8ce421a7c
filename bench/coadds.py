"""Templates made of earlier visits against the simulator's own, and what warps and coadds cost.

    python -m bench.coadds [SEED [FOLDER]]

Ten visits of one detector, a fortnight apart, each turned and moved against the others, with the weather, asteroids and
cosmic rays that the simulator has, and in two of them a satellite; their raws are reduced, warped and added up patch by
patch. Three further visits, seven months later and more, go through alert production twice, with the simulator's
template (20 visits, 0.775 arcsec, its noise white) and with this one, and its sources are held against the truth.
FOLDER: where images and templates are kept for another run.
"""

import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from access.report.truth_check import Compared, compare, summary
from actors.stage_times import StageTimes
from backbone.butler import ButlerArchive
from bench.judge import robust_width
from cluster import prepare
from cluster.products import ButlerProducts
from cluster.settings import Settings
from payloads.alert_production import pipeline
from payloads.alert_production.score import MIN_RELIABILITY
from payloads.drp.coadd import Coadd, make_coadd, template_of
from payloads.drp.single_frame import single_frame
from payloads.drp.template_psf import TemplatePsf, template_psf
from payloads.drp.warps import MARGIN, make_warp
from payloads.imaging.photometry import PointSources, fit_point_sources
from payloads.imaging.psf_field import kernels_at
from schemas.errors import BadData
from schemas.identity import DatasetId
from schemas.image import DiaProducts, Mask, Raw
from schemas.instrument import Detector
from schemas.skymap import tract
from schemas.tables import Table
from schemas.wcs import Wcs
from simulators.camera import hits, products
from simulators.camera.exposure import FocalPlane, Recipe
from simulators.camera.truth import sources_truth
from simulators.ocs.schedule import PlannedVisit, load_schedule
from simulators.sky.sky import Sky
from simulators.sky.sources import Kind

DETECTOR, VISITS = 94, 10
DAYS, LATER_DAYS = 14, (210, 260, 310)
"""Between visits, and from the last to the later ones: no simulated transient lives longer than 200 days."""
SIDEREAL_DAY = 86164.0905
DITHER_DEG = 60.0 / 3600.0
SEEN = 5.0
"""S/N of an asteroid in its visit, from which a coadd would show it."""
CROSSED = (2, 6)
"""Visits in which a satellite crosses the detector, less than 1000 pixels from its middle."""
CLEAR_PX, CLEAR_NJY = 20.0, 300.0
"""An isolated star has nothing brighter so near."""

KIND = "template_patch"
BINS = ((5.0, 6.0), (6.0, 8.0), (8.0, 12.0), (12.0, 20.0), (20.0, np.inf))
FAINT_SNR, MAY_BE_SNR, BESIDE_PX = 20.0, 4.0, 15.0
SUMMARISED = ("kernel_chi2", "noise_scale", "score_threshold")
WITHIN_PX = 1700.0
"""Of the detector's middle: however the visits are turned and moved, all see that."""

Floats = NDArray[np.float64]
Told = dict[str, float]


def planned(seed: int) -> list[PlannedVisit]:
    """The visits that make the template, and after them those that use it, of one pointing."""
    first, rng = load_schedule("own", n=1, seed=seed)[0], np.random.default_rng(seed)
    plane = FocalPlane(seed, first.instrument, Sky(seed))
    days = [*(k * DAYS for k in range(VISITS)), (VISITS - 1) * DAYS + LATER_DAYS[0]]
    visits = [
        replace(
            first, start_tai=first.start_tai + day * SIDEREAL_DAY, group=f"{first.group}-{day}",
            ra=first.ra + float(dra) / np.cos(np.radians(first.dec)), dec=first.dec + float(ddec),
            rotation=float(rng.uniform(0.0, 360.0)),
        )
        for day, (dra, ddec) in zip(days, rng.uniform(-DITHER_DEG, DITHER_DEG, (len(days), 2)), strict=True)
    ]  # fmt: skip
    later = [replace(visits[-1], start_tai=visits[-1].start_tai + (day - LATER_DAYS[0]) * SIDEREAL_DAY,
                     group=f"{visits[-1].group}-{day}") for day in LATER_DAYS]  # fmt: skip
    return [*(crossed(v, seed, plane) if k in CROSSED else v for k, v in enumerate(visits[:-1])), *later]


def crossed(visit: PlannedVisit, seed: int, plane: FocalPlane) -> PlannedVisit:
    """The visit under the first number of which a satellite crosses the detector."""
    form = plane.camera[DETECTOR].format
    while True:
        path = hits.streak(seed, visit.observation(0).exposure)
        if path is not None:
            a, b, c = path.in_pixels(plane.camera[DETECTOR])
            if abs(a * form.width / 2.0 + b * form.height / 2.0 - c) < 1000.0:
                return visit
        visit = replace(visit, seq_num=visit.seq_num + visit.n_snaps)


class Cost:
    """CPU seconds of this process, all its threads, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what passes to a stage."""
        started = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started


def kept(path: Path, make: Callable[[], Any]) -> Any:  # noqa: ANN401 (whatever is made)
    """What is in a file, made and written if there is none."""
    if not path.exists():
        path.write_bytes(pickle.dumps(make(), protocol=5))
    return loaded(path)


def loaded(path: Path) -> Any:  # noqa: ANN401 (whatever is in it)
    """What is in a file."""
    with path.open("rb") as file:
        return pickle.load(file)  # noqa: S301 (by this program)


def reduced(plane: FocalPlane, visit: PlannedVisit, seed: int) -> tuple[Any, Table]:
    """A visit-detector's single frame, and what is in it."""
    raws, truth = observed(plane, visit)
    calibration = products.calibration(seed, plane.camera, DETECTOR, raws[0].observation.band)
    refcat = products.reference_catalogue(Sky(seed), visit.ra, visit.dec, prepare.STARS_WITHIN_DEG + 2 * DITHER_DEG)
    return single_frame(raws, calibration, plane.camera[DETECTOR], refcat), truth


def observed(plane: FocalPlane, visit: PlannedVisit) -> tuple[list[Raw], Table]:
    """A visit-detector's raws and what is in them."""
    raws = prepare.raws_of(plane, visit, DETECTOR)
    recipe = Recipe(raws[0].observation, visit.observation(0).midpoint)
    return raws, sources_truth(plane.field(recipe, DETECTOR), recipe, plane.charge(recipe, DETECTOR))


def coadd_of(folder: Path, name: DatasetId, psf: TemplatePsf, times: Cost) -> Coadd | None:
    """The coadd of the patch that a template's name has, if a visit reaches it; warps lie in a folder for so long."""
    assert name.tract is not None
    assert name.patch is not None
    with tempfile.TemporaryDirectory(dir=folder) as warps:
        paths = []
        for k in range(VISITS):
            frame, _ = loaded(folder / f"{k}.pickle")
            try:
                with times("warp"):
                    warp = make_warp([(DETECTOR, frame.image)], tract(name.tract), name.patch, frame.summary.visit)
            except BadData:  # a corner that this visit does not reach
                continue
            paths.append(Path(warps) / str(k))
            paths[-1].write_bytes(pickle.dumps(warp, protocol=5))
        with times("coadd"):
            return make_coadd([partial(loaded, path) for path in paths], psf.kernel) if paths else None


def archives(seed: int, visit: PlannedVisit, folder: Path, times: Cost) -> tuple[list[Settings], list[Coadd]]:
    """Archives with the simulator's templates for a visit, and with those of the images in the folder; the coadds."""
    known, made = (Settings(output=folder / name, detectors=(DETECTOR,)) for name in ("known", "made"))
    prepare.make_and_put(prepare.missing(known, [visit])[0], seed, known)
    coadds = []
    names = prepare.wanted([visit], made.camera, made.detectors)
    summaries = [loaded(folder / f"{k}.pickle")[0].summary for k in range(VISITS)]
    psfs = {t: template_psf(summaries, tract(t).wcs) for t in {name.tract for name in names} if t is not None}
    prepare.make_and_put([n for n in prepare.missing(made, [visit])[0] if n.dataset_type != KIND], seed, made)
    for name in (n for n in names if n.dataset_type == KIND):
        assert name.tract is not None
        coadd = kept(folder / f"coadd-{name.patch}.pickle", partial(coadd_of, folder, name, psfs[name.tract], times))
        if coadd is not None:
            ButlerArchive.open(made.butler).put(name, template_of(coadd))
            coadds.append(coadd)
    return [known, made], coadds


def processed(settings: Settings, visit: PlannedVisit, raws: Sequence[Raw]) -> DiaProducts:
    """What alert production makes of a visit-detector with an archive's templates."""
    products = ButlerProducts(ButlerArchive.open(settings.butler), settings.instrument)
    context = products.context_for(
        settings.camera[DETECTOR], visit.ra, visit.dec, visit.rotation, visit.physical_filter, visit.day_obs
    )
    snaps = [pipeline.reduce_snap(raw, context) for raw in raws]
    seen = [raw.observation for raw in raws]
    return pipeline.process_visit(snaps, seen, context, stage=StageTimes(), processed=0.0)


def shown(truth: Table, earlier: Sequence[Table]) -> Table:
    """The truth of a visit against a template of earlier ones, in which a variable has its mean flux in them.

    A transient that is over may have left something in the template, or have been left out of it: a source there is
    real, and none is missed.
    """
    changed = (np.abs(truth["snr"]) > 1.0) & (np.abs(truth["snr"]) < FAINT_SNR)
    noise = np.median(np.abs(truth["difference_flux"][changed] / truth["snr"][changed]))
    gone = np.concatenate([table[table["kind"] == Kind.TRANSIENT] for table in earlier])
    gone = gone[~np.isin(gone["id"], truth["id"])]
    joined: Table = np.concatenate([truth, gone[np.unique(gone["id"], return_index=True)[1]]])
    joined["snr"][len(truth) :], joined["usable"][len(truth) :] = -MAY_BE_SNR, False
    variable = np.flatnonzero(joined["kind"] == Kind.VARIABLE)
    for k in variable:
        had = [table["flux"][table["id"] == joined["id"][k]] for table in earlier]
        joined["template_flux"][k] = np.mean(np.concatenate(had)) if any(len(h) for h in had) else 0.0
    joined["difference_flux"][variable] = (joined["flux"] - joined["template_flux"])[variable]
    joined["snr"][variable] = joined["difference_flux"][variable] / noise
    return joined


def judged(made: Sequence[DiaProducts], truths: Sequence[Table]) -> Told:
    """Sources of visits against their truth, where all templates are; fluxes and places of what is no variable star."""
    pairs = [_near_middle(products, truth) for products, truth in zip(made, truths, strict=True)]
    found = [_compared(sources, truth) for sources, truth in pairs]
    others = [_compared(sources, truth[truth["kind"] != Kind.VARIABLE]) for sources, truth in pairs]
    told = summary(others)
    snr, detected = (np.concatenate([getattr(each, name) for each in found]) for name in ("snr", "detected"))
    bins = {f"S/N {first:g}-{last:g}": (snr >= first) & (snr < last) for first, last in BINS}
    means = {name: float(np.mean([each.summary[name] for each in made])) for name in SUMMARISED}
    return {
        "sources": float(sum(len(sources) for sources, _ in pairs)),
        "false": float(sum((~each.real).sum() for each in found)),
        "false, reliable": float(sum((~each.real_alerts).sum() for each in found)),
        **{f"true, {name}": float(chosen.sum()) for name, chosen in bins.items()},
        **{f"found, {name}": float(detected[chosen].sum()) for name, chosen in bins.items()},
        "true, no variables": float(sum(len(each.snr) for each in others)),
        "found, no variables": float(sum(each.detected.sum() for each in others)),
        "flux bias, %": 100.0 * (told.flux_bias or np.nan),
        "flux pull": told.flux_pull_width or np.nan,
        "position, mas": told.position_mas or np.nan,
        **means,
    }  # fmt: skip


def _near_middle(products: DiaProducts, truth: Table) -> tuple[Table, Table]:
    ny, nx = products.science.pixels.shape
    sources, true = (
        table[np.hypot(table["x"] - nx / 2.0, table["y"] - ny / 2.0) < WITHIN_PX] for table in (products.sources, truth)
    )
    return sources, true


def _compared(sources: Table, truth: Table) -> Compared:
    reliable = sources["reliability"] >= MIN_RELIABILITY
    return compare({name: truth[name] for name in truth.dtype.names or ()}, sources, reliable)


def quality(coadd: Coadd, earlier: Sequence[Table]) -> Told:
    """A coadd against the truth: stars, empty sky, and what is left at the places of asteroids and satellites."""
    truth = earlier[0]
    x, y = coadd.wcs.sky_to_pixel(truth["ra"], truth["dec"])
    light = cKDTree(np.stack([x, y], 1)[truth["flux"] > CLEAR_NJY])
    stars = (truth["kind"] == Kind.STAR) & (truth["flux"] > 30 * CLEAR_NJY) & inside(coadd, x, y)
    stars &= light.query(np.stack([x, y], 1), k=2)[0][:, 1] > CLEAR_PX
    stars &= at(coadd.pixels.mask, x, y) & np.uint16(Mask.SAT) == 0
    seen, flux = measured(coadd, x[stars], y[stars], move=True), truth["flux"][stars]
    empty_x, empty_y = np.random.default_rng(0).uniform(0, coadd.pixels.shape[0], (2, 20000))
    far = inside(coadd, empty_x, empty_y) & (light.query(np.stack([empty_x, empty_y], 1))[0] > 2 * CLEAR_PX)
    every = cKDTree(np.stack([x, y], 1)[truth["flux"] > CLEAR_NJY / 15.0])
    far &= every.query(np.stack([empty_x, empty_y], 1))[0] > CLEAR_PX / 2.0
    empty = measured(coadd, empty_x[far], empty_y[far])
    pull = empty.flux / empty.flux_err
    return {
        "stars": float(stars.sum()),
        "flux bias, %": 100.0 * float(np.nanmedian(seen.flux / flux - 1.0)),
        "position bias, px": float(np.hypot(np.nanmedian(seen.x - x[stars]), np.nanmedian(seen.y - y[stars]))),
        "star pull": robust_width(((seen.flux - flux) / seen.flux_err)[np.isfinite(seen.flux)]),
        "empty places": float(far.sum()),
        "empty sky, sigma": float(np.nanmedian(pull)),
        "empty sky's pull": robust_width(pull[np.isfinite(pull)]),
    }


def asteroids_left(coadds: Sequence[Coadd], earlier: Sequence[Table]) -> Told:
    """What coadds have at places of asteroids that were not near anything bright, and what a plain mean would have."""
    movers = np.concatenate(
        [table[(table["kind"] == Kind.ASTEROID) & (np.abs(table["snr"]) > SEEN)] for table in earlier]
    )
    light = earlier[0][earlier[0]["flux"] > CLEAR_NJY]
    left, plain, pull = [], [], []
    for coadd in coadds:
        x, y = coadd.wcs.sky_to_pixel(movers["ra"], movers["dec"])
        tree = cKDTree(np.stack(coadd.wcs.sky_to_pixel(light["ra"], light["dec"]), 1))
        clear = inside(coadd, x, y) & (tree.query(np.stack([x, y], 1))[0] > CLEAR_PX / 2.0)
        seen = measured(coadd, x[clear], y[clear])
        left.append(seen.flux)
        plain.append(movers["flux"][clear] / len(coadd.inputs.visits))
        pull.append(seen.flux / seen.flux_err)
    flux, expected, sigmas = np.concatenate(left), np.concatenate(plain), np.concatenate(pull)
    return {
        "asteroids": float(len(flux)),
        "nJy left, median": float(np.nanmedian(flux)),
        "of a plain mean": float(np.median(expected)),
        "sigma left, median": float(np.nanmedian(sigmas)),
        "sigma left, most": float(np.nanmax(sigmas)),
    }


def trails_left(coadd: Coadd, wcs: Wcs, path: hits.Streak, detector: Detector, zero_point: float) -> Told:
    """What a coadd has on a satellite's path, less what it has 15 pixels to either side; nJy a pixel."""
    a, b, c = path.in_pixels(detector)
    along = np.arange(-3000.0, 3000.0)
    near = [c, c - BESIDE_PX, c + BESIDE_PX]
    middle = np.array([a, b]) @ (np.array([detector.format.width, detector.format.height]) / 2.0)
    lines = []
    for distance in near:
        x = a * (distance - middle) + detector.format.width / 2.0 - b * along
        y = b * (distance - middle) + detector.format.height / 2.0 + a * along
        x, y = coadd.wcs.sky_to_pixel(*wcs.pixel_to_sky(x, y))
        lines.append(np.where(inside(coadd, x, y), at(coadd.pixels.image, x, y), np.nan))
    on, before, behind = (float(np.nanmedian(line)) for line in lines)
    return {"left": on - (before + behind) / 2.0, "of a plain mean": path.peak * zero_point / len(coadd.inputs.visits)}


def inside(coadd: Coadd, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Places that all visits see, on the patch itself."""
    ny, nx = coadd.pixels.shape
    result: NDArray[np.bool_] = (x > MARGIN) & (y > MARGIN) & (x < nx - MARGIN) & (y < ny - MARGIN)
    result[result] &= at(coadd.depth, x[result], y[result]) >= len(coadd.inputs.visits) - 4
    return result


def at(plane: NDArray[Any], x: Floats, y: Floats) -> NDArray[Any]:
    """The nearest pixels; of places beyond the plane, those on its edge."""
    ny, nx = plane.shape
    result: NDArray[Any] = plane[np.clip(np.rint(y).astype(int), 0, ny - 1), np.clip(np.rint(x).astype(int), 0, nx - 1)]
    return result


def measured(coadd: Coadd, x: Floats, y: Floats, *, move: bool = False) -> PointSources:
    """PSF photometry on a coadd."""
    return fit_point_sources(coadd.pixels, kernels_at(coadd.psf, x, y), x, y, move=move)


def told(columns: dict[str, Told]) -> None:
    """Print a table."""
    print(f"{'':28s}" + "".join(f"{name:>14s}" for name in columns))
    for row in next(iter(columns.values())):
        print(f"{row:28s}" + "".join(f"{column.get(row, np.nan):14.3f}" for column in columns.values()))


def measure(seed: int, folder: Path) -> None:
    """All of it; prints."""
    visits, plane, times = planned(seed), FocalPlane(seed, "LSSTCam", Sky(seed)), Cost()
    earlier, later = visits[:VISITS], visits[VISITS:]
    truths = [kept(folder / f"{k}.pickle", partial(reduced, plane, v, seed))[1] for k, v in enumerate(earlier)]
    (known, made), coadds = archives(seed, later[0], folder, times)
    whole = max(coadds, key=lambda coadd: (int(coadd.depth.sum()), coadd.inputs.visits))
    told({"coadd": quality(whole, truths)})
    told({"asteroids": asteroids_left(coadds, truths)})
    for k in CROSSED:
        image, path = loaded(folder / f"{k}.pickle")[0].image, hits.streak(seed, earlier[k].observation(0).exposure)
        assert path is not None
        left = trails_left(whole, image.wcs, path, plane.camera[DETECTOR], image.zero_point)
        print("satellite, nJy a pixel: " + ", ".join(f"{name} {value:.2f}" for name, value in left.items()))
    seen = [kept(folder / f"later-{k}.pickle", partial(observed, plane, v)) for k, v in enumerate(later)]
    told(
        {
            name: judged([processed(settings, v, raws) for v, (raws, _) in zip(later, seen, strict=True)], true)
            for name, settings, true in (
                ("simulator's", known, [truth for _, truth in seen]),
                ("coadded", made, [shown(truth, truths) for _, truth in seen]),
            )
        }
    )
    if times.seconds:
        parts = sum(len(coadd.inputs.visits) for coadd in coadds)
        spent = {name: seconds / parts for name, seconds in times.seconds.items()}
        print(f"core-seconds: {spent['warp']:.2f} a warp, {spent['coadd']:.2f} a warp coadded, of {parts}")


def main() -> None:
    """In a folder of its own, if none is named."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    if len(sys.argv) > 2:
        Path(sys.argv[2]).mkdir(exist_ok=True)
        measure(seed, Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(seed, Path(folder))


if __name__ == "__main__":
    main()
