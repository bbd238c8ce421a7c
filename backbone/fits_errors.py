"""How what goes wrong with a FITS file is told: one error, which names the file."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from schemas.errors import BadData, Transient

_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    fits.VerifyError,
    AstropyUserWarning,
)


@contextmanager
def opened(path: Path, **how: bool) -> Iterator[fits.HDUList]:
    """`astropy.io.fits.open`, for which a file shorter than its headers say is an error and not a warning.

    It is opened here, as astropy leaves a file open that it finds to be no FITS.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", "File may have been truncated|non-standard|Error validating", AstropyUserWarning
        )
        with path.open("rb") as file, fits.open(file, **how) as hdus:
            len(hdus)  # reads every header, so that a short file shows here
            yield hdus


@contextmanager
def written_or_transient(path: Path) -> Iterator[None]:
    """Turn a disk that takes no more into Transient naming `path`: any OSError, as NumPy's carry no errno."""
    try:
        yield
    except OSError as error:
        raise Transient(f"{path}: no room, or a failing disk: {error}") from error


@contextmanager
def refused_by_name(path: Path) -> Iterator[None]:
    """Turn what a damaged FITS file raises into BadData, a failing disk into Transient; both name `path`."""
    try:
        yield
    except BadData as error:
        raise BadData(f"{path}: {error}") from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise Transient(f"{path}: {error}") from error
        raise BadData(f"{path}: {type(error).__name__}: {error}") from error
