"""An alert's three cutouts as one picture."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from matplotlib.figure import Figure
from numpy.typing import NDArray

from schemas.errors import BadData

CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")


def pixels(cutout: bytes, what: str) -> NDArray[np.float32]:
    """The image (nJy) of a FITS cutout. Raises BadData naming `what` it is of if there is none in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)  # what it would warn of is refused here
            with fits.open(io.BytesIO(cutout)) as hdus:
                image: NDArray[np.float32] = np.array(hdus[0].data, dtype=np.float32)
    except (OSError, TypeError, ValueError) as error:
        raise BadData(f"{what} is not FITS: {error}") from error
    if image.ndim != 2:
        raise BadData(f"{what} has {image.ndim} axes, not those of an image")
    return image


def write_picture(alert: dict[str, Any], path: Path) -> None:
    """Science, template and difference side by side, each stretched to its own 1 to 99 per cent.

    Raises BadData for a cutout that cannot be read.
    """
    figure = Figure(figsize=(7.5, 2.9), layout="constrained")
    source = alert["diaSource"]
    figure.suptitle(
        f"{alert['diaSourceId']}  {source['band']}  flux {or_dash(source['psfFlux'], '.0f')} nJy  "
        f"S/N {or_dash(source['snr'], '.1f')}"
    )
    for axes, name in zip(figure.subplots(1, 3), CUTOUTS, strict=True):
        axes.set(title=name.removeprefix("cutout"), xticks=[], yticks=[])
        if alert[name] is not None:
            image = pixels(alert[name], f"{name} of alert {alert['diaSourceId']}")
            low, high = np.nanpercentile(image, [1, 99]) if np.isfinite(image).any() else (0.0, 1.0)
            axes.imshow(image, origin="lower", cmap="gray", vmin=low, vmax=high)
    figure.savefig(path, dpi=110)


def or_dash(value: float | None, form: str) -> str:
    """A figure in a format, or a dash where the alert has none."""
    return "-" if value is None else format(value, form)
