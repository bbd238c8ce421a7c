"""Other programs on the same pair of images, each as its user would run it, and ours as a child like them.

A peer takes a folder with a written pair and gives the flux of a point at each pixel; one that fails or is absent says
so. The template is laid on the science image's pixels by SWarp (Bertin et al. 2002), as for most users of these.
"""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy import ndimage

from bench.child import FailedError, Spent, run
from bench.judge import Bools, Filtered, Shape, filtered, moffat, saturation, shape_of
from bench.zogy import Known
from simulators.pairs import Pair

DEADLINE = 540.0
"""Seconds that a peer may take for a pair; those of this size take a tenth of it on an idle core."""
_FILL = 1e-29
"""What HOTPANTS leaves where it has no difference is smaller than this."""
_GROWN_PX = 12
"""About what is saturated: the half-width of the kernels that carry it on."""
_SWARP = (
    "-SUBTRACT_BACK", "N", "-RESAMPLING_TYPE", "LANCZOS3", "-COMBINE_TYPE", "AVERAGE", "-WEIGHT_TYPE", "NONE",
    "-FSCALASTRO_TYPE", "NONE", "-NTHREADS", "1", "-WRITE_XML", "N",
)  # fmt: skip
_HOTPANTS_DEFAULT = ("-r", "10")
_HOTPANTS_TUNED = (
    "-r", "12", "-ng", "3", "6", "0.8", "4", "1.6", "2", "3.2", "-nsx", "20", "-nsy", "20", "-bgo", "2",
    "-iuk", "50000", "-tuk", "500000",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Laid:
    """A written pair with the template on the science image's pixels: a folder that holds `warped.fits` as well."""

    pair: Pair
    folder: Path
    spent: Spent


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a peer made of a pair. `made`: None if it failed, which `note` then tells."""

    name: str
    made: Filtered | None
    spent: Spent | None
    note: str = ""


Peer = Callable[[Laid], Outcome]


def available(hotpants: Path | None) -> tuple[dict[str, Peer], list[str]]:
    """The peers that can run here, by name, and what to say of those that cannot."""
    if shutil.which("SWarp") is None:
        return {}, ["not installed: SWarp, which HOTPANTS, SFFT and the reference need"]
    peers: dict[str, Peer] = {"ZOGY, true PSFs": zogy}
    absent = []
    if hotpants is None:
        absent.append("not installed: HOTPANTS (give its binary with --hotpants)")
    else:
        peers["HOTPANTS, defaults"] = lambda laid: with_hotpants(laid, hotpants, _HOTPANTS_DEFAULT)
        peers["HOTPANTS, tuned"] = lambda laid: with_hotpants(laid, hotpants, _HOTPANTS_TUNED)
    if importlib.util.find_spec("sfft") is None:
        absent.append("not installed: SFFT (PyPI sfft)")
    else:
        peers["SFFT, a quarter"] = sfft
    return peers, absent


def outcomes(peers: dict[str, Peer], pair: Pair, folder: Path) -> list[Outcome]:
    """Of all peers on a written pair; what fails is among them."""
    try:
        laid = Laid(pair, folder, warped(folder))
    except FailedError as error:
        return [Outcome(name, None, None, str(error)) for name in peers]
    return [_tried(name, peer, laid) for name, peer in peers.items()]


def _tried(name: str, peer: Peer, laid: Laid) -> Outcome:
    try:
        made = peer(laid)
    except (FailedError, OSError) as error:  # OSError: it ended well and left nothing to read
        return Outcome(name, None, None, str(error))
    assert made.spent is not None
    return replace(made, name=name, spent=laid.spent + made.spent)


def warped(folder: Path) -> Spent:
    """`warped.fits`, the template on the science image's pixels, 0 where it does not reach."""
    header = fits.getheader(folder / "science.fits")
    wanted = ("NAXIS", "CTYPE", "CUNIT", "CRVAL", "CRPIX", "CD", "RADESYS")
    cards = [card.image for card in header.cards if card.keyword.startswith(wanted)]
    (folder / "warped.head").write_text("\n".join([*cards, "END", ""]), encoding="ascii")
    names = ("-IMAGEOUT_NAME", "warped.fits", "-WEIGHTOUT_NAME", "weight.fits")
    return run(["SWarp", "template.fits", *_SWARP, *names], folder, DEADLINE)


def pachon(folder: Path) -> Spent:
    """What the whole command costs: start, reading, differencing, writing."""
    program = "import sys; from cluster.cli import main; sys.exit(main())"
    images = ("--science", "science.fits", "--template", "template.fits", "--out", "made")
    return run([sys.executable, "-c", program, "difference", *images], folder, DEADLINE)


def with_hotpants(laid: Laid, binary: Path, options: tuple[str, ...]) -> Outcome:
    """Becker 2015 (ascl:1504.004), after Alard & Lupton 1998. It chooses itself which image to convolve."""
    science, template = laid.pair.recipe.science, laid.pair.recipe.template
    numbers = {
        "-ig": science.gain, "-tg": template.gain, "-ir": science.read_noise / science.gain,
        "-tr": template.read_noise / template.gain, "-il": -500.0, "-tl": 1.0,
        "-iu": 0.95 * saturation(science), "-tu": 0.95 * saturation(template),
    }  # fmt: skip
    names = {"-inim": "science.fits", "-tmplim": "warped.fits", "-outim": "difference.fits", "-oni": "noise.fits"}
    (laid.folder / "difference.fits").unlink(missing_ok=True)  # of the run before, with other options
    told = [str(word) for name, value in (names | numbers).items() for word in (name, value)]
    spent = run([binary, *told, *options, "-n", "i", "-v", "0"], laid.folder, DEADLINE)
    header = fits.getheader(laid.folder / "difference.fits")
    difference, noise = (_read(laid.folder / f"{name}.fits") for name in ("difference", "noise"))
    usable = (np.abs(difference) > _FILL) & (noise > _FILL) & ~_saturated(laid, 0)
    convolved = template if str(header["CONVOL00"]).strip().upper() == "TEMPLATE" else science
    psf = moffat(_shape(laid, 0 if convolved is template else 1))
    made = filtered(difference * science.gain, (noise * science.gain) ** 2, usable, psf)
    return Outcome("HOTPANTS", made, spent)


def zogy(laid: Laid) -> Outcome:
    """The reference of `bench.zogy`, which knows PSFs, skies and flux scales as they were simulated."""
    recipe = laid.pair.recipe
    views = recipe.science, recipe.template
    # Single stars' errors are independent in the two images.
    off = float(np.linalg.norm([recipe.science.misplaced, recipe.science.jitter, recipe.template.jitter]))
    known = Known(
        (_shape(laid, 0), _shape(laid, 1)), (views[0].sky, views[1].sky), (views[0].read_noise, views[1].read_noise),
        (views[0].gain, views[1].gain), ratio(laid.pair), off / 1000.0 / recipe.pixel_arcsec,
    )  # fmt: skip
    (laid.folder / "known.json").write_text(json.dumps(asdict(known)), encoding="ascii")
    spent = run([sys.executable, "-m", "bench.zogy", "."], laid.folder, DEADLINE)
    flux, error = np.load(laid.folder / "zogy.npy")
    return Outcome("ZOGY", Filtered(flux, error, ~_saturated(laid, _GROWN_PX)), spent)


def sfft(laid: Laid) -> Outcome:
    """Hu et al. 2022, ApJ 936, 157, on the middle quarter: it keeps more than 23 GB for 4096 pixels squared.

    It tells no noise: it is given the photons' and the read noise of both images.
    """
    recipe, scale = laid.pair.recipe, ratio(laid.pair)
    science, template = recipe.science, recipe.template
    spoilt = _saturated(laid, _GROWN_PX)
    ny, nx = (n // 2 for n in spoilt.shape)
    quarter = np.s_[ny // 2 : ny // 2 + ny, nx // 2 : nx // 2 + nx]
    new = _read(laid.folder / "science.fits")[quarter] * science.gain
    ref = _read(laid.folder / "warped.fits")[quarter] * template.gain
    variance = np.maximum(new, 0.0) + science.read_noise**2 + (np.maximum(ref, 0.0) + template.read_noise**2) / scale**2
    for name, plane in (("sci", new), ("ref", ref / scale), ("spoilt", spoilt[quarter])):
        np.save(laid.folder / f"{name}.npy", plane)
    forward = science.fwhm_arcsec >= template.fwhm_arcsec
    spent = run([sys.executable, "-m", "bench.sfft_child", "REF" if forward else "SCI"], laid.folder, DEADLINE)
    psf = moffat(_shape(laid, 0 if forward else 1))
    difference = np.load(laid.folder / "sfft.npy")
    return Outcome("SFFT", filtered(difference, variance, ~spoilt[quarter], psf, (nx // 2, ny // 2)), spent)


def _saturated(laid: Laid, grown: int) -> Bools:
    """What is saturated in either image, or not in the template, and as far about it."""
    recipe = laid.pair.recipe
    template = _read(laid.folder / "warped.fits")
    # A warp rounds the clipped tops of stars off.
    lost = (laid.pair.science >= saturation(recipe.science)) | (template >= 0.9 * saturation(recipe.template))
    lost |= template == 0.0
    if grown:
        lost = ndimage.maximum_filter(lost, 2 * grown + 1)
    return lost


def _read(path: Path) -> NDArray[np.float32]:
    result: NDArray[np.float32] = fits.getdata(path).astype(np.float32)
    return result


def _shape(laid: Laid, which: int) -> Shape:
    """The true PSF of science (0) or template (1)."""
    recipe = laid.pair.recipe
    return shape_of((recipe.science, recipe.template)[which], recipe.pixel_arcsec)


def ratio(pair: Pair) -> float:
    """Electrons in the template per electron in the science image."""
    return float(10.0 ** (0.4 * (pair.recipe.template.zero_point - pair.recipe.science.zero_point)))
