import numpy as np
import pytest
from scipy.spatial import cKDTree

from payloads.imaging import background
from payloads.imaging.characterize import Characterized, characterize
from payloads.imaging.stars import StarFlag
from schemas.errors import BadData
from schemas.image import Mask, MaskedImage
from tests.payloads.imaging.star_field import Profile, StarField, draw, observe, sky_of, star_field

SHAPE = (1024, 1024)


@pytest.fixture(scope="module")
def field() -> StarField:
    return star_field(41, stars=260)


@pytest.fixture(scope="module")
def known(field: StarField) -> Characterized:
    return characterize(field.observed)


def test_the_sky_is_off(field: StarField, known: Characterized) -> None:
    left = field.observed.image - known.pixels.image - field.sky
    assert abs(left.mean()) < 0.5
    assert np.abs(left).max() < 4.0
    np.testing.assert_allclose(background.render(known.background, SHAPE), field.sky, atol=4.0)


def test_star_fluxes_are_true_to_half_a_percent(field: StarField, known: Characterized) -> None:
    stars = known.stars[(known.stars["flags"] & ~np.uint16(StarFlag.PSF_USED)) == 0]
    distance, nearest = cKDTree(np.column_stack([field.x, field.y])).query(np.column_stack([stars["x"], stars["y"]]))
    half = known.psf.components.shape[1] // 2
    enclosed = field.profile.enclosed(field.x[nearest], field.y[nearest], half)
    ratio = stars["flux"] / (field.flux[nearest] * enclosed)
    bright = stars["flux"] > 100 * stars["flux_err"]
    assert bright.sum() > 60
    assert np.all(distance[bright] < 0.1)
    assert abs(np.median(ratio[bright]) - 1) < 0.003
    assert np.median(stars["chi2"][bright]) == pytest.approx(1.0, abs=0.08)


def test_the_width_is_that_of_the_stars(field: StarField, known: Characterized) -> None:
    # The pixels of the drawing widen it by some 2 per cent.
    assert known.fwhm_px == pytest.approx(field.profile.fwhm * 1.02, rel=0.02)


@pytest.mark.parametrize(("fwhm", "half"), [(3.0, 12), (4.6, 15), (4.9, 15), (6.3, 19), (8.5, 24), (11.0, 24)])
def test_the_psfs_stamp_is_as_large_as_the_seeing_asks(fwhm: float, half: int) -> None:
    seen = star_field(44, stars=90, shape=(640, 640), fwhm=fwhm, log_flux=(4.3, 5.7))
    found = characterize(seen.observed)
    assert found.psf.components.shape[1:] == (2 * half + 1, 2 * half + 1)
    assert found.fwhm_px == pytest.approx(fwhm, rel=0.05)


def test_most_psf_stars_are_alone(known: Characterized) -> None:
    used = known.stars["flags"] & StarFlag.PSF_USED != 0
    assert 40 < used.sum() < 300
    assert not np.any(known.stars["flags"][used] & (StarFlag.CROWDED | StarFlag.MASKED))


def galaxies(image: np.ndarray, seed: int, count: int) -> None:
    profile, rng = Profile(SHAPE, fwhm=7.0, variation=0.0), np.random.default_rng(seed)
    draw(
        image,
        profile,
        rng.uniform(40, 980, count),
        rng.uniform(40, 980, count),
        10 ** rng.uniform(4, 5.5, count),
    )


def test_galaxies_make_no_psf(field: StarField, known: Characterized) -> None:
    clean = field.clean.copy()
    galaxies(clean, 5, 120)
    among = characterize(observe(clean, 6))
    assert among.fwhm_px == pytest.approx(known.fwhm_px, rel=0.01)
    wide = among.stars["fwhm"] > 1.4 * np.median(known.stars["fwhm"])
    assert wide.sum() > 40
    assert np.all(among.stars["flags"][wide] & (StarFlag.NOT_STELLAR | StarFlag.CROWDED | StarFlag.MASKED))


def saturated_field() -> MaskedImage:
    """A field with a star of 3e7 electrons, clipped at 1.2e5."""
    field = star_field(42, stars=150)
    clean = field.clean.copy()
    draw(clean, field.profile, np.array([400.3]), np.array([600.2]), np.array([3e7]), half=350)
    observed = observe(clean, 43)
    full = observed.image > 1.2e5
    observed.image[full] = 1.2e5
    observed.mask[full] = Mask.SAT
    observed.mask[560:640, 400] = Mask.SAT
    return observed


def test_the_halo_of_a_saturated_star_is_masked_to_where_it_is_faint() -> None:
    made = characterize(saturated_field())
    halo = made.pixels.mask & Mask.HALO != 0
    rows, columns = np.mgrid[:1024, :1024]
    distance = np.hypot(columns - 400.3, rows - 600.2)
    profile = Profile(SHAPE)
    core = 2.0 / np.sqrt(2 ** (1 / 3) - 1)
    brightness = 3e7 * (profile.beta - 1) / (np.pi * core**2) * (1 + (distance / core) ** 2) ** -3.0
    assert np.all(halo[brightness > 1.5 * 1.3 * 31])
    assert not np.any(halo[(brightness < 10) & (distance < 200)])


def test_the_spikes_of_a_saturated_star_are_masked_beyond_its_halo_and_others_stars_are_not() -> None:
    field, bare = saturated_field(), characterize(saturated_field())
    rows, columns = np.mgrid[:1024, :1024]
    turn = np.radians(35.0)
    u = (columns - 400.3) * np.cos(turn) + (rows - 600.2) * np.sin(turn)
    v = (rows - 600.2) * np.cos(turn) - (columns - 400.3) * np.sin(turn)
    along, across = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    spikes = (2e3 * np.exp(-along / 60.0 - 0.5 * (across / 1.5) ** 2)).astype(np.float32)
    lit = MaskedImage(np.where(field.mask & Mask.SAT, field.image, field.image + spikes), field.mask, field.variance)
    more = (characterize(lit).pixels.mask & ~bare.pixels.mask) & Mask.HALO != 0
    without = bare.pixels.mask & Mask.HALO == 0
    assert more[without & (spikes > 60.0)].mean() > 0.95
    assert not more[across > 15.0].any()


def test_inputs_are_not_written_to(field: StarField) -> None:
    seen = field.observed
    for plane in (seen.image, seen.mask, seen.variance):
        plane.setflags(write=False)
    characterize(seen)


def test_an_empty_sky_has_no_star() -> None:
    with pytest.raises(BadData, match="star"):
        characterize(observe(sky_of(SHAPE), 7))


def test_faint_stars_alone_make_no_psf() -> None:
    clean, profile, rng = sky_of(SHAPE), Profile(SHAPE), np.random.default_rng(9)
    draw(clean, profile, rng.uniform(40, 980, 60), rng.uniform(40, 980, 60), np.full(60, 4000.0))
    with pytest.raises(BadData, match="usable star"):
        characterize(observe(clean, 10))


def test_three_stars_are_too_few_and_counted() -> None:
    clean, profile = sky_of(SHAPE), Profile(SHAPE)
    draw(clean, profile, np.array([200.0, 500.0, 800.0]), np.array([300.0, 500.0, 200.0]), np.full(3, 1e5))
    with pytest.raises(BadData, match="3 usable stars"):
        characterize(observe(clean, 8))


def test_an_image_of_bad_pixels_is_refused(field: StarField) -> None:
    mask = np.full(SHAPE, Mask.BAD, np.uint16)
    with pytest.raises(BadData, match="no sky"):
        characterize(MaskedImage(field.observed.image, mask, field.observed.variance))
