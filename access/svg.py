"""Plots as SVG text, to stand inside a page."""

import io
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, ACCENT, SECOND, WARN = "#1f2933", "#1967d2", "#b06000", "#c5221f"


def svg(draw: Callable[[Axes], None]) -> str:
    """One plot."""
    return panels((5.4, 3.6), lambda figure: draw(figure.add_subplot()))


def panels(size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """A figure of several plots; `size`: inches."""
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue().partition("<svg")[1] + out.getvalue().partition("<svg")[2]
