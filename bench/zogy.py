"""Proper image subtraction, plainly, by one who knows the PSFs: what the statistics of a pair allow.

    python -m bench.zogy FOLDER

After Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27: the score S (their eq. 17, of D and P_D, eqs. 13 and 14), and S_corr
(eq. 25), whose variance counts the sources' own photons (eqs. 26 to 29) and errors of registration (eqs. 30 to 33).
The folder holds `science.fits` and `warped.fits`, the template on the same pixels (ADU), and `known.json`, a `Known`;
`zogy.npy` is written: the flux of a point at each pixel, electrons of the science image, and its error.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from bench.judge import Shape, moffat

Floats = NDArray[np.float64]
Waves = NDArray[np.complex128]

_TILE, _MARGIN = 1024, 64
_REGISTRATION_PX = 0.03
"""To which two images can be laid upon one another by their stars."""


@dataclass(frozen=True)
class Known:
    """The truth about science and template, in this order. `psf`: of a point; `sky`, `read_noise`: electrons.

    `ratio`: electrons in the template per electron in the science image. `misplaced`: pixels in x and in y, of the
    whole and of single stars together.
    """

    psf: tuple[Shape, Shape]
    sky: tuple[float, float]
    read_noise: tuple[float, float]
    gain: tuple[float, float]
    ratio: float
    misplaced: float


def point_flux(science: Floats, template: Floats, known: Known) -> tuple[Floats, Floats]:
    """Flux of a point at each pixel of a tile, and its error; images in electrons, with their skies."""
    new, ref = science - known.sky[0], template - known.sky[1]
    p_n, p_r = (_waves_of_psf(psf, science.shape) for psf in known.psf)
    f_n, f_r = 1.0, known.ratio
    var_n, var_r = (sky + noise**2 for sky, noise in zip(known.sky, known.read_noise, strict=True))
    total = var_n * f_r**2 * np.abs(p_r) ** 2 + var_r * f_n**2 * np.abs(p_n) ** 2
    k_n = f_n * f_r**2 * p_n.conj() * np.abs(p_r) ** 2 / total
    k_r = f_r * f_n**2 * p_r.conj() * np.abs(p_n) ** 2 / total
    s_n, s_r = _back(k_n * np.fft.rfft2(new), science.shape), _back(k_r * np.fft.rfft2(ref), science.shape)
    registration = _REGISTRATION_PX**2 + known.misplaced**2
    variance = _through(k_n, np.maximum(science, 0.0) + known.read_noise[0] ** 2)
    variance += _through(k_r, np.maximum(template, 0.0) + known.read_noise[1] ** 2)
    variance += registration * (_steepness(s_n) + _steepness(s_r)) / 2.0
    # S of a point of unit flux at its own place.
    unit = _back(k_n * f_n * p_n, science.shape)[0, 0]
    return (s_n - s_r) / unit, np.sqrt(variance) / unit


def _waves_of_psf(psf: Shape, shape: tuple[int, ...]) -> Waves:
    """The transform of the PSF centred on pixel 0, 0."""
    stamp = moffat(psf, _MARGIN)
    padded = np.zeros(shape)
    padded[: stamp.shape[0], : stamp.shape[1]] = stamp / stamp.sum()
    result: Waves = np.fft.rfft2(np.roll(padded, (-_MARGIN, -_MARGIN), (0, 1)))
    return result


def _back(waves: Waves, shape: tuple[int, ...]) -> Floats:
    result: Floats = np.fft.irfft2(waves, shape)
    return result


def _through(kernel: Waves, variance: Floats) -> Floats:
    """Variance after a filter."""
    shape = variance.shape
    return np.maximum(_back(np.fft.rfft2(_back(kernel, shape) ** 2) * np.fft.rfft2(variance), shape), 0.0)


def _steepness(score: Floats) -> Floats:
    dy, dx = np.gradient(score)
    result: Floats = dx**2 + dy**2
    return result


def in_tiles(science: Floats, template: Floats, known: Known) -> Floats:
    """(2, ny, nx) float32: flux and error, tile by tile with margins, beyond the edges the sky."""
    padded = [np.pad(image, _MARGIN, constant_values=sky)
              for image, sky in zip((science, template), known.sky, strict=True)]  # fmt: skip
    made = np.empty((2, *science.shape), np.float32)
    step = _TILE - 2 * _MARGIN
    for y in range(0, science.shape[0], step):
        for x in range(0, science.shape[1], step):
            pieces = point_flux(*(image[y : y + _TILE, x : x + _TILE] for image in padded), known)
            for plane, piece in zip(made, pieces, strict=True):
                plane[y : y + step, x : x + step] = piece[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return made


def main() -> None:
    """Read, subtract, write."""
    folder = Path(sys.argv[1])
    told = json.loads((folder / "known.json").read_text(encoding="ascii"))
    known = Known(**told | {"psf": tuple(Shape(**each) for each in told["psf"])})
    science, template = (
        fits.getdata(folder / f"{name}.fits").astype(np.float64) * gain
        for name, gain in zip(("science", "warped"), known.gain, strict=True)
    )
    # Where the template does not reach there is sky.
    template[template == 0.0] = known.sky[1]
    np.save(folder / "zogy.npy", in_tiles(science, template, known))


if __name__ == "__main__":
    main()
