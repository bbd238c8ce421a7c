"""Two images of one sky, years apart, with what changed between them: pairs for whatever subtracts images.

    python -m simulators.pairs --seed 1 --out DIR

Everything is written down before a pixel is made: stars and galaxies with positions and magnitudes, a WCS and a
Moffat PSF for each image, and what changed, with the flux that it has in each: transients, stars that vary, bodies that
leave a trail, stars that moved. A galaxy is a cloud of points drawn from an exponential disc, so that it is the same at
any seeing, shift and rotation; a trail is a row of points. Pixels are the PSF at their centres, which is then the PSF
of the image; photons and read noise are drawn for each, cosmic rays for the science image alone.

FITS: the image (ADU) with a TAN WCS, GAIN, RDNOISE, SATURATE, MJD-OBS, EXPTIME and FILTER; `truth.ecsv`: kind, ra, dec
(deg), flux difference (electrons of the science image), S/N of a PSF fit that knows everything, in which the
template's noise counts as it is after matching; a trail's, or a moved star's, length (arcsec) and position angle (deg).
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numba
import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack
from numpy.typing import NDArray

from schemas.image import Image
from schemas.wcs import Wcs, from_tangent, to_tangent

Floats = NDArray[np.float64]

_KNOTS = 24
_MARGIN = 30.0
_TRAIL_POINTS = 64
_SPIKE_PX, _SPIKE_SIGMA, _SPIKED = 25.0, 1.2, 1000.0
"""Of a diffraction spike: its scale along, its width; and the peak, in the sky's noise, of stars that show one."""
_GALAXY_RADIUS_ARCSEC = (0.3, 1.2)
_CENTER = (150.0, 2.0)
_STAR_SLOPE, _GALAXY_SLOPE = 0.25, 0.40
"""Of log10 counts per magnitude, at high latitude."""
_ARCSEC = 3600.0
_LEAST_WING = 0.02
"""Light, in the sky's noise, to which a profile is drawn."""


@dataclass(frozen=True)
class View:
    """How one image was taken. `zero_point`: magnitude of one electron. `shift`: pixels, `rotation`: degrees.

    `sky`: electrons per pixel. `misplaced`: mas by which its WCS is wrong, in x and in y; `jitter`: mas by which each
    star is, at random. `beta`: index of the Moffat profile; `ellipticity`: (a**2 - b**2) / (a**2 + b**2) of it, and the
    direction of its longer axis, degrees from x. `spikes`: part of a star's light in each of the four arms of its
    diffraction cross, which turns with the view.
    """

    fwhm_arcsec: float
    zero_point: float
    sky: float
    read_noise: float
    shift: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    misplaced: float = 0.0
    jitter: float = 0.0
    beta: float = 3.0
    ellipticity: tuple[float, float] = (0.0, 0.0)
    spikes: float = 0.0
    gain: float = 1.6
    saturation: float = 140_000.0


SCIENCE = View(fwhm_arcsec=1.1, zero_point=32.4, sky=1400.0, read_noise=8.0)
TEMPLATE = View(fwhm_arcsec=0.8, zero_point=34.9, sky=14_000.0, read_noise=25.0, shift=(13.4, -7.8), rotation=0.31,
                saturation=1_400_000.0)  # fmt: skip
"""Ten visits' worth of light."""


@dataclass(frozen=True)
class Recipe:
    """What the sky holds and how it is seen. `trail_px`, `moved_px`: how long and how far, at the most."""

    seed: int
    shape: tuple[int, int] = (4096, 4096)
    pixel_arcsec: float = 0.2
    stars: int = 20_000
    galaxies: int = 8_000
    transients: int = 200
    on_galaxies: float = 0.5
    variables: int = 0
    trails: int = 0
    trail_px: float = 16.0
    moved: int = 0
    moved_px: float = 5.0
    rays: int = 0
    brightest: float = 14.0
    faintest: float = 26.0
    snr: tuple[float, float] = (5.0, 50.0)
    science: View = SCIENCE
    template: View = TEMPLATE


@dataclass(frozen=True, eq=False)
class Pair:
    """Images in ADU, their WCS as a header would give it (right but for `misplaced`), and the truth."""

    recipe: Recipe
    science: Image
    template: Image
    science_wcs: Wcs
    template_wcs: Wcs
    truth: Table


def make_pair(recipe: Recipe) -> Pair:
    """Draw the sky, look at it twice."""
    draw = np.random.default_rng(recipe.seed)
    ra, dec, mag = sky_of(recipe, draw)
    places = [_wcs(recipe, view) for view in (recipe.science, recipe.template)]
    truth = _transients(recipe, draw, places[0], ra, dec)
    truth = vstack([truth, *_other_changes(recipe, draw, places[0], ra[: recipe.stars], dec[: recipe.stars], mag)])
    images = []
    for number, (view, wcs) in enumerate(zip((recipe.science, recipe.template), places, strict=True)):
        x, y = wcs.sky_to_pixel(ra, dec)
        if view.jitter:
            off = draw.normal(0.0, view.jitter / 1000.0 / recipe.pixel_arcsec, (2, recipe.stars))
            x[: recipe.stars], y[: recipe.stars] = x[: recipe.stars] + off[0], y[: recipe.stars] + off[1]
        more = _points(truth, number)
        more_x, more_y = wcs.sky_to_pixel(*places[0].pixel_to_sky(more[0], more[1]))
        flux = 10.0 ** (0.4 * (view.zero_point - mag))
        whole, flux = np.append(flux, more[3]), np.append(flux, more[2])
        images.append(_exposed(recipe, view, np.append(x, more_x), np.append(y, more_y), flux, whole, draw))
    images[0] = _struck(recipe, images[0], draw)
    told = [_told(wcs, view, recipe) for wcs, view in zip(places, (recipe.science, recipe.template), strict=True)]
    return Pair(recipe, images[0], images[1], told[0], told[1], truth)


def sky_of(recipe: Recipe, draw: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """RA, dec, magnitude of every point: the stars, then the galaxies' knots."""
    reach = 0.56 * max(recipe.shape) * recipe.pixel_arcsec / _ARCSEC
    xi, eta = draw.uniform(-reach, reach, (2, recipe.stars + recipe.galaxies))
    stars = _magnitudes(draw, recipe.stars, recipe.brightest, recipe.faintest, _STAR_SLOPE)
    first = min(recipe.brightest + 4.0, recipe.faintest)
    galaxies = _magnitudes(draw, recipe.galaxies, first, recipe.faintest, _GALAXY_SLOPE)
    dx, dy = _knots(draw, recipe.galaxies)
    all_xi = np.append(xi[: recipe.stars], (xi[recipe.stars :, None] + dx).ravel())
    all_eta = np.append(eta[: recipe.stars], (eta[recipe.stars :, None] + dy).ravel())
    ra, dec = from_tangent(all_xi, all_eta, _CENTER)
    return ra, dec, np.append(stars, np.repeat(galaxies + 2.5 * np.log10(_KNOTS), _KNOTS))


def _magnitudes(draw: np.random.Generator, n: int, bright: float, faint: float, slope: float) -> Floats:
    low, high = 10.0 ** (slope * bright), 10.0 ** (slope * faint)
    result: Floats = np.log10(draw.uniform(low, high, n)) / slope
    return result


def _knots(draw: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Offsets (deg) of each galaxy's points: an inclined exponential disc."""
    radius = draw.uniform(*_GALAXY_RADIUS_ARCSEC, (n, 1)) / _ARCSEC
    distance = draw.gamma(2.0, 1.0, (n, _KNOTS)) * radius
    angle, turn = draw.uniform(0.0, 2.0 * np.pi, (n, _KNOTS)), draw.uniform(0.0, np.pi, (n, 1))
    u, v = distance * np.cos(angle), distance * np.sin(angle) * draw.uniform(0.3, 1.0, (n, 1))
    return u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)


def _wcs(recipe: Recipe, view: View) -> Wcs:
    step, turn = recipe.pixel_arcsec / _ARCSEC, np.radians(view.rotation)
    cd = step * np.array([[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    ny, nx = recipe.shape
    return Wcs(_CENTER, ((nx - 1) / 2.0 + view.shift[0], (ny - 1) / 2.0 + view.shift[1]), cd)


def _told(wcs: Wcs, view: View, recipe: Recipe) -> Wcs:
    off = view.misplaced / 1000.0 / recipe.pixel_arcsec
    return replace(wcs, crpix=(wcs.crpix[0] + off, wcs.crpix[1] - off))


def _transients(recipe: Recipe, draw: np.random.Generator, wcs: Wcs, ra: Floats, dec: Floats) -> Table:
    """Half of them new in the science image, half gone from it (seen in the template only), anywhere or on galaxies."""
    x, y = _anywhere(recipe, draw, recipe.transients)
    hosts = _hosts_inside(recipe, wcs, ra, dec, _MARGIN)
    moved = np.flatnonzero(draw.uniform(size=len(x)) < recipe.on_galaxies) if len(hosts) else np.zeros(0, np.int64)
    x[moved], y[moved] = hosts[draw.integers(len(hosts), size=len(moved))].T if len(moved) else (x[:0], y[:0])
    snr = _significances(recipe, draw, len(x))
    gone = draw.uniform(size=len(x)) < 0.5
    flux = snr * _noise_of_point(recipe)
    return _told_of("transient", recipe, wcs, x, y, np.where(gone, 0.0, flux), np.where(gone, flux, 0.0))


def _other_changes(
    recipe: Recipe, draw: np.random.Generator, wcs: Wcs, ra: Floats, dec: Floats, mag: Floats
) -> list[Table]:
    """Stars that vary, bodies with a trail, stars that moved: a table of each kind that the recipe has."""
    tables, noise = [], _noise_of_point(recipe)
    if recipe.variables:
        x, y = wcs.sky_to_pixel(ra, dec)
        bright = 10.0 ** (0.4 * (recipe.science.zero_point - mag[: len(x)])) > 2.0 * recipe.snr[1] * noise
        inside = (np.abs(2.0 * x / recipe.shape[1] - 1.0) < 0.95) & (np.abs(2.0 * y / recipe.shape[0] - 1.0) < 0.95)
        chosen = draw.choice(np.flatnonzero(bright & inside), recipe.variables, replace=False)
        more = _significances(recipe, draw, recipe.variables) * noise * draw.choice([-1.0, 1.0], recipe.variables)
        tables.append(_told_of("variable", recipe, wcs, x[chosen], y[chosen], more, np.zeros(len(more))))
    for kind, n, far in (
        ("trail", recipe.trails, (0.0, recipe.trail_px)),
        ("moved", recipe.moved, (1.0, recipe.moved_px)),
    ):
        if n:
            flux = _significances(recipe, draw, n) * noise
            length, angle = draw.uniform(*far, n), draw.uniform(0.0, 2.0 * np.pi, n)
            before = flux if kind == "moved" else np.zeros(n)
            tables.append(_told_of(kind, recipe, wcs, *_anywhere(recipe, draw, n), flux, before, length, angle))
    return tables


def _anywhere(recipe: Recipe, draw: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    ny, nx = recipe.shape
    return draw.uniform(_MARGIN, nx - _MARGIN, n), draw.uniform(_MARGIN, ny - _MARGIN, n)


def _significances(recipe: Recipe, draw: np.random.Generator, n: int) -> Floats:
    return 10.0 ** draw.uniform(np.log10(recipe.snr[0]), np.log10(recipe.snr[1]), n)


def _told_of(
    kind: str,
    recipe: Recipe,
    wcs: Wcs,
    x: Floats,
    y: Floats,
    now: Floats,
    before: Floats,
    length: Floats | None = None,
    angle: Floats | None = None,
) -> Table:
    """The truth of one kind: fluxes in electrons of the science image, lengths in pixels, angles from x, radians."""
    ratio = 10.0 ** (0.4 * (recipe.template.zero_point - recipe.science.zero_point))
    length, angle = (np.zeros(len(x)) if values is None else values for values in (length, angle))
    dx, dy = 0.5 * length * np.cos(angle), 0.5 * length * np.sin(angle)
    ra, dec = wcs.pixel_to_sky(x, y)
    east, north = to_tangent(*wcs.pixel_to_sky(x + dx, y + dy), _CENTER)
    east0, north0 = to_tangent(*wcs.pixel_to_sky(x - dx, y - dy), _CENTER)
    # Of two lobes that overlap, as much is to be seen as lies apart.
    lobes = np.minimum(length * recipe.pixel_arcsec / max(recipe.science.fwhm_arcsec, recipe.template.fwhm_arcsec), 1.0)
    seen = np.where((now != 0) & (before != 0), lobes * now, now - before)
    return Table({
        "kind": np.full(len(x), kind, "U9"), "ra": ra, "dec": dec, "x": x, "y": y, "flux": now - before,
        "snr": seen / _noise_of_point(recipe), "flux_science": now, "flux_template": before * ratio,
        "length": length * recipe.pixel_arcsec,
        "angle": np.mod(np.degrees(np.arctan2(east - east0, north - north0)), 360.0),
        "dx": dx, "dy": dy,
    })  # fmt: skip


def _points(truth: Table, number: int) -> Floats:
    """What changed, as points (4, n): x, y (the science image's), flux, and that of the whole it belongs to."""
    flux = np.asarray(truth["flux_science" if number == 0 else "flux_template"], np.float64)
    x, y, dx, dy = (np.asarray(truth[name], np.float64) for name in ("x", "y", "dx", "dy"))
    trail = np.asarray(truth["kind"]) == "trail"
    side = np.where(trail, 0.0, 1.0 if number == 0 else -1.0)
    still = np.stack([x + side * dx, y + side * dy, flux, flux])[:, ~trail]
    steps = (np.arange(_TRAIL_POINTS) + 0.5) / _TRAIL_POINTS * 2.0 - 1.0
    spread = [(x[trail, None] + dx[trail, None] * steps).ravel(), (y[trail, None] + dy[trail, None] * steps).ravel()]
    whole = np.repeat(flux[trail], _TRAIL_POINTS)
    return np.concatenate([still, [*spread, whole / _TRAIL_POINTS, whole]], axis=1)


def _struck(recipe: Recipe, image: Image, draw: np.random.Generator) -> Image:
    """Cosmic rays: straight tracks one pixel wide, of 500 to 5000 electrons a pixel."""
    ny, nx = recipe.shape
    for _ in range(recipe.rays):
        x, y, angle = draw.uniform(0.0, nx), draw.uniform(0.0, ny), draw.uniform(0.0, 2.0 * np.pi)
        steps = np.arange(draw.integers(2, 25))
        column, row = np.rint(x + steps * np.cos(angle)).astype(int), np.rint(y + steps * np.sin(angle)).astype(int)
        inside = (column >= 0) & (column < nx) & (row >= 0) & (row < ny)
        image[row[inside], column[inside]] += draw.uniform(500.0, 5000.0) / recipe.science.gain
    return image


def _hosts_inside(recipe: Recipe, wcs: Wcs, ra: Floats, dec: Floats, margin: float) -> Floats:
    """Pixels of one knot of each galaxy on the science image, (n, 2)."""
    x, y = wcs.sky_to_pixel(ra[recipe.stars :: _KNOTS], dec[recipe.stars :: _KNOTS])
    ny, nx = recipe.shape
    inside = (x > margin) & (x < nx - margin) & (y > margin) & (y < ny - margin)
    return np.stack([x[inside], y[inside]], axis=1)


def _noise_of_point(recipe: Recipe) -> float:
    """Error (science electrons) of a point source's PSF flux in the difference, on blank sky."""
    science, template = recipe.science, recipe.template
    ratio = 10.0 ** (0.4 * (template.zero_point - science.zero_point))
    per_pixel = science.sky + science.read_noise**2 + (template.sky + template.read_noise**2) / ratio**2
    wide = max(science.fwhm_arcsec, template.fwhm_arcsec) / recipe.pixel_arcsec
    beta = (science if science.fwhm_arcsec > template.fwhm_arcsec else template).beta
    return float(np.sqrt(per_pixel * _noise_area(wide, beta)))


def _noise_area(fwhm_px: float, beta: float) -> float:
    """1 / sum p**2 of a Moffat profile, pixels."""
    core = _core(fwhm_px, beta)
    return float(np.pi * core**2 * (2.0 * beta - 1.0) / (beta - 1.0) ** 2)


def _core(fwhm_px: float, beta: float) -> float:
    return fwhm_px / 2.0 / float(np.sqrt(2.0 ** (1.0 / beta) - 1.0))


def _exposed(
    recipe: Recipe, view: View, x: Floats, y: Floats, flux: Floats, whole: Floats, draw: np.random.Generator
) -> Image:
    """ADU: light, photon noise, read noise, a ceiling. `whole`: how bright a thing is, for how far it is drawn."""
    light = np.full(recipe.shape, view.sky, np.float64)
    core = _core(view.fwhm_arcsec / recipe.pixel_arcsec, view.beta)
    level = _LEAST_WING * np.sqrt(view.sky + view.read_noise**2)
    peak = np.maximum(np.abs(whole) * (view.beta - 1.0) / (np.pi * core**2), level)
    radius = np.clip(core * np.sqrt((peak / level) ** (1.0 / view.beta) - 1.0), 3.0, 600.0)
    _add_moffats(light, x, y, flux, _shape_matrix(core, view.ellipticity), view.beta, radius.astype(np.int64) + 1)
    if view.spikes:
        bright = peak > _SPIKED / _LEAST_WING * level
        turn = np.radians(45.0 + view.rotation)
        _add_spikes(light, x[bright], y[bright], view.spikes * flux[bright], np.cos(turn), np.sin(turn))
    electrons = draw.poisson(np.maximum(light, 0.0)) + draw.normal(0.0, view.read_noise, recipe.shape)
    result: Image = (np.minimum(electrons, view.saturation) / view.gain).astype(np.float32)
    return result


def _shape_matrix(core: float, ellipticity: tuple[float, float]) -> Floats:
    """(3,) of the quadratic form xx, xy, yy that is 1 at the core's radius, of the area of the round one."""
    e, turn = ellipticity[0], np.radians(ellipticity[1])
    stretch = np.sqrt((1.0 + e) / (1.0 - e))
    long, short = 1.0 / (core**2 * stretch), stretch / core**2
    c, s = np.cos(turn), np.sin(turn)
    return np.array([long * c * c + short * s * s, (long - short) * c * s, long * s * s + short * c * c])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_moffats(
    light: Floats, x: Floats, y: Floats, flux: Floats, form: Floats, beta: float, radius: NDArray[np.int64]
) -> None:
    """Moffat profiles of index `beta` at the pixels' centres."""
    ny, nx = light.shape
    area = np.sqrt(form[0] * form[2] - form[1] * form[1])
    for k in range(x.size):
        column, row = int(np.rint(x[k])), int(np.rint(y[k]))
        scale = flux[k] * (beta - 1.0) / np.pi * area
        for j in range(max(0, row - radius[k]), min(ny, row + radius[k] + 1)):
            dy = j - y[k]
            for i in range(max(0, column - radius[k]), min(nx, column + radius[k] + 1)):
                dx = i - x[k]
                shape = 1.0 + form[0] * dx * dx + 2.0 * form[1] * dx * dy + form[2] * dy * dy
                light[j, i] += scale / (shape * shape * shape) if beta == 3.0 else scale * shape**-beta


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_spikes(light: Floats, xs: Floats, ys: Floats, flux: Floats, c: float, s: float) -> None:
    """Crosses whose arms, of `flux` each, fade exponentially along (c, s) and (-s, c)."""
    ny, nx = light.shape
    reach = int(6.0 * _SPIKE_PX)
    norm = 1.0 / (_SPIKE_PX * _SPIKE_SIGMA * np.sqrt(2.0 * np.pi))
    for k in range(xs.size):
        for y in range(max(0, int(ys[k]) - reach), min(ny, int(ys[k]) + reach + 1)):
            for x in range(max(0, int(xs[k]) - reach), min(nx, int(xs[k]) + reach + 1)):
                dx, dy = x - xs[k], y - ys[k]
                along, across = abs(c * dx + s * dy), abs(c * dy - s * dx)
                one = np.exp(-along / _SPIKE_PX - 0.5 * (across / _SPIKE_SIGMA) ** 2)
                other = np.exp(-across / _SPIKE_PX - 0.5 * (along / _SPIKE_SIGMA) ** 2)
                light[y, x] += flux[k] * norm * (one + other)


def write_pair(pair: Pair, out: Path) -> None:
    """`science.fits`, `template.fits`, `truth.ecsv`."""
    out.mkdir(parents=True, exist_ok=True)
    recipe = pair.recipe
    for name, image, wcs, view in (
        ("science", pair.science, pair.science_wcs, recipe.science),
        ("template", pair.template, pair.template_wcs, recipe.template),
    ):
        cards = wcs.to_header() | {
            "GAIN": view.gain, "RDNOISE": view.read_noise, "SATURATE": view.saturation / view.gain * 0.999,
            "MJD-OBS": 61_000.0 if name == "science" else 60_000.0, "EXPTIME": 30.0, "FILTER": "r", "BUNIT": "adu",
        }  # fmt: skip
        fits.PrimaryHDU(image, fits.Header(cards)).writeto(out / f"{name}.fits", overwrite=True)
    pair.truth.write(out / "truth.ecsv", format="ascii.ecsv", overwrite=True)


def main() -> None:
    """Write a pair of the defaults, with another seed."""
    parser = argparse.ArgumentParser(prog="simulators.pairs", description="Two images of one sky, and what changed.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write_pair(make_pair(Recipe(options.seed)), options.out)


if __name__ == "__main__":
    main()
