"""What a difference leaves behind: images, sources, a summary, a picture."""

import json
import math
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table as AstropyTable

from access.difference.door import Differenced
from access.difference.picture import draw
from backbone.fits_errors import written_or_transient
from payloads.alert_production.score import MIN_RELIABILITY
from schemas.image import Mask, Psf

UNUSABLE = np.uint16(Mask.NO_DATA | Mask.SAT | Mask.SAT_TEMPLATE | Mask.BAD | Mask.EDGE | Mask.HALO)
"""Bits of pixels in which no source is looked for, or none to be trusted."""


def write_products(made: Differenced, out: Path, seconds: dict[str, float]) -> dict[str, object]:
    """Write everything into a folder, which is made; the summary. Raises Transient for a disk that takes no more.

    `difference.fits`; `dia_sources.parquet` and `.ecsv`: every detection, of both signs, with its `reliability`;
    `summary.json`; `difference.png`.
    """
    told = summary(made, seconds)
    with written_or_transient(out):
        out.mkdir(parents=True, exist_ok=True)
        _images(made).writeto(out / "difference.fits", overwrite=True, checksum=True)
        table = AstropyTable(made.products.sources)  # the columns of `DiaSource` in apdb.yaml
        table.write(out / "dia_sources.ecsv", format="ascii.ecsv", overwrite=True)
        table.write(out / "dia_sources.parquet", format="parquet", overwrite=True)
        draw(made, out / "difference.png")
        (out / "summary.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


def summary(made: Differenced, seconds: dict[str, float]) -> dict[str, object]:
    """Counts, what calibration and subtraction found, and CPU seconds by stage. What is not finite is null."""
    sources, mask = made.products.sources, made.products.difference.pixels.mask
    believed = sources["reliability"] >= MIN_RELIABILITY
    figures = {name: value if math.isfinite(value) else None for name, value in made.products.summary.items()}
    usable = (mask & UNUSABLE) == 0
    return {
        "calibrated_against": made.reference,
        "flux_unit": "nJy" if made.reference == "catalogue" else "the template's, times its gain",
        "gain": {"science": made.science.gain, "template": made.template.gain},
        "noise": {"science": made.science.noise, "template": made.template.noise},
        "dia_sources": {
            "all": len(sources), "negative": int(sources["isNegative"].sum()),
            "reliable": int(believed.sum()), "reliable_negative": int((believed & sources["isNegative"]).sum()),
        },
        "usable_fraction": float(usable.mean()),
        "figures": figures,
        "stages": seconds,
        "seconds": sum(seconds.values()),
    }  # fmt: skip


def _images(made: Differenced) -> fits.HDUList:
    """IMAGE, VARIANCE and MASK with the WCS; KERNEL, the matching kernel at the centre; PSF, the model's terms."""
    image, subtraction = made.products.difference, made.subtraction
    wcs = fits.Header(image.wcs.to_header())
    names = fits.Header({f"HIERARCH MP_{bit.name}": bit.bit_length() - 1 for bit in Mask})
    middle = [np.array([(n - 1) / 2.0]) for n in image.pixels.shape[::-1]]
    kernel = subtraction.kernel.at(*middle)[0]
    return fits.HDUList([
        fits.PrimaryHDU(),
        fits.ImageHDU(image.pixels.image, wcs, name="IMAGE"),
        fits.ImageHDU(image.pixels.variance, wcs, name="VARIANCE"),
        fits.ImageHDU(image.pixels.mask, wcs + names, name="MASK"),
        fits.ImageHDU(kernel, fits.Header({"CONVOLVD": subtraction.convolved}), name="KERNEL"),
        _psf(image.psf),
    ])  # fmt: skip


def _psf(psf: Psf) -> fits.ImageHDU:
    cards = {"ORDER": psf.order, "NY": psf.shape[0], "NX": psf.shape[1]}
    return fits.ImageHDU(psf.components, fits.Header(cards), name="PSF")
