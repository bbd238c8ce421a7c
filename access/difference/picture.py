"""Science, matched template and difference side by side, with what was found."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from access.difference.door import Differenced
from payloads.alert_production.score import MIN_RELIABILITY
from schemas.image import Image

_SIDE = 1200
"""Pixels of a panel at the most: larger images are thinned out."""


def draw(made: Differenced, path: Path) -> None:
    """Three panels as PNG; reliable sources ringed, red above and blue below the template, the others dotted."""
    science, difference = made.products.science.pixels, made.products.difference.pixels
    figure = Figure(figsize=(16.0, 6.0), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    images = {"science": science.image, "template, matched": made.subtraction.matched, "difference": difference.image}
    for axes, (title, image) in zip(panels, images.items(), strict=True):
        _show(axes, title, image, difference.image if title == "difference" else science.image)
    _mark(panels[2], made)
    figure.savefig(path, dpi=100)


def _show(axes: Axes, title: str, image: Image, like: Image) -> None:
    step = max(1, max(image.shape) // _SIDE)
    low, high = np.nanpercentile(like[::step, ::step], [2.0, 99.0])
    edges = (-0.5, image.shape[1] - 0.5, -0.5, image.shape[0] - 0.5)
    axes.imshow(image[::step, ::step], origin="lower", extent=edges, cmap="gray", vmin=low, vmax=high)
    axes.set(title=title, xlabel="x (pixels)")


def _mark(axes: Axes, made: Differenced) -> None:
    sources = made.products.sources
    believed = sources["reliability"] >= MIN_RELIABILITY
    for chosen, colour, size in (
        (believed & ~sources["isNegative"], "#e4572e", 90.0),
        (believed & sources["isNegative"], "#2e86de", 90.0),
        (~believed, "#f2c14e", 8.0),
    ):
        x, y = sources["x"][chosen], sources["y"][chosen]
        axes.scatter(x, y, s=size, facecolors="none", edgecolors=colour, linewidths=1.2)
