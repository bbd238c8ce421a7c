"""The files of a release's report, its page and its light curves."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from access.release import maps, plots
from access.release.examine import DEPTH_DTYPE, joined
from access.release.model import Missing, Summary
from access.release.page import page
from access.release.plots import Shown
from access.release.write import report, show, write
from schemas import skymap
from schemas.tables import Table
from tests.access.release.small_release import MJD, PATCH, SmallRelease, release, stars
from tests.access.seen import Seen

SCRIPT = "<script>alert('x')</script>"
PLOTS = len(plots.AGAINST_REFERENCE) + len(plots.REPEATED)


def shown(small: SmallRelease, *missing: Missing, held: bool = True) -> Shown:
    return report("week", small.examined(held=held), small.frames, small.reference if held else None, missing)


def rich_release() -> SmallRelease:
    """Stars, galaxies, variables and transients in two bands and six nights."""
    kinds = ["star"] * 300 + ["galaxy"] * 300 + ["variable"] * 6 + ["transient"] * 6
    mags = np.concatenate([np.tile(np.linspace(17.0, 25.0, 300), 2), np.full(12, 19.0)])
    small = release(kinds, mags, bands="ri", visits=6)
    varying, small.at = small.sources["id"] > 600, changing
    for frame in small.frames:
        now = changing(small.sources, frame.band, MJD + (frame.midpoint - small.frames[0].midpoint) / 86400.0)
        rows = small.forced["visit"] == frame.visit
        small.forced["psfFlux"][np.flatnonzero(rows)[varying]] += (now["flux"] - small.sources["flux"])[varying]
    return small


def changing(sources: Table, _band: str, mjd: float) -> Table:
    """The sources at a time: the last twelve grow by a tenth a day."""
    now = sources.copy()
    now["flux"][sources["id"] > 600] *= 1.0 + 0.1 * (mjd - MJD)
    now["mean_flux"][now["kind"] == "transient"] = 0.0
    return now


@pytest.fixture(scope="module")
def rich() -> Shown:
    return shown(rich_release())


@pytest.fixture(scope="module")
def written(rich: Shown, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write(rich, folder)
    return folder


@pytest.fixture(scope="module")
def unheld() -> Shown:
    return shown(rich_release(), held=False)


def test_the_page_has_its_plots_inside_and_needs_nothing_beside_it(written: Path) -> None:
    seen = Seen((written / "release.html").read_text("utf-8"))
    assert seen.loaded == []
    assert seen.tags["figure"] == PLOTS
    assert seen.tags["svg"] == PLOTS + 2  # the map, and the light curves
    for title in ("Bands", "Coverage", "Against the truth", "Repeatability", "Light curves", "Not made"):
        assert title in seen.text
    assert "Nothing: all that was to be made is there." in seen.text


def test_without_a_reference_there_is_no_truth_on_the_page(unheld: Shown) -> None:
    seen = Seen(page(unheld))
    assert unheld.summary.reference == ""
    assert unheld.summary.false == []
    assert "Against" not in seen.text
    assert "truth" not in seen.text
    assert seen.tags["figure"] == len(plots.REPEATED)


def test_what_varies_is_shown_with_what_it_truly_did(rich: Shown) -> None:
    curves = rich.curves
    assert [curve.kind for curve in curves] == ["transient"] * 4 + ["variable"] * 4
    for curve in curves:
        assert len(curve.points) == 12
        assert curve.points["flux"] == pytest.approx(curve.points["true"], abs=600.0)
        assert np.ptp(curve.points["true"]) > 0.4 * curve.points["true"].min()


def test_a_transient_before_it_began_is_dark() -> None:
    small = rich_release()
    since = small.at
    small.at = lambda sky, band, mjd: since(sky, band, mjd) if mjd > MJD + 2.5 else since(sky, band, mjd)[:606]
    curves = [curve for curve in shown(small).curves if curve.kind == "transient"]
    assert len(curves) == 4
    for curve in curves:
        before = curve.points["mjd"] < MJD + 2.5
        assert (curve.points["true"][before] == 0.0).all()
        assert (curve.points["true"][~before] > 0.0).all()


def test_without_a_reference_the_most_variable_are_shown(unheld: Shown) -> None:
    curves = unheld.curves
    assert len(curves) == 8
    assert {curve.object_id for curve in curves} <= set(range(1601, 1613))
    assert all(np.isnan(curve.points["true"]).all() for curve in curves)


def test_the_summary_says_what_was_released(rich: Shown, written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == ["release.html", "summary.json"]
    told = json.loads((written / "summary.json").read_text("utf-8"))
    assert told["contents"] == {
        "visits": 12, "detectors": 1, "tracts": 1, "patches": 1, "objects": 612, "forced_sources": 612 * 12,
        "light_curves": 0, "bands": ["r", "i"],
    }  # fmt: skip
    assert [band["band"] for band in told["bands"]] == ["r", "i"]
    assert Summary.model_validate(told) == rich.summary


def test_patches_are_joined() -> None:
    small = stars(np.full(100, 19.0), visits=3)
    one = small.examined()
    both = joined([one, one])
    assert len(both.held.sources) == 2 * len(one.held.sources)
    assert both.forced == 600
    assert report("", both, small.frames, small.reference, ()).summary.bands[0].stars[0].true == 200


@pytest.mark.parametrize(
    ("what", "held"),
    [("no object", True), ("no star", True), ("one visit", False), ("nothing measured", True)],
)
def test_what_is_poor_has_a_page_too(what: str, held: bool, tmp_path: Path) -> None:
    small = release(["galaxy"] * 40, np.full(40, 21.0), bands="g") if what == "no star" else stars(np.full(40, 21.0))
    if what == "no object":
        small.objects, small.forced = small.objects[:0], small.forced[:0]
    if what == "nothing measured":
        small.objects["r_psfFlux"] = small.forced["psfFlux"] = np.nan
    write(shown(small, held=held), tmp_path)
    told = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert told["contents"]["patches"] == 1
    assert told["contents"]["objects"] == (0 if what == "no object" else 40)
    assert told["bands"][0]["repeats"]["pa1_mmag"] is None
    figures = len(plots.REPEATED) + held * len(plots.AGAINST_REFERENCE)
    assert Seen((tmp_path / "release.html").read_text("utf-8")).tags["svg"] == figures + 1


def test_a_release_without_a_patch_in_any_band_has_a_page(tmp_path: Path) -> None:
    small = stars(np.full(4, 21.0))
    small.visits = 0
    write(shown(small), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text("utf-8"))["bands"] == []


def test_what_was_not_made_is_named_on_page_and_screen_letter_for_letter() -> None:
    lacking = Missing(step="warp", data_id="visit=1, patch=[red]2", why=SCRIPT)
    told, screen = shown(stars(np.full(40, 21.0)), lacking), io.StringIO()
    seen = Seen(page(told))
    assert seen.tags["script"] == 0
    assert SCRIPT in seen.text
    show(told.summary, Console(file=screen, width=200))
    assert f"warp of visit=1, patch=[red]2 not made: {SCRIPT}" in screen.getvalue()


def test_the_screen_shows_a_row_for_each_band(rich: Shown) -> None:
    screen = io.StringIO()
    show(rich.summary, Console(file=screen, width=120))
    text = screen.getvalue()
    assert "release week: 12 visits, 1 patches, 612 objects, 7344 forced sources" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["r", "i", "r", "i"]
    assert rows[0][3] == "26.40"
    assert rows[2][3:6] == ["0.0 %", "0.95", "0.97"]


def test_a_map_over_ra_zero_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    depth, figure = np.zeros(2, DEPTH_DTYPE), Figure()
    depth["tract"], depth["patch"] = [skymap.tract_at(ra, 0.0).id for ra in (0.3, 359.7)], PATCH
    depth["band"], depth["visits"], depth["depth_mag"] = "r", 3, np.nan
    monkeypatch.setattr(maps, "panels", lambda _size, draw: draw(figure))
    maps.coverage(depth)
    visits, unknown = figure.axes[0], figure.axes[-1]
    left, right = visits.get_xlim()
    assert 1.0 < left - right < 3.0  # degrees, east to the left
    assert [text.get_text() for text in unknown.texts] == ["unknown"]
