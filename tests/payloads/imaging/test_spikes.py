"""Spikes of drawn stars are found where they were drawn, and none where none were."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from payloads.imaging import spikes, stars
from payloads.imaging.spikes import Rays
from schemas.image import Image, Mask, MaskedImage, MaskPlane
from tests.payloads.planes import generators, masked_images, shapes

Floats = NDArray[np.float64]

SAT, BAD, HALO = int(Mask.SAT), int(Mask.BAD), int(Mask.HALO)
SHAPE, FWHM, NOISE, FULL = (500, 520), 4.0, 30.0, 1e5
AT = ((120.3, 110.8), (390.1, 150.4), (250.6, 380.2))
ALONE = AT[:1]


def moffat(x: float, y: float, flux: float, axes: float = 1.0, turn: float = 0.0) -> Floats:
    """A profile of index 3; `axes`: how long it is for its width."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    dx, dy = columns - x, rows - y
    u, v = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
    core = FWHM / 2.0 / np.sqrt(2.0 ** (1.0 / 3.0) - 1.0)
    return np.asarray(2.0 * flux / np.pi / core**2 * (1.0 + (u**2 / axes + v**2 * axes) / core**2) ** -3.0)


def arms(x: float, y: float, flux: float, angles: Floats, scale: float = 30.0) -> Floats:
    """Arms that fade exponentially, each with half a per cent of the flux, along lines both ways."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    light = np.zeros(SHAPE)
    for angle in angles:
        along = np.abs((columns - x) * np.cos(angle) + (rows - y) * np.sin(angle))
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        light += 0.005 * flux / (scale * 1.5 * 2.5) * np.exp(-along / scale - 0.5 * (across / 1.5) ** 2)
    return light


def seen(light: Floats, seed: int = 1) -> MaskedImage:
    """With noise, and clipped where it is full."""
    variance = light + NOISE**2
    image = np.random.default_rng(seed).normal(light, np.sqrt(variance))
    mask = np.where(image > FULL, SAT, 0).astype(np.uint16)
    return MaskedImage(np.minimum(image, FULL).astype(np.float32), mask, variance.astype(np.float32))


def find(pixels: MaskedImage, at: tuple[tuple[float, float], ...] = AT) -> Rays:
    x, y = np.array(at, np.float64).reshape(-1, 2).T
    radius = stars.reach(pixels.image, x, y, np.full(len(x), 1.5 * NOISE), 300.0)
    return spikes.find_spikes(pixels, SAT | BAD, x, y, radius, FWHM, 400.0)


def off(angle: Floats, drawn: Floats) -> Floats:
    """Radians between each angle and the nearest drawn line."""
    apart = np.mod(angle[:, None] - drawn + np.pi / 2, np.pi) - np.pi / 2
    return np.asarray(np.abs(apart).min(axis=1))


@pytest.mark.parametrize("lines", [1, 2, 3, 4])
@pytest.mark.parametrize("turn", [0.0, 0.31, 1.2, np.pi / 2, 3.0])
@pytest.mark.parametrize("at", [AT, ALONE])
def test_spikes_at_any_angle_are_found_about_every_star(
    at: tuple[tuple[float, float], ...], turn: float, lines: int
) -> None:
    drawn = turn + np.pi * np.arange(lines) / lines
    light = sum(moffat(x, y, 2e7) + arms(x, y, 2e7, drawn) for x, y in at)
    rays = find(seen(np.asarray(light)), at)
    assert len(rays.x) == 2 * lines * len(at)
    assert off(rays.angle, drawn).max() < np.radians(0.8)
    # The light along the middle is 890 exp(-r / 30), which is 0.4 sigma of the noise at 129 pixels.
    assert np.median(rays.end) == pytest.approx(125.0, abs=25.0)


def test_the_mask_covers_the_spikes_and_little_else() -> None:
    drawn = np.array([0.4, 0.4 + np.pi / 2])
    light = sum(arms(x, y, 2e7, drawn) for x, y in AT)
    pixels = seen(np.asarray(light + sum(moffat(x, y, 2e7) for x, y in AT)))
    rays, mask = find(pixels), np.zeros(SHAPE, np.uint16)
    spikes.paint_rays(mask, HALO, rays)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    distance = np.min([np.hypot(columns - x, rows - y) for x, y in AT], axis=0)
    beyond = distance > rays.begin.max()
    assert (mask[beyond & (light > 1.5 * NOISE)] == HALO).mean() > 0.98
    assert (mask != 0).mean() < 0.06


BARE = {
    "round": [(0.0, 0.0, 2e7, 1.0)],
    "elongated": [(0.0, 0.0, 2e7, 1.3)],
    "much elongated": [(0.0, 0.0, 2e7, 1.6)],
    "with a neighbour": [(0.0, 0.0, 2e7, 1.0), (31.0, 17.0, 1e6, 1.0)],
    "with two neighbours": [(0.0, 0.0, 2e7, 1.0), (30.0, 15.0, 3e6, 1.0), (-20.0, -40.0, 1e6, 1.0)],
    "bright": [(0.0, 0.0, 1e9, 1.0)],
    "none": [],
}
"""What is drawn at each place: offsets, fluxes, and how much longer than wide."""


@pytest.mark.parametrize("at", [AT, ALONE])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", BARE)
def test_stars_without_spikes_have_no_rays(kind: str, seed: int, at: tuple[tuple[float, float], ...]) -> None:
    light = np.zeros(SHAPE)
    for x, y in at:
        for dx, dy, flux, axes in BARE[kind]:
            light += moffat(x + dx, y + dy, flux, axes, 0.7)
    assert len(find(seen(light, seed), at).x) == 0


def test_crowds_are_no_rays() -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        light = np.asarray(sum(moffat(x, y, 2e7) for x, y in AT))
        for x, y, flux in zip(*rng.uniform(0, 500, (2, 250)), 10 ** rng.uniform(3.5, 5.5, 250), strict=True):
            light += moffat(x, y, flux)
        assert len(find(seen(light, seed)).x) == 0


def test_bleed_trails_and_borders_are_no_rays() -> None:
    at = ((3.2, 110.8), (390.1, 498.0), (250.6, 380.2))
    pixels = seen(np.asarray(sum(moffat(x, y, 2e7) for x, y in at)))
    for x, y in at:
        pixels.image[max(round(y) - 80, 0) : round(y) + 80, round(x) - 2 : round(x) + 3] = FULL
        pixels.mask[max(round(y) - 80, 0) : round(y) + 80, round(x) - 2 : round(x) + 3] |= np.uint16(SAT)
    assert len(find(pixels, at).x) == 0


def test_spikes_are_found_by_the_border_and_between_missing_pixels() -> None:
    at, drawn = ((15.2, 110.8), (390.1, 490.0), (250.6, 380.2)), np.array([0.8, 2.4])
    pixels = seen(np.asarray(sum(moffat(x, y, 2e7) + arms(x, y, 2e7, drawn) for x, y in at)))
    pixels.image[np.random.default_rng(5).random(SHAPE) < 0.01] = np.nan
    rays = find(pixels, at)
    assert len(rays.x) >= 8
    assert off(rays.angle, drawn).max() < np.radians(0.8)


def test_a_faint_stars_spikes_are_followed_as_far_as_they_are_seen_only() -> None:
    at, drawn, flux = AT, np.array([0.5, 2.0]), (3e7, 1e7, 2e6)
    light = sum(moffat(x, y, f) + arms(x, y, f, drawn) for (x, y), f in zip(at, flux, strict=True))
    rays = find(seen(np.asarray(light)))
    ends = [np.median(rays.end[rays.x == x]) for x, _ in at if (rays.x == x).any()]
    assert len(ends) >= 2
    assert np.all(np.diff(ends) < 0)


def test_no_star_has_no_ray_and_paints_nothing() -> None:
    rays, mask = find(seen(np.zeros(SHAPE)), ()), np.zeros(SHAPE, np.uint16)
    spikes.paint_rays(mask, HALO, rays)
    assert len(rays.x) == 0
    assert not mask.any()


def reference_contrast(
    pixels: MaskedImage, spoilt: int, x: float, y: float, angle: float, r: float, fwhm: float
) -> float:
    """Three places on a ray and four at its sides, at the distance of the circle's parabola."""
    across = fwhm * np.array([-1 / 3, 0.0, 1 / 3, 1.6, 2.1, -1.6, -2.1])
    along = r - 0.5 * across**2 / r
    columns = np.floor(x + along * np.cos(angle) - across * np.sin(angle) + 0.5).astype(int)
    rows = np.floor(y + along * np.sin(angle) + across * np.cos(angle) + 0.5).astype(int)
    ny, nx = pixels.shape
    if not (np.all((rows >= 0) & (rows < ny)) and np.all((columns >= 0) & (columns < nx))):
        return np.nan
    values = pixels.image[rows, columns].astype(np.float64)
    if not np.isfinite(values).all() or np.any(pixels.mask[rows, columns] & spoilt):
        return np.nan
    flank = values[3:].mean()
    excess = values[:3].mean() - flank - 0.1 * max(flank, 0.0)
    return float(np.clip(excess / np.sqrt(pixels.variance[rows[1], columns[1]]), -2.0, 2.0))


@given(data=st.data(), shape=shapes(1, 60), rng=generators())
@settings(max_examples=25, deadline=None)
def test_votes_are_means_of_the_contrast_along_parts_of_rays(
    data: st.DataObject, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    pixels = data.draw(masked_images(shape, (BAD, SAT), sigma=3.0))
    x, y, fwhm = rng.uniform(-5, shape[1] + 5, 2), rng.uniform(-5, shape[0] + 5, 2), rng.uniform(1.0, 3.0)
    radius = rng.uniform(0, 40, 2)
    votes = spikes._votes(pixels.image, pixels.variance, pixels.mask, BAD, x, y, radius, fwhm)
    assert votes.shape == (16, 240)
    for star, arm, part in zip(rng.integers(0, 2, 40), rng.integers(0, 480, 40), rng.integers(0, 4, 40), strict=True):
        near = max(0.8 * radius[star], 4 * fwhm)
        places = near + max(2.0 * radius[star] - near, 8 * fwhm) / 64 * (16 * part + np.arange(16))
        values = [reference_contrast(pixels, BAD, x[star], y[star], np.pi * arm / 240, r, fwhm) for r in places]
        good = np.isfinite(values)
        expected = np.mean(np.array(values)[good]) if good.sum() > 8 else np.nan
        assert votes[(2 * star + arm // 240) * 4 + part, arm % 240] == pytest.approx(expected, abs=1e-6, nan_ok=True)


@given(data=st.data(), shape=shapes(1, 80), rng=generators())
@settings(max_examples=40, deadline=None)
def test_a_ray_ends_where_the_sum_of_what_it_has_above_a_level_is_largest(
    data: st.DataObject, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    pixels = data.draw(masked_images(shape, (BAD, SAT), sigma=3.0))
    x, y, angle = rng.uniform(0, shape[1]), rng.uniform(0, shape[0]), rng.uniform(0, 2 * np.pi)
    pixels = MaskedImage(pixels.image + ray_of_light(shape, x, y, angle, rng.uniform(0, 60)), *vars_of(pixels))
    begin, fwhm, longest = rng.uniform(4, 10), rng.uniform(1, 3), rng.uniform(5, 70)
    found = spikes._follow(
        pixels.image, pixels.variance, pixels.mask, BAD, np.array([x]), np.array([y]), np.array([begin]),
        np.array([angle]), fwhm, longest,
    )  # fmt: skip
    places = np.arange(begin, max(longest, begin), 1.0)
    gain = np.nan_to_num([reference_contrast(pixels, BAD, x, y, angle, r, fwhm) for r in places]) - 0.4
    total = np.cumsum(gain)
    most = np.maximum.accumulate(np.append(0.0, total))[1:]
    stop = int(np.argmax(np.append(total <= most - 8.0, True)))  # as far as is looked
    told = np.append(total, -np.inf)[: stop + 1]
    expected = places[np.argmax(told)] + 1.0 if told.size and told.max() > 8.0 else 0.0
    assert found[0, 0] == pytest.approx(expected)


def ray_of_light(shape: tuple[int, int], x: float, y: float, angle: float, length: float) -> Image:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    light: Image = np.where((along > 0) & (along < length) & (np.abs(across) < 2), 15.0, 0.0).astype(np.float32)
    return light


def vars_of(pixels: MaskedImage) -> tuple[MaskPlane, Image]:
    return pixels.mask, pixels.variance


@given(shape=shapes(1, 50), rng=generators(), straight=st.booleans())
@settings(max_examples=100, deadline=None)
def test_rays_are_painted_from_their_begin_to_their_end_as_wide_as_they_are(
    shape: tuple[int, int], rng: np.random.Generator, straight: bool
) -> None:
    x, y = rng.uniform(-20, 70, (2, 3))
    angle = rng.integers(0, 5, 3) * np.pi / 2 if straight else rng.uniform(0, 7, 3)
    begin, half = rng.uniform(0, 10, 3), rng.uniform(0, 6, 3)
    end = begin + rng.uniform(0, 40, 3)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    expected = np.zeros(shape, bool)
    for k in range(3):
        along = (columns - x[k]) * np.cos(angle[k]) + (rows - y[k]) * np.sin(angle[k])
        across = (rows - y[k]) * np.cos(angle[k]) - (columns - x[k]) * np.sin(angle[k])
        expected |= (along >= begin[k]) & (along <= end[k]) & (np.abs(across) <= half[k])
    mask = np.full(shape, BAD, np.uint16)
    spikes.paint_rays(mask, HALO, Rays(x, y, angle, begin, end, half))
    np.testing.assert_array_equal(mask, np.where(expected, BAD | HALO, BAD))
