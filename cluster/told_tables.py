"""How `pachon status` and `pachon visit` put what they have to say on a terminal."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster import log_lines
from cluster.log_lines import Line


def plain_table(title: str, *columns: str) -> Table:
    """A table without a box, that can be searched and cut apart. The last column takes what room is left."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1], overflow="fold")
    return table


def add(table: Table, *cells: object) -> None:
    """A row, its text as it is; None for nothing."""
    table.add_row(*("" if cell is None else escape(str(cell)) for cell in cells))


def log_table(title: str, lines: Sequence[Line]) -> Table:
    """Lines of the log."""
    table = plain_table(title, "UTC", "level", "process", "what")
    for line in lines:
        add(table, str(line.get("utc", ""))[11:], line.get("level"), line.get("process"), log_lines.told(line))
    return table


def say(console: Console, text: str) -> None:
    """A line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def seconds(value: float | None) -> str:
    """To a tenth; nothing for None."""
    return "" if value is None else f"{value:.1f}"


def time_of_day(tai: float) -> str:
    """Of a time (TAI s), on the same scale."""
    return time.strftime("%H:%M:%S", time.gmtime(tai)) + f".{int(tai * 10) % 10}"
