"""SFFT in a process of its own: `python -m bench.sfft_child REF|SCI`, in the folder of its images.

It reads `sci.npy`, `ref.npy` (one unit, with their skies) and `spoilt.npy`, subtracts with the CPU backend the way
its packet for crowded fields does (everything but what is spoilt takes part in the fit), and writes `sfft.npy`, in
that unit.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

_KERNEL_HALF_WIDTH = 10
_KERNEL_ORDER, _SKY_ORDER = 1, 1


def _in1d(values: ArrayLike, others: ArrayLike) -> NDArray[np.bool_]:
    return np.isin(values, others).ravel()


def main() -> None:
    """Subtract."""
    # numpy 2.4 has it no more, SFFT 1.7.3 calls it.
    vars(np)["in1d"] = _in1d
    packet = importlib.import_module("sfft.CustomizedPacket").Customized_Packet
    spoilt = np.load("spoilt.npy")
    for name in ("sci", "ref"):
        image = np.load(f"{name}.npy").astype(np.float64)
        image -= np.median(image[~spoilt])
        fits.writeto(f"{name}.fits", np.where(spoilt, 0.0, image), overwrite=True)
    solution = packet.CP(
        FITS_REF="ref.fits", FITS_SCI="sci.fits", FITS_mREF="ref.fits", FITS_mSCI="sci.fits", FITS_DIFF="sfft.fits",
        ForceConv=sys.argv[1], GKerHW=_KERNEL_HALF_WIDTH, KerPolyOrder=_KERNEL_ORDER, BGPolyOrder=_SKY_ORDER,
        ConstPhotRatio=True, BACKEND_4SUBTRACT="Numpy", NUM_CPU_THREADS_4SUBTRACT=1, VERBOSE_LEVEL=0,
    )  # fmt: skip
    assert solution is not None
    np.save("sfft.npy", fits.getdata(Path("sfft.fits")))


if __name__ == "__main__":
    main()
