"""`pachon train-reliability`: train the model on simulated nights and pairs, measure it on others, keep it.

Real is what lies within 1 arcsec of something that changed by 3 sigma or more; between 1 and 3 arcsec of such is left
out. The last half of the seeds is held out for the figures; the model that is kept has learned from all.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from rich.console import Console

from access.difference.door import difference_files
from access.difference.images import Source
from actors.stage_times import StageTimes
from backbone.butler import ButlerArchive
from backbone.fits_errors import written_or_transient
from cluster import prepare
from cluster.allocator import keep_freed_memory
from cluster.products import ButlerProducts
from cluster.settings import Settings
from payloads.alert_production import pipeline, score
from schemas.errors import BadData
from schemas.image import DiaProducts
from schemas.wcs import to_tangent
from simulators import pairs
from simulators.camera.exposure import FocalPlane, Recipe
from simulators.camera.truth import sources_truth
from simulators.ocs.schedule import PlannedVisit, load_schedule
from simulators.sky.sky import Sky

DETECTORS = (4, 60, 94, 130)
VISITS = 4
REAL_SNR, NEAR_ARCSEC, FAR_ARCSEC = 3.0, 1.0, 3.0

THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 0.7)
UNCLEANED: dict[str, object] = {
    "science": replace(
        pairs.SCIENCE, fwhm_arcsec=1.0, beta=2.7, ellipticity=(0.08, 30.0), jitter=15.0, spikes=0.006
    ),
    "template": replace(
        pairs.TEMPLATE, fwhm_arcsec=0.9, ellipticity=(0.03, 100.0), zero_point=33.4, sky=3000.0, spikes=0.01,
        rotation=3.0,
    ),
    "shape": (3000, 3000), "stars": 12_000, "trails": 60, "moved": 60, "variables": 60, "rays": 60,
}  # fmt: skip
"""A pair whose cosmic rays are left in: its mask says that they were looked for."""

PAIRS: Sequence[dict[str, object]] = (
    {},
    {"science": replace(pairs.SCIENCE, fwhm_arcsec=0.8), "template": replace(pairs.TEMPLATE, fwhm_arcsec=1.1)},
    {"science": replace(pairs.SCIENCE, misplaced=30.0), "stars": 60_000, "transients": 300},
    {"science": replace(pairs.SCIENCE, fwhm_arcsec=0.9), "transients": 300, "on_galaxies": 0.9},
    {
        "science": replace(
            pairs.SCIENCE, fwhm_arcsec=0.5, beta=4.0, ellipticity=(0.25, 35.0), jitter=10.0, spikes=0.01
        ),
        "template": replace(pairs.TEMPLATE, fwhm_arcsec=0.42, beta=4.0, spikes=0.01),
        "shape": (3000, 3000), "stars": 12_000, "trails": 60, "moved": 60, "variables": 60, "rays": 60,
    },
    UNCLEANED,
    {
        "science": replace(pairs.SCIENCE, fwhm_arcsec=1.5, spikes=0.01),
        "template": replace(pairs.TEMPLATE, fwhm_arcsec=0.7, spikes=0.008),
        "shape": (3000, 3000), "stars": 12_000, "brightest": 12.0, "trails": 60, "moved": 60, "variables": 60,
    },
)  # fmt: skip
"""How the pairs of a seed differ from the generator's own."""

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
    raws = prepare.raws_of(plane, visit, detector)
    context = products.context_for(
        plane.camera[detector], visit.ra, visit.dec, visit.rotation, visit.physical_filter, visit.day_obs
    )
    snaps = [pipeline.reduce_snap(raw, context) for raw in raws]
    seen = [raw.observation for raw in raws]
    made = pipeline.process_visit(snaps, seen, context, stage=StageTimes(), processed=0.0)
    first = Recipe(seen[0], seen[0].midpoint)
    truth = sources_truth(plane.field(first, detector), first, plane.charge(first, detector))
    truth = truth[np.abs(truth["snr"]) >= REAL_SNR]
    return _labelled(made, truth["ra"], truth["dec"])


def seen_pairs(seed: int) -> Iterator[Labelled]:
    """Features and labels of each pair of a seed."""
    for number, changes in enumerate(PAIRS):
        pair = pairs.make_pair(pairs.Recipe(seed * len(PAIRS) + number, **changes))  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            pairs.write_pair(pair, Path(folder))
            science, template = (Source(Path(folder) / f"{name}.fits") for name in ("science", "template"))
            if changes is UNCLEANED:
                science = replace(science, mask=_one_ray(Path(folder) / "mask.fits", pair.recipe.shape))
            made = difference_files(science, template, None, StageTimes())
        yield _labelled(made.products, np.asarray(pair.truth["ra"]), np.asarray(pair.truth["dec"]))


def _one_ray(path: Path, shape: tuple[int, int]) -> Path:
    """A mask that tells of a single struck pixel."""
    mask = np.zeros(shape, np.uint16)
    mask[0, 0] = 1
    fits.PrimaryHDU(mask, fits.Header({"MP_CR": 0})).writeto(path)
    return path


def _labelled(made: DiaProducts, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> Labelled:
    """The sources that are surely real or surely not. `ra`, `dec`: deg, of all that changed."""
    place = made.difference.wcs.crval
    x, y = to_tangent(made.sources["ra"], made.sources["dec"], place)
    tx, ty = to_tangent(ra, dec, place)
    distance = 3600.0 * np.hypot(x[:, None] - tx, y[:, None] - ty).min(axis=1, initial=np.inf)
    clear = (distance <= NEAR_ARCSEC) | (distance > FAR_ARCSEC)
    return score.features(made.sources, made.stamps)[clear], (distance <= NEAR_ARCSEC)[clear]


def run(seeds: Sequence[int], version: str, out: Path) -> int:
    """Train, measure, write the model to a file.

    Raises BadData for fewer than two seeds, Transient for a file that cannot be written.
    """
    if len(seeds) < 2:
        raise BadData(f"{len(seeds)} seed: at least one is needed to train on, and one to measure with")
    with written_or_transient(out):  # before ten minutes of work, not after
        out.open("ab").close()
    keep_freed_memory()
    console, seen = Console(highlight=False), []
    for seed in seeds:
        parts = [*night(seed), *seen_pairs(seed)]
        seen.append(_joined(parts))
        console.print(f"seed {seed}: {seen[-1][1].sum()} real, {(~seen[-1][1]).sum()} bogus")
    learned = (len(seen) + 1) // 2
    trial = score.train(*_joined(seen[:learned]), "trial", {})
    values, real = _joined(seen[learned:])
    probability = score.probability(trial, values)
    measured = score.roc(probability, real)
    for name, value in measured.items():
        console.print(f"{name:24s} {value:.4f}")
    for threshold in THRESHOLDS:
        kept = probability >= threshold
        console.print(f"kept at {threshold}: purity {real[kept].mean():.3f}, completeness {kept[real].mean():.3f}")
    out.write_text(score.to_json(score.train(*_joined(seen), version, measured)), encoding="utf-8")
    console.print(f"model {version} in {out}")
    return 0


def _joined(parts: Sequence[Labelled]) -> Labelled:
    values, real = zip(*parts, strict=True)
    return np.concatenate(values), np.concatenate(real)
