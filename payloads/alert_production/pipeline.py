"""Alert production: from raws to DIASources that are measured and scored. The stages, in order."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np

from payloads.alert_production.detect import Detections, detect
from payloads.alert_production.measure import measure
from payloads.alert_production.score import MIN_RELIABILITY, score
from payloads.alert_production.stamps import make_stamps
from payloads.alert_production.subtract import Subtraction, subtract, warp_template
from payloads.imaging.calibrate import calibrate
from payloads.imaging.characterize import characterize
from payloads.imaging.isr import remove_signature
from payloads.imaging.snaps import EXPECTED_FWHM, combine_snaps, exposure_time, midpoint
from schemas.errors import BadData
from schemas.image import Calibration, DiaProducts, MaskedImage, Observation, Raw, Template, VisitImage
from schemas.instrument import Detector
from schemas.pointing import nominal_wcs
from schemas.tables import Table


@dataclass(frozen=True, eq=False)
class Context:
    """What a detector needs beside its pixels. `refcat`: rows of `schemas.tables.REFCAT_DTYPE`."""

    detector: Detector
    calibration: Calibration
    template: Template
    refcat: Table


def reduce_snap(raw: Raw, context: Context) -> MaskedImage:
    """One snap's electrons, as soon as it is read."""
    return remove_signature(raw, context.calibration, context.detector)


def process_visit(
    snaps: list[MaskedImage],
    observations: Sequence[Observation],
    context: Context,
    *,
    stage: Callable[[str], AbstractContextManager[None]],
    processed: float,
) -> DiaProducts:
    """Everything from the reduced snaps on.

    `snaps`: emptied as soon as they are one image, for they are its size each. `observations`: one a snap, in order.
    `processed`: TAI s, when this runs, for the rows.
    Each stage runs inside `stage(name)`, which times it. Raises BadData, naming what cannot be used.
    """
    if not snaps or len(snaps) != len(observations):
        raise BadData(f"{len(snaps)} snaps with {len(observations)} observations")
    first, detector, template, refcat = observations[0], context.detector, context.template, context.refcat
    del context  # the caller's last, perhaps: of what it holds, a calibration is not needed any more
    with stage("combine_snaps"):
        image = combine_snaps(snaps, EXPECTED_FWHM)
    snaps.clear()
    with stage("characterize"):
        characterized = characterize(image)
    del image
    with stage("calibrate"):
        guess = nominal_wcs(detector, first.ra, first.dec, first.rotation)
        science, calibration = calibrate(
            characterized,
            refcat,
            guess,
            first.band,
            midpoint(observations),
            exposure_time(observations),
        )
    del characterized
    with stage("warp"):
        warped = warp_template(template, science)
    del template  # it is as large as what is now made of it
    products, _ = difference(science, warped, visit=first.visit, detector=detector.id, stage=stage, processed=processed)
    return replace(products, summary=calibration.as_dict() | products.summary)


def difference(
    science: VisitImage,
    warped: Template,
    *,
    visit: int,
    detector: int,
    stage: Callable[[str], AbstractContextManager[None]],
    processed: float,
) -> tuple[DiaProducts, Subtraction]:
    """From a calibrated image and a template warped onto it to scored DIASources; the subtraction they were found in.

    See `process_visit`, of which this is the second half.
    """
    with stage("subtract"):
        subtraction = subtract(science, warped)
    with stage("detect"):
        detections = detect(subtraction)
        pixels = subtraction.difference.pixels
        found = replace(pixels, mask=detections.mask, variance=pixels.variance * np.float32(detections.noise_scale**2))
        image = replace(subtraction.difference, pixels=found)
        subtraction = replace(subtraction, difference=image)
    with stage("measure"):
        sources = measure(detections, subtraction, science, visit=visit, detector=detector, processed=processed)
        stamps = make_stamps(sources, science, subtraction.warped, image)
    with stage("score"):
        sources = score(sources, stamps)
    summary = _summary(subtraction, detections, sources)
    return DiaProducts(sources, stamps, image, science, summary), subtraction


def _summary(subtraction: Subtraction, detections: Detections, sources: Table) -> dict[str, float]:
    return {
        "n_kernel_stamps": float(subtraction.kernel.x.size),
        "kernel_chi2": subtraction.kernel.chi2,
        "kernel_sum": subtraction.kernel_sum,
        "astrometric_scatter_px": subtraction.systematics.astrometric,
        "photometric_scatter": subtraction.systematics.photometric,
        "noise_scale": detections.noise_scale,
        "convolved_template": float(subtraction.convolved == "template"),
        "score_width": detections.width,
        "score_threshold": detections.threshold,
        "n_sources": float(sources.size),
        "n_reliable": float((sources["reliability"] >= MIN_RELIABILITY).sum()),
    }
