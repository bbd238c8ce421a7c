"""`pachon difference`: has two images differenced, writes what came of it, says so in a few lines."""

from pathlib import Path

from rich.console import Console

from access.difference.door import difference_files
from access.difference.images import Source
from access.difference.products import write_products
from actors.stage_times import StageTimes
from cluster.allocator import keep_freed_memory


def run(science: Source, template: Source, refcat: Path | None, out: Path) -> int:
    """Do it; the exit code. Raises PachonError for what cannot be read, differenced or written."""
    keep_freed_memory()
    console, times = Console(soft_wrap=True, highlight=False), StageTimes()
    made = difference_files(science, template, refcat, times)
    with times("write"):
        told = write_products(made, out, times.seconds)
    console.print(f"DIASources {told['dia_sources']}")
    console.print("CPU seconds " + ", ".join(f"{name} {spent:.2f}" for name, spent in times.seconds.items()))
    console.print(f"difference.fits, dia_sources.parquet, dia_sources.ecsv, summary.json, difference.png in {out}")
    return 0
