import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.imaging import background
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskPlane
from tests.payloads.imaging.star_field import observe, sky_of
from tests.payloads.planes import generators

BAD = int(Mask.BAD)


def reference_cell(image: Image, mask: MaskPlane, row_step: int = 2, ranks: int = 0) -> tuple[float, float, float]:
    """Mean after clipping at 3 sigma about the median, until it stands still, a crowd's median; and sigma's limits.

    They are one value, unless sigma is taken `ranks` pixels to either side of the sixth part.
    """
    values = image[::row_step][mask[::row_step] & BAD == 0].astype(np.float64)
    kept = values = values[np.isfinite(values)]
    for _ in range(5):
        median = np.median(kept)
        sigma = median - np.quantile(kept, 0.1587)
        last, kept = kept, values[np.abs(values - median) < 3 * sigma]
    crowded = abs(kept.mean() - median) > 0.3 * sigma
    low, high = (median - np.quantile(last, np.clip(0.1587 + r / last.size, 0, 1)) for r in (ranks, -ranks))
    return float(median if crowded else kept.mean()), float(low), float(high)


def test_cells_are_clipped_means() -> None:
    field = observe(sky_of((512, 512)), 1)
    field.mask[100:120, :200] = BAD
    level, sigma = background.mesh(field.image, field.mask, BAD, 128)
    for j in range(4):
        for i in range(4):
            cell = np.s_[128 * j : 128 * (j + 1), 128 * i : 128 * (i + 1)]
            assert level[j, i] == pytest.approx(reference_cell(field.image[cell], field.mask[cell])[0], abs=0.3)
    assert sigma == pytest.approx(np.sqrt(900 + 36), rel=0.06)


def spoil(image: Image, mask: MaskPlane, rng: np.random.Generator) -> None:
    """Masked pixels that are huge or not finite, a few unmasked ones that are not, and sources in a part."""
    masked = rng.random(image.shape) < 0.2
    mask[masked] = BAD
    image[masked] = rng.choice(np.array([np.nan, np.inf, 1e9, -1e9], np.float32), np.count_nonzero(masked))
    image[rng.random(image.shape) < 0.01] = np.nan
    image[rng.random(image.shape) < 0.05] += 300.0
    mask[~masked] = Mask.CR  # not one of the bits excluded


@given(
    shape=st.tuples(st.integers(20, 90), st.integers(20, 90)), cell=st.integers(24, 100),
    row_step=st.integers(1, 2), rng=generators(),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_cells_of_any_size_are_clipped_means_of_what_is_good_in_them(
    shape: tuple[int, int], cell: int, row_step: int, rng: np.random.Generator
) -> None:
    image, mask = rng.normal(500.0, 10.0, shape).astype(np.float32), np.zeros(shape, np.uint16)
    spoil(image, mask, rng)
    level, sigma = background.mesh(image, mask, BAD, cell, row_step)
    assert level.shape == sigma.shape == tuple(max(1, round(n / cell)) for n in shape)
    rows, columns = (np.linspace(0, n, k + 1).round().astype(int) for n, k in zip(shape, level.shape, strict=True))
    for (j, i), value in np.ndenumerate(level):
        box = np.s_[rows[j] : rows[j + 1], columns[i] : columns[i + 1]]
        expected, low, high = reference_cell(image[box], mask[box], row_step, ranks=2)
        # A pixel more or less at the clip, and the bins' width.
        assert value == pytest.approx(expected, abs=0.6)
        assert low - 0.4 < sigma[j, i] < high + 0.4


def test_the_level_of_a_crowded_cell_is_its_median() -> None:
    rng, shape = np.random.default_rng(7), (256, 256)
    crowd = rng.random(shape) < 0.35
    image = np.where(crowd, rng.normal(120.0, 1.0, shape), rng.normal(100.0, 5.0, shape)).astype(np.float32)
    mask = np.zeros(shape, np.uint16)
    level, _ = background.mesh(image, mask, 0, 256)
    assert level[0, 0] == pytest.approx(reference_cell(image, mask)[0], abs=0.1)
    assert level[0, 0] < image.mean() - 2.0


@pytest.mark.parametrize("good", [6, 8])
def test_a_cell_counts_from_a_tenth_of_its_pixels_on(good: int) -> None:
    rng = np.random.default_rng(8)
    image, mask = rng.normal(50.0, 1.0, (16, 32)).astype(np.float32), np.zeros((16, 32), np.uint16)
    image[:, :16] += 100.0
    mask[:, :16] = BAD
    mask[:good, :4] = 0  # 24 or 32 of 256
    level, _ = background.mesh(image, mask, BAD, 16, 1)
    assert level[0] == pytest.approx([150.0 if good == 8 else 50.0, 50.0], abs=2.0)


@given(shape=st.tuples(st.integers(3, 8), st.integers(3, 8)), value=st.sampled_from([0.0, -3.0, 25_000.0]))
@settings(max_examples=30, deadline=None)
def test_a_small_and_even_image_has_its_own_level(shape: tuple[int, int], value: float) -> None:
    image = np.full(shape, value, np.float32)
    level, _ = background.mesh(image, np.zeros(shape, np.uint16), 0, 256)
    assert level == pytest.approx(np.full((1, 1), value), rel=1e-5, abs=1e-6)


def test_a_sloping_sky_is_taken_off_to_a_fifth_of_an_electron() -> None:
    true = sky_of((1024, 1024))
    field = observe(true, 2)
    level, _ = background.mesh(field.image, field.mask, 0, 256)
    error = field.image - background.subtract(field.image, level) - true
    assert abs(error.mean()) < 0.2
    assert error.std() < 0.5


def test_pixels_beyond_a_source_are_not_drawn_up_by_it() -> None:
    true = sky_of((1024, 1024))
    field = observe(true, 3)
    y, x = np.mgrid[:1024, :1024]
    field.image[(x - 640) ** 2 + (y - 384) ** 2 < 110**2] += 20_000.0  # hides most of a cell
    level, _ = background.mesh(field.image, field.mask, 0, 256)
    assert np.abs(background.render(level, true.shape) - true).max() < 15.0


def test_a_cell_that_stands_out_is_believed_where_all_are() -> None:
    field = observe(np.full((1024, 1024), 500.0, np.float32), 3)
    field.image[256:512, 512:768] += 60.0
    believed, sigma = background.mesh(field.image, field.mask, 0, 256, believe_all=True)
    doubted, same = background.mesh(field.image, field.mask, 0, 256)
    assert believed[1, 2] == pytest.approx(560.0, abs=1.0)
    assert doubted[1, 2] == pytest.approx(500.0, abs=1.0)
    np.testing.assert_array_equal(sigma, same)
    believed[1, 2] = doubted[1, 2]
    np.testing.assert_array_equal(believed, doubted)


def test_masked_cells_take_their_neighbours_level() -> None:
    field = observe(np.full((512, 512), 500.0, np.float32), 4)
    field.mask[:256, :256] = BAD
    field.image[:256, :256] = np.nan
    level, _ = background.mesh(field.image, field.mask, BAD, 128)
    assert level == pytest.approx(500.0, abs=2.0)


def test_an_image_without_good_pixels_has_no_sky() -> None:
    image, mask = np.zeros((256, 256), np.float32), np.full((256, 256), BAD, np.uint16)
    with pytest.raises(BadData, match="no sky"):
        background.mesh(image, mask, BAD, 128)


def test_the_surface_at_points_is_that_of_the_whole_image() -> None:
    rng = np.random.default_rng(5)
    level = rng.normal(900.0, 5.0, (4, 5)).astype(np.float32)
    surface = background.render(level, (200, 300))
    x, y = np.array([0.0, 299.0, 150.4]), np.array([0.0, 199.0, 20.0])
    assert background.at(level, (200, 300), x, y) == pytest.approx(surface[[0, 199, 20], [0, 299, 150]], abs=1e-3)


def test_a_plane_is_rendered_exactly_beyond_the_outer_centres_too() -> None:
    centres = np.arange(6) * 50 + 24.5
    level = (centres[:, None] * 2 + centres * 3).astype(np.float32)
    y, x = np.mgrid[:300, :300]
    assert background.render(level, (300, 300)) == pytest.approx(2.0 * y + 3.0 * x, abs=2e-3)


def test_read_only_images_are_taken() -> None:
    field = observe(sky_of((256, 256)), 6)
    field.image.setflags(write=False)
    field.mask.setflags(write=False)
    level, _ = background.mesh(field.image, field.mask, 0, 128)
    assert background.subtract(field.image, level).flags.writeable
