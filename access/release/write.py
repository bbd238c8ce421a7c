"""Makes and writes the report of a release: `summary.json`, `release.html`, and the table on screen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column
from rich.table import Table as Screen

from access.release.curves import overlaid
from access.release.examine import Examined, bands_of
from access.release.figures import band_of, false_objects
from access.release.given import Frame, Reference
from access.release.model import Contents, Missing, Summary
from access.release.page import depth_table, page, repeats_table
from access.release.plots import Shown
from schemas.clock import mjd_from_tai


def report(
    name: str, examined: Examined, frames: Sequence[Frame], reference: Reference | None, missing: Sequence[Missing]
) -> Shown:
    """The report of a release: `examined`: of its patches, joined; `frames`: all of its visit-detectors."""
    summary = Summary(
        name=name, reference=reference.name if reference else "", contents=_contents(examined, frames),
        bands=[band_of(examined, band) for band in bands_of(examined.depth)],
        false=false_objects(examined.held.objects) if reference and reference.complete else [], missing=list(missing),
    )  # fmt: skip
    shown = overlaid(examined.curves, reference) if reference else examined.curves
    return Shown(summary, examined, shown, {frame.visit: mjd_from_tai(frame.midpoint) for frame in frames})


def _contents(examined: Examined, frames: Sequence[Frame]) -> Contents:
    patches = np.unique(examined.depth[["tract", "patch"]])
    return Contents(
        visits=len({frame.visit for frame in frames}), detectors=len({frame.detector for frame in frames}),
        tracts=len(np.unique(patches["tract"])), patches=len(patches), objects=len(examined.held.objects),
        forced_sources=examined.forced, light_curves=examined.light_curves, bands=bands_of(examined.depth),
    )  # fmt: skip


def write(release: Shown, folder: Path) -> None:
    """`summary.json` and `release.html`; each whole or not at all."""
    for name, text in (("summary.json", release.summary.model_dump_json(indent=2)), ("release.html", page(release))):
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)


def show(summary: Summary, console: Console) -> None:
    """The figures a person looks at first, and what was not made."""
    contents = summary.contents
    console.print(
        f"release {summary.name}: {contents.visits} visits, {contents.patches} patches, {contents.objects} objects,"
        f" {contents.forced_sources} forced sources", markup=False, highlight=False,
    )  # fmt: skip
    for head, rows in (depth_table(summary.bands), repeats_table(summary.bands)):
        screen = Screen(*(Column(name, justify="right") for name in head))
        for row in rows:
            screen.add_row(*row)
        console.print(screen)
    for part in summary.missing:
        console.print(f"{part.step} of {part.data_id} not made: {part.why}", markup=False, highlight=False)
