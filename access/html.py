"""Parts of pages that need nothing beside them."""

from collections.abc import Sequence
from html import escape

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:1240px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin-top:2rem}
.cards{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0}
.card{border:1px solid #d5dae1;border-radius:8px;padding:.6rem 1rem;min-width:8.5rem}
.card b{display:block;font-size:1.45rem} .bad{color:#c5221f} .good{color:#137333}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:1rem}
.plots figure{margin:0} .plots svg{width:100%;height:auto}
table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{padding:.25rem .45rem;text-align:right;border-bottom:1px solid #e4e7eb}
th:first-child,td:first-child,.text th,.text td{text-align:left}
th,td{white-space:nowrap}
.text td{vertical-align:top} .text td:last-child{white-space:normal;overflow-wrap:anywhere}
"""


def in_cards(figures: Sequence[tuple[str, str, bool]]) -> str:
    """Figures by name in large print, each good or not."""
    body = "".join(
        f"<div class=card>{escape(name)}<b class={'good' if good else 'bad'}>{escape(value)}</b></div>"
        for name, value, good in figures
    )
    return f"<div class=cards>{body}</div>"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], kind: str = "figures") -> str:
    """`kind`: of what, figures or text."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table class={kind}><tr>{top}</tr>{body}</table>"


def number(value: float | None, unit: str = "", digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent, or a dash."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"
