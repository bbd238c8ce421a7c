"""An alert's three cutouts as one picture."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from matplotlib.figure import Figure
from numpy.typing import NDArray

CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")


def pixels(cutout: bytes) -> NDArray[np.float32]:
    """The image (nJy) of a FITS cutout."""
    with fits.open(io.BytesIO(cutout)) as hdus:
        image: NDArray[np.float32] = np.array(hdus[0].data, dtype=np.float32)
    return image


def write_picture(alert: dict[str, Any], path: Path) -> None:
    """Science, template and difference side by side, each stretched to its own 1 to 99 per cent."""
    figure = Figure(figsize=(7.5, 2.9), layout="constrained")
    source = alert["diaSource"]
    figure.suptitle(
        f"{alert['diaSourceId']}  {source['band']}  flux {source['psfFlux']:.0f} nJy  S/N {source['snr']:.1f}"
    )
    for axes, name in zip(figure.subplots(1, 3), CUTOUTS, strict=True):
        axes.set(title=name.removeprefix("cutout"), xticks=[], yticks=[])
        if alert[name] is not None:
            image = pixels(alert[name])
            low, high = np.nanpercentile(image, [1, 99]) if np.isfinite(image).any() else (0.0, 1.0)
            axes.imshow(image, origin="lower", cmap="gray", vmin=low, vmax=high)
    figure.savefig(path, dpi=110)
