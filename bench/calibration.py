"""How well an image is laid upon a catalogue: `pachon difference --refcat` on pairs of which everything is known.

    python -m bench.calibration [SEED ...]

The catalogue: the pair's stars to magnitude 22.5. WCS: rms and largest error against the true one over the image, and
the residual that the summary tells, mas; zero point: its error against the true one, and the scatter told, mmag; then
the fluxes of transients of S/N over 8, in nJy: median bias (%) with its error, and width of the pulls.
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from access.difference.door import difference_files
from access.difference.images import Source
from actors.stage_times import StageTimes
from bench import judge
from schemas.wcs import Wcs, separation_arcsec
from simulators.pairs import SCIENCE, TEMPLATE, Pair, Recipe, make_pair, sky_of, write_pair

Floats = NDArray[np.float64]

NJY_ZERO_POINT = 31.4
FAINTEST = 22.5
KINDS = {
    "plain": {},
    "template wider": {"science": replace(SCIENCE, fwhm_arcsec=0.8), "template": replace(TEMPLATE, fwhm_arcsec=1.1)},
    "crowded": {"stars": 60_000},
    "wide wings": {"science": replace(SCIENCE, beta=2.5)},
}
_GRID, _EDGE = 12, 20.0


@dataclass(frozen=True)
class Figures:
    """Of one pair: see the head of this file."""

    wcs_mas: tuple[float, float, float]
    zero_point_mmag: tuple[float, float]
    flux_percent: tuple[float, float]
    pull: float


def write_references(recipe: Recipe, path: Path) -> None:
    """The sky's stars, nJy, with half a per cent of error."""
    ra, dec, mag = (column[: recipe.stars] for column in sky_of(recipe, np.random.default_rng(recipe.seed)))
    bright = mag < FAINTEST
    flux = 10.0 ** (0.4 * (NJY_ZERO_POINT - mag[bright]))
    Table({"ra": ra[bright], "dec": dec[bright], "r_flux": flux, "r_fluxErr": 0.005 * flux}).write(path)


def wcs_error(made: Wcs, true: Wcs, shape: tuple[int, int]) -> Floats:
    """Mas between the places that two maps give to a grid of pixels."""
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(_EDGE, nx - 1 - _EDGE, _GRID), np.linspace(_EDGE, ny - 1 - _EDGE, _GRID))
    one, other = (wcs.pixel_to_sky(x.ravel(), y.ravel()) for wcs in (made, true))
    return 1000.0 * separation_arcsec(*one, *other)


def measured(pair: Pair, folder: Path) -> Figures:
    """Difference a pair against its catalogue, hold it against the truth."""
    write_pair(pair, folder)
    write_references(pair.recipe, folder / "references.ecsv")
    science, template = (Source(folder / f"{name}.fits") for name in ("science", "template"))
    products = difference_files(science, template, folder / "references.ecsv", StageTimes()).products
    told, njy = products.summary, 10.0 ** (0.4 * (NJY_ZERO_POINT - pair.recipe.science.zero_point))
    off = wcs_error(products.difference.wcs, pair.science_wcs, pair.recipe.shape)
    truth, sources = pair.truth, products.sources
    apart = np.hypot(sources["x"][:, None] - truth["x"], sources["y"][:, None] - truth["y"])
    good = (apart.min(axis=0) < judge.FOUND_PX) & (np.abs(truth["snr"]) > 8.0)
    good &= np.isfinite(sources["psfFlux"][apart.argmin(axis=0)])
    match, flux = sources[apart.argmin(axis=0)[good]], np.asarray(truth["flux"], np.float64)[good] * njy
    part = match["psfFlux"] / flux - 1.0
    return Figures(
        (float(np.sqrt(np.mean(off**2))), float(off.max()), told["wcs_rms_mas"]),
        (1085.7 * np.log(told["zero_point"] / njy), told["zero_point_scatter_mmag"]),
        (100.0 * float(np.median(part)), 125.3 * judge.robust_width(part) / np.sqrt(part.size)),
        judge.robust_width((match["psfFlux"] - flux) / match["psfFluxErr"]),
    )


def main() -> None:
    """Print the table."""
    print(f"{'pair':24s} WCS: rms   max  told  zero point: error scatter   flux %        pull")
    for kind, changes in KINDS.items():
        for seed in [int(text) for text in sys.argv[1:]] or [1, 2]:
            with tempfile.TemporaryDirectory() as folder:
                made = measured(make_pair(Recipe(seed, **changes)), Path(folder))  # type: ignore[arg-type]
            (rms, most, told), (zero, scatter), (bias, error) = made.wcs_mas, made.zero_point_mmag, made.flux_percent
            print(
                f"{f'{kind}, seed {seed}':24s} {rms:8.1f} {most:5.1f} {told:5.1f} {zero:+18.1f} {scatter:7.1f}"
                f"   {bias:+5.2f} +- {error:4.2f} {made.pull:5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
