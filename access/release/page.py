"""The report of a release as one HTML page that needs nothing beside it."""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from access import robust
from access.html import STYLE, in_cards, number, percent, table
from access.release import plots
from access.release.examine import bands_of
from access.release.maps import coverage
from access.release.model import Band, Missing, Repeats, Summary
from access.release.plots import Shown
from schemas.tables import Table

_MOST_ROWS = 200
"""Of a table: how many more there are is said."""
_WIDE = ".wide svg{max-width:100%;height:auto}"

Row = tuple[str, ...]


def page(release: Shown) -> str:
    """The whole page."""
    summary = release.summary
    held_to = f"Held to the {summary.reference}." if summary.reference else "Held to nothing but itself."
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Pachon: {escape(summary.name)}</title>"
        f"<style>{STYLE}{_WIDE}</style><body><h1>Data release {escape(summary.name)}</h1><p>{escape(held_to)}</p>"
        f"{_cards(summary)}{_bands(summary)}{_coverage(release)}{_against(release)}"
        f"<h2>Repeatability</h2>{_figures(plots.REPEATED, release)}{_curves(release)}{_missing(summary.missing)}"
        "</body></html>"
    )


def _figures(shown: Sequence[Callable[[Shown], str]], release: Shown) -> str:
    return "<div class=plots>" + "".join(f"<figure>{plot(release)}</figure>" for plot in shown) + "</div>"


def _cards(summary: Summary) -> str:
    contents = summary.contents
    names = ("visits", "detectors", "tracts", "patches", "objects", "forced_sources", "light_curves")
    cards = [(name.replace("_", " "), f"{getattr(contents, name):,}", True) for name in names]
    cards += [("bands", "".join(contents.bands) or "none", bool(contents.bands))]
    return in_cards([*cards, ("not made", str(len(summary.missing)), not summary.missing)])


def _bands(summary: Summary) -> str:
    depth, repeats = depth_table(summary.bands), repeats_table(summary.bands)
    return f"<h2>Bands</h2>{table(*depth)}<p>{_OF_DEPTH}</p>{table(*repeats)}<p>{_OF_REPEATS}</p>"


_OF_DEPTH = (
    "50 %: the magnitude where half are found, with S/N 5 in the band. RA, dec: median offset of bright stars; rms,"
    " width (robust): of one coordinate about it. Stars (PSF flux), galaxies (Kron flux): mmag too faint, median of S/N"
    " 100 and more."
)
_OF_REPEATS = (
    "PA1, PF1, AM1 as in the LSST SRD (LPM-17), of stars with S/N 200 (100 for places) in a visit: scatter of a star's"
    " magnitudes, share of fluxes off by more than 15 mmag (22.5 in u, z and y), scatter of distances of 5 arcmin."
    " chi2: a degree of freedom, of constant stars; pulls: width of (flux - mean) / error. Zero points: scatter of"
    " visit-detectors. Forced: mean forced fluxes of bright stars, mmag too faint."
)


def depth_table(bands: Sequence[Band]) -> tuple[Row, list[Row]]:
    """Head and rows, one for each band: how deep, how complete, how right."""
    head = (
        "band", "visits", "objects", "5 sigma", "stars 50 %", "galaxies 50 %", "RA, dec mas", "rms, width mas",
        "stars mmag", "galaxies mmag",
    )  # fmt: skip
    return head, [_depth_cells(band) for band in bands]


def _depth_cells(band: Band) -> Row:
    return (
        band.band, str(band.visits), str(band.objects), number(band.depth_mag), number(band.stars_50_mag),
        number(band.galaxies_50_mag), f"{number(band.ra_mas, digits=1)}, {number(band.dec_mas, digits=1)}",
        f"{number(band.position_rms_mas, digits=1)}, {number(band.position_width_mas, digits=1)}",
        number(band.star_bias_mmag, digits=1), number(band.galaxy_bias_mmag, digits=0),
    )  # fmt: skip


def repeats_table(bands: Sequence[Band]) -> tuple[Row, list[Row]]:
    """Head and rows, one for each band: how well it repeats."""
    head = ("band", "stars", "PA1 mmag", "PF1", "chi2", "pulls", "zero points mmag", "forced mmag", "pairs", "AM1 mas")
    return head, [_repeats_cells(band.band, band.repeats) for band in bands]


def _repeats_cells(band: str, again: Repeats) -> Row:
    return (
        band, str(again.stars), number(again.pa1_mmag, digits=1), percent(again.pf1), number(again.chi2_dof),
        number(again.pull_width), number(again.zero_point_mmag, digits=1), number(again.forced_bias_mmag, digits=1),
        str(again.pairs), number(again.am1_mas, digits=1),
    )  # fmt: skip


def _coverage(release: Shown) -> str:
    depth = release.examined.depth
    return f"<h2>Coverage</h2><div class=wide>{coverage(depth)}</div>{_tracts(depth)}"


def _tracts(depth: Table) -> str:
    """Each tract's patches, and the median visits and depth of each band."""
    bands = bands_of(depth)
    rows = [(str(tract), *_tract_cells(depth[depth["tract"] == tract], bands)) for tract in np.unique(depth["tract"])]
    return _long(("tract", "patches", *(f"{band}: visits, 5 sigma" for band in bands)), rows)


def _tract_cells(rows: Table, bands: Sequence[str]) -> Row:
    own = [rows[rows["band"] == band] for band in bands]
    depth = (number(robust.median(r["depth_mag"][np.isfinite(r["depth_mag"])])) for r in own)
    visits = (number(robust.median(r["visits"]), digits=0) for r in own)
    return str(len(np.unique(rows["patch"]))), *map(", ".join, zip(visits, depth, strict=True))


def _against(release: Shown) -> str:
    name = release.summary.reference
    if not name:
        return ""
    return f"<h2>Against the {escape(name)}</h2>" + _figures(plots.AGAINST_REFERENCE, release)


def _curves(release: Shown) -> str:
    if not release.curves:
        return ""
    rings = " Rings: the truth at those moments." if release.summary.reference else ""
    text = f"<p>Of the objects that vary most, the flux less its mean in each band.{rings}</p>"
    return f"<h2>Light curves</h2>{text}<div class=wide>{plots.light_curves(release)}</div>"


def _missing(missing: Sequence[Missing]) -> str:
    if not missing:
        return "<h2>Not made</h2><p>Nothing: all that was to be made is there.</p>"
    rows = [(part.step, part.data_id, part.why) for part in missing]
    return "<h2>Not made</h2>" + _long(("step", "of", "why"), rows, "text")


def _long(head: Row, rows: Sequence[Row], kind: str = "figures") -> str:
    more = f"<p>And {len(rows) - _MOST_ROWS} more.</p>" if len(rows) > _MOST_ROWS else ""
    return table(head, rows[:_MOST_ROWS], kind) + more
