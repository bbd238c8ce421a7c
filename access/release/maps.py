"""Where on the sky a release is, and how deep."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from access.release.examine import bands_of
from access.svg import SECOND, panels
from schemas import skymap
from schemas.skymap import Tract
from schemas.tables import Table

_ACROSS = 4
Floats = NDArray[np.float64]


def coverage(depth: Table) -> str:
    """Two maps of each band of DEPTH_DTYPE rows: how many visits a patch has, and its 5 sigma depth. "" of nothing."""
    bands = bands_of(depth)
    if not bands:
        return ""
    down = -(-2 * len(bands) // _ACROSS)

    def draw(figure: Figure) -> None:
        for number, band in enumerate(bands):
            rows = depth[depth["band"] == band]
            for place, (name, label) in enumerate((("visits", "visits"), ("depth_mag", "5 sigma depth, AB"))):
                axes = figure.add_subplot(down, min(_ACROSS, 2 * len(bands)), 2 * number + place + 1)
                _map(figure, axes, rows, name)
                axes.set_title(f"{band}: {label}", fontsize=9)

    return panels((2.9 * min(_ACROSS, 2 * len(bands)), 2.7 * down), draw)


def _map(figure: Figure, axes: Axes, rows: Table, name: str) -> None:
    rows = rows[np.isfinite(rows[name])]
    if not len(rows):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "unknown", transform=axes.transAxes, ha="center", color=SECOND)
        return
    corners = np.array([_corners(int(row["tract"]), int(row["patch"])) for row in rows])
    corners[..., 0] = _beside(corners[..., 0], corners[0, 0, 0])
    shapes = PolyCollection(
        list(corners), array=rows[name].astype(np.float64), cmap="viridis", edgecolors="face", linewidths=1
    )
    low, high = float(rows[name].min()), float(rows[name].max())
    rim = 0.1 if high - low < 0.2 else 0.0  # a map of one value has a scale, too
    shapes.set_clim(low - rim, high + rim)
    axes.add_collection(shapes)
    axes.autoscale_view()
    axes.invert_xaxis()
    axes.set_aspect(1.0 / max(np.cos(np.radians(corners[..., 1].mean())), 0.05), adjustable="datalim")
    axes.set_xlabel("RA, deg", fontsize=8)
    axes.set_ylabel("dec, deg", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.locator_params(nbins=4)
    axes.xaxis.set_major_formatter(lambda ra, _: f"{ra % 360.0:.6g}")
    axes.yaxis.set_major_formatter(lambda dec, _: f"{dec:.6g}")
    figure.colorbar(shapes, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)


def _corners(tract: int, patch: int) -> Floats:
    """RA, dec (deg) of a patch's corners (4, 2)."""
    box = Tract.patch_box(patch)
    x, y = np.array([(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)], np.float64).T
    return np.transpose(skymap.tract(tract).wcs.pixel_to_sky(x, y))


def _beside(ra: Floats, first: float) -> Floats:
    """RA without the jump at 0."""
    return first + np.mod(ra - first + 180.0, 360.0) - 180.0
