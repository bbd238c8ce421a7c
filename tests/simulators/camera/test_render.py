import numpy as np
import pytest
from numpy.typing import NDArray

from simulators.camera.psf import HALO_FLUX, MOFFAT_BETA, PsfField, exponential, moffat, overlaps
from simulators.camera.render import SHAPES_DTYPE, add_gaussian, draw, galaxy_moments

PSF = PsfField(np.array([[4.0, 0.1, 0.05, 0.2, 0, 0], [0.05, 0.02, 0, 0, 0, 0], [-0.03, 0, 0.01, 0, 0, 0]]), (300, 320))


def source(
    x: float, y: float, flux: float, radius: float = 0.0, ratio: float = 1.0, angle: float = 0.0
) -> NDArray[np.void]:
    row = np.zeros(1, SHAPES_DTYPE)
    row["x"], row["y"], row["flux"] = x, y, flux
    row["xx"], row["xy"], row["yy"] = galaxy_moments(np.array([radius]), np.array([ratio]), np.array([angle]))
    return row


def gaussian(
    shape: tuple[int, int], x: float, y: float, flux: float, xx: float, xy: float, yy: float
) -> NDArray[np.float64]:
    dy, dx = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    delta = np.stack([dx - x, dy - y])
    exponent = np.einsum("iyx,ij,jyx->yx", delta, np.linalg.inv([[xx, xy], [xy, yy]]), delta)
    result: NDArray[np.float64] = flux / (2 * np.pi * np.sqrt(xx * yy - xy * xy)) * np.exp(-0.5 * exponent)
    return result


def reference(row: np.void, psf: PsfField) -> NDArray[np.float64]:
    """The whole sum of Gaussians, evaluated at every pixel; no halo."""
    image = np.zeros(psf.shape)
    galaxy = zip(exponential().weight, exponential().sigma, strict=True) if row["xx"] > 0 else [(1.0, 0.0)]
    for part, sigma in list(galaxy):
        moments = sigma**2 * np.array([row["xx"], row["xy"], row["yy"]])
        for weight, cov in zip(moffat().weight, psf.covariances(row["x"], row["y"]), strict=True):
            image += gaussian(psf.shape, row["x"], row["y"], row["flux"] * weight * part, *(cov + moments))
    return image


def test_the_mixture_is_a_moffat() -> None:
    a = 0.5 / np.sqrt(2.0 ** (1.0 / MOFFAT_BETA) - 1.0)
    r = np.linspace(0.0, 4.0, 100)
    true = (MOFFAT_BETA - 1.0) / (np.pi * a * a) * (1.0 + (r / a) ** 2) ** -MOFFAT_BETA
    core = moffat()
    mixture = np.sum(core.weight / (2 * np.pi * core.sigma**2) * np.exp(-0.5 * (r[:, None] / core.sigma) ** 2), 1)
    np.testing.assert_allclose(mixture, true, rtol=0.01)


def test_a_disc_has_half_its_light_within_its_radius() -> None:
    assert exponential().flux_within(1.0) == pytest.approx(0.5, abs=1e-9)
    assert exponential().flux_within(3.0) == pytest.approx(1.0 - 6.04 * np.exp(-5.04), abs=0.02)


def test_the_stamp_of_the_psf_sums_to_one_and_has_its_width() -> None:
    kernel = PSF.kernel(100.0, 100.0, 61).astype(np.float64)
    assert kernel.sum() == pytest.approx(1.0, abs=1e-6)
    half = kernel > kernel.max() / 2
    assert 2.0 * np.sqrt(half.sum() / np.pi) == pytest.approx(PSF.at(100.0, 100.0)[0], rel=0.08)


def test_overlaps_are_the_sums_over_pixels() -> None:
    kernel = PSF.kernel(150.0, 120.0, 91).astype(np.float64)
    squared, cubed = overlaps(moffat().weight, PSF.covariances(150.0, 120.0))
    assert squared == pytest.approx(np.sum(kernel**2), rel=1e-3)
    assert cubed == pytest.approx(np.sum(kernel**3), rel=1e-3)


@pytest.mark.parametrize(
    "row",
    [
        source(150.3, 140.7, 1e4),
        source(150.3, 140.7, 1e4, 4.0, 0.4, 0.7),
        source(3.0, 296.0, 1e4),
        source(150, 150, 1e4, 0.5),
    ],
    ids=["star", "galaxy", "corner", "tiny galaxy"],
)
def test_a_drawn_source_is_the_sum_of_its_gaussians(row: NDArray[np.void]) -> None:
    image = np.zeros(PSF.shape, np.float32)
    draw(image, row, PSF, 1e-6)
    without = image - gaussian(PSF.shape, row["x"][0], row["y"][0], 1e4 * HALO_FLUX, 3600.1, 0.0, 3600.1)
    expected = reference(row[0], PSF)
    assert np.abs(without - expected).max() < 1e-3 * expected.max() + 2e-4


@pytest.mark.parametrize("radius", [0.0, 1.0, 6.0])
def test_flux_in_is_flux_out(radius: float) -> None:
    for flux in (20.0, 1e3, 1e5):
        image = np.zeros(PSF.shape, np.float32)
        draw(image, source(150.2, 149.6, flux, radius, 0.5, 1.0), PSF, 0.02)
        y, x = np.mgrid[:300, :320]
        within = image[np.hypot(x - 150.2, y - 149.6) < 130].sum(dtype=np.float64)
        assert within == pytest.approx(flux, rel=1e-3)


def test_a_bright_star_has_its_halo_on_top() -> None:
    image = np.zeros(PSF.shape, np.float32)
    draw(image, source(150.2, 149.6, 1e7), PSF, 0.02)
    y, x = np.mgrid[:300, :320]
    within = image[np.hypot(x - 150.2, y - 149.6) < 130].sum(dtype=np.float64)
    halo = HALO_FLUX * (1.0 - np.exp(-0.5 * (130 / 60.0) ** 2))
    assert within == pytest.approx(1e7 * (1.0 + halo), rel=5e-4)


def test_a_needle_is_drawn_where_the_recurrence_would_underflow() -> None:
    image = np.zeros((200, 200), np.float32)
    xx, xy, yy = (float(m[0]) for m in galaxy_moments(np.array([25.0]), np.array([0.04]), np.array([0.8])))
    add_gaussian(image, 100.0, 100.0, 1e4, xx, xy, yy, 1e-6, 0.0)
    np.testing.assert_allclose(image, gaussian((200, 200), 100.0, 100.0, 1e4, xx, xy, yy), atol=2e-6)


def test_a_cutout_is_a_part_of_the_whole() -> None:
    whole, part = np.zeros(PSF.shape, np.float32), np.zeros((60, 50), np.float32)
    draw(whole, source(150.3, 140.7, 1e3), PSF, 1e-3)
    draw(part, source(150.3, 140.7, 1e3), PSF, 1e-3, origin=(130, 110))
    np.testing.assert_allclose(part, whole[110:170, 130:180], atol=1e-4)
