import numpy as np
import pytest

from payloads.imaging import background
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskPlane
from tests.payloads.imaging.star_field import observe, sky_of

BAD = int(Mask.BAD)


def reference_cell(image: Image, mask: MaskPlane) -> float:
    """Mean after clipping at 3 sigma about the median, until it stands still."""
    values = np.sort(image[::2][mask[::2] == 0].astype(np.float64))
    kept = values
    for _ in range(5):
        median = np.median(kept)
        sigma = median - np.quantile(kept, 0.1587)
        kept = values[np.abs(values - median) < 3 * sigma]
    return float(kept.mean())


def test_cells_are_clipped_means() -> None:
    field = observe(sky_of((512, 512)), 1)
    field.mask[100:120, :200] = BAD
    level, sigma = background.mesh(field.image, field.mask, BAD, 128)
    for j in range(4):
        for i in range(4):
            cell = np.s_[128 * j : 128 * (j + 1), 128 * i : 128 * (i + 1)]
            assert level[j, i] == pytest.approx(reference_cell(field.image[cell], field.mask[cell]), abs=0.3)
    assert sigma == pytest.approx(np.sqrt(900 + 36), rel=0.06)


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
