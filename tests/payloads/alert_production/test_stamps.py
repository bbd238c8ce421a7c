import numpy as np
import pytest

from payloads.alert_production.stamps import cutout, make_stamps
from payloads.alert_production.subtract import Subtraction
from schemas.image import Mask, MaskedImage, Stamp
from schemas.tables import Table, empty
from tests.payloads.alert_production.pairs import Pair


@pytest.fixture(scope="module")
def made(pair: Pair, subtraction: Subtraction, sources: Table) -> tuple[Stamp, ...]:
    return make_stamps(sources, pair.science, subtraction.warped, subtraction.difference)


def test_there_is_a_stamp_a_source_as_large_as_its_box_within_limits(made: tuple[Stamp, ...], sources: Table) -> None:
    assert [s.difference.shape[0] for s in made] == list(np.clip(sources["bboxSize"], 30, 102))


def test_the_three_images_are_cut_about_the_source(
    made: tuple[Stamp, ...], pair: Pair, subtraction: Subtraction, sources: Table
) -> None:
    stamp, row = made[7], sources[7]
    half = stamp.science.shape[0] // 2
    at = round(float(row["y"])), round(float(row["x"]))
    assert stamp.science.image[half, half] == pair.science.pixels.image[at]
    assert stamp.template.image[half, half] == subtraction.warped.pixels.image[at]
    assert stamp.difference.image[half, half] == subtraction.difference.pixels.image[at]
    assert stamp.difference.variance[half, half] == subtraction.difference.pixels.variance[at]


def test_a_stamps_wcs_finds_its_source(made: tuple[Stamp, ...], sources: Table) -> None:
    for stamp, row in zip(made, sources, strict=True):
        x, y = stamp.wcs.sky_to_pixel(row["ra"], row["dec"])
        assert abs(x - stamp.science.shape[0] // 2) <= 0.51
        assert abs(y - stamp.science.shape[0] // 2) <= 0.51


def test_each_image_comes_with_its_psf(made: tuple[Stamp, ...], pair: Pair, sources: Table) -> None:
    expected = pair.science.psf.at(float(sources["x"][3]), float(sources["y"][3]))
    np.testing.assert_allclose(made[3].psf_science, expected, atol=1e-6)
    for psf in (made[3].psf_template, made[3].psf_difference):
        assert psf.sum() == pytest.approx(1.0, abs=1e-5)


def test_beyond_the_image_there_is_no_data() -> None:
    pixels = MaskedImage(*(np.ones((50, 60), t) for t in (np.float32, np.uint16, np.float32)))
    cut = cutout(pixels, -10, 35, 30)
    inside = np.zeros((30, 30), bool)
    inside[:15, 10:] = True
    assert np.isnan(cut.image[~inside]).all()
    assert (cut.mask[~inside] == Mask.NO_DATA).all()
    assert (cut.image[inside] == 1).all()
    assert np.isnan(cutout(pixels, 200, 200, 30).image).all()


def test_no_sources_make_no_stamps(pair: Pair, subtraction: Subtraction) -> None:
    assert make_stamps(empty("DiaSource", 0), pair.science, subtraction.warped, subtraction.difference) == ()
