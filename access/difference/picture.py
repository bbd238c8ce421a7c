"""Science, matched template and difference side by side, with what was found."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageDraw

from access.difference.door import Differenced
from payloads.alert_production.score import MIN_RELIABILITY
from schemas.image import Image

_SIDE, _GAP, _TITLE = 800, 12, 24
"""Pixels: a panel's longer side at the most, beyond which images are thinned out; between panels; above them."""
_RISEN, _FALLEN, _DOUBTED = "#e4572e", "#2e86de", "#f2c14e"


def draw(made: Differenced, path: Path) -> None:
    """Three panels as PNG, y upwards; reliable sources ringed, red above and blue below the template, others dotted."""
    science, difference = made.products.science.pixels.image, made.products.difference.pixels.image
    step = max(1, -(-max(science.shape) // _SIDE))
    matched = made.subtraction.matched
    panels = [_grey(science, science, step), _grey(matched, science, step), _grey(difference, difference, step)]
    ny, nx = panels[0].shape
    page = Pictures.new("RGB", (3 * nx + 4 * _GAP, ny + _TITLE + _GAP), "white")
    pen = ImageDraw.Draw(page)
    for k, (title, panel) in enumerate(zip(("science", "template, matched", "difference"), panels, strict=True)):
        left = _GAP + k * (nx + _GAP)
        page.paste(Pictures.fromarray(panel), (left, _TITLE))
        pen.text((left, 6), title, fill="black")
    _mark(pen, made, 2 * nx + 3 * _GAP, _TITLE + ny - 1, step)
    page.save(path)


def _grey(image: Image, like: Image, step: int) -> NDArray[np.uint8]:
    """Every `step`-th pixel, from the 2 % to the 99 % of another image black to white; white where there are none."""
    low, high = np.nanpercentile(like[::step, ::step], [2.0, 99.0])
    values = (image[::-step, ::step] - low) / max(float(high - low), 1e-30)
    result: NDArray[np.uint8] = np.nan_to_num(np.clip(255.0 * values, 0.0, 255.0), nan=255.0).astype(np.uint8)
    return result


def _mark(pen: ImageDraw.ImageDraw, made: Differenced, left: int, bottom: int, step: int) -> None:
    for source in made.products.sources:
        believed = source["reliability"] >= MIN_RELIABILITY
        colour = (_FALLEN if source["isNegative"] else _RISEN) if believed else _DOUBTED
        radius = 6 if believed else 2
        x, y = left + float(source["x"]) / step, bottom - float(source["y"]) / step
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=2)
