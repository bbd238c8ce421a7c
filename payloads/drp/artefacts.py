"""What is in few visits of many: satellites' trails, asteroids, ghosts, cosmic rays and bad columns not masked.

Visits of one PSF are held against their median, pixel by pixel; what stands out is an artefact where few visits have
it, and the sky's own where many do, as a variable star is (CompareWarp: AlSayyad 2018, DMTN-080). A difference that is
a small part of the light there is none: PSFs and positions are not known so well.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from payloads.drp.trails import extend_trails
from payloads.imaging import background
from payloads.imaging.morphology import grown
from schemas.errors import BadData
from schemas.image import Image, Mask

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Counts = NDArray[np.uint16]

_SEED, _LIMIT = 5.0, 2.5
"""Sigmas from which something stands out, and to which it is followed."""
_PART, _VARYING_PART = 0.2, 0.05
"""Of the light at a pixel or beside it, that an artefact must exceed, and what counts as another visit that differs: a
star that varies does so in most visits, by whatever it does."""
_SPREAD = 2
"""Pixels that an artefact is grown by."""
_CELL, _NOTHING = 128, 1e30
_ROUNDS = 2
"""Of matching skies: visits that see a part of the patch only shift the mean they are matched to."""
_MOST, _MOST_PART, _FEW_PART = 3.0, 0.03, 0.4
"""Of n visits, an artefact may be in 3 + 0.03 n, but in no more than 0.4 n (DMTN-080's rule and figures)."""
_OWN = 0.5
"""Part of a group's pixels that must stand out in few visits for all of it to be an artefact."""
_EIGHT = np.ones((3, 3), np.bool_)
_BAD = int(Mask.BAD)


def match_skies(stack: Image, usual: Bools) -> list[Image]:
    """What each visit's sky is above the mean of the `usual` (n,) ones, a mesh over its image; taken away in place.

    `stack`: (n, ny, nx), NaN where not good.
    """
    levels: list[Image] = []
    for _ in range(_ROUNDS):
        reference = _mean(stack, np.flatnonzero(usual))
        found = [_level(image - reference)[0] for image in stack]
        for image, level in zip(stack, found, strict=True):
            np.subtract(image, background.render(level, image.shape), out=image)
        levels = [old + new for old, new in zip(levels, found, strict=True)] if levels else found
    return levels


def find_artefacts(stack: Image, blur: Floats) -> Bools:
    """(n, ny, nx): which pixels of which visit are not the sky's.

    `stack`: (n, ny, nx) of one PSF and sky, NaN where not good; those that have `blur` (n,) have a PSF wider by a
    Gaussian of this sigma (pixels), and are held against the others' median as wide as it. Where two visits are, only
    the brighter can be an artefact, where one is, none.
    """
    ranked = rank(stack, np.flatnonzero(blur == 0.0))
    light, epochs = _light(ranked.middle), np.zeros(ranked.count.shape, np.uint16)
    found = np.zeros(stack.shape, np.bool_)
    for k, image in enumerate(stack):
        if blur[k] == 0.0:
            others = ranked.without(image)
            model = np.where(ranked.count == 2, others, ranked.middle)
            found[k] = _standing_out(image, model, others, light, ranked.count, epochs)
        else:
            wide = _blurred(ranked.middle, blur[k])
            found[k] = _standing_out(image, wide, wide, _light(wide), ranked.count, epochs)
    few = epochs <= _most_epochs(ranked.count)
    for one in found:
        one[:] = _own(one, few)
        extend_trails(one)
        one[:] = grown(one.astype(np.uint16), 1, _SPREAD)
    return found


@dataclass(frozen=True, eq=False)
class Ranked:
    """Of a stack at each pixel (ny, nx): its median and what is next to it, NaN where there is none; how many it is of.

    Of an even number, `low` and `high` are the two in the middle, of an odd one, those beside the middle one.
    """

    low: Image
    middle: Image
    high: Image
    count: Counts

    def without(self, image: Image) -> Image:
        """The median of all but one, which is among them; NaN where that is NaN or alone."""
        others = np.empty_like(image)
        _without(image, self.low, self.middle, self.high, self.count, others)
        return others


def rank(stack: Image, members: Ints) -> Ranked:
    """The middle of the members of a stack (n, ny, nx), NaN left out."""
    low, middle, high = (np.empty(stack.shape[1:], np.float32) for _ in range(3))
    count = np.empty(stack.shape[1:], np.uint16)
    _rank(stack, members, low, middle, high, count)
    return Ranked(low, middle, high, count)


def _mean(stack: Image, members: Ints) -> Image:
    total, count = np.zeros(stack.shape[1:], np.float32), np.zeros(stack.shape[1:], np.float32)
    for k in members:
        good = np.isfinite(stack[k])
        np.add(total, stack[k], out=total, where=good)
        count += good
    with np.errstate(invalid="ignore"):
        result: Image = total / count
    return result


def _most_epochs(count: Counts) -> Counts:
    most = np.minimum(_FEW_PART * count, _MOST + _MOST_PART * count)
    result: Counts = np.maximum(most, 1.0).astype(np.uint16)
    return result


def _light(model: Image) -> Image:
    """Of a pixel or one beside it, whichever has more."""
    result: Image = ndimage.maximum_filter(np.abs(np.nan_to_num(model)), 3)
    return result


def _standing_out(image: Image, model: Image, others: Image, light: Image, count: Counts, epochs: Counts) -> Bools:
    """Pixels that differ from the model by more than noise and light explain. Where the visit differs, `epochs` grow.

    The noise is seen against the others: a median is too near to what it is made of.
    """
    noise = background.render(_level(image - others)[1], image.shape)
    difference = image - model
    size = np.where(count == 2, difference, np.abs(difference))
    with np.errstate(invalid="ignore"):
        epochs += size > _LIMIT * noise + np.float32(_VARYING_PART) * light
        size -= np.float32(_PART) * light
        seeds, near = size > _SEED * noise, size > _LIMIT * noise
    result: Bools = ndimage.binary_propagation(seeds, _EIGHT, near)
    return result


def _level(difference: Image) -> tuple[Image, Image]:
    """Level and noise of a difference, a mesh each; 0 and as good as infinite where hardly anything is to be seen."""
    mask = np.where(np.isfinite(difference), np.uint16(0), np.uint16(_BAD))
    try:
        return background.mesh(difference, mask, _BAD, _CELL, believe_all=True)
    except BadData:
        return np.zeros((1, 1), np.float32), np.full((1, 1), _NOTHING, np.float32)


def _blurred(model: Image, sigma: float) -> Image:
    result: Image = ndimage.gaussian_filter(np.nan_to_num(model), sigma)
    result[np.isnan(model)] = np.nan
    return result


def _own(found: Bools, few: Bools) -> Bools:
    """The connected groups of which at least half lies where few visits stand out."""
    labels, n = ndimage.label(found, _EIGHT)
    size = np.bincount(labels.ravel(), minlength=n + 1)
    own = np.bincount(labels.ravel(), few.ravel(), minlength=n + 1)
    chosen = own >= _OWN * size
    chosen[0] = False
    result: Bools = chosen[labels]
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _rank(stack: Image, members: Ints, low: Image, middle: Image, high: Image, count: Counts) -> None:
    values = np.empty(members.size + 2, np.float32)
    for y in range(middle.shape[0]):
        for x in range(middle.shape[1]):
            n = 0
            for k in members:
                value = stack[k, y, x]
                if not np.isnan(value):
                    n += 1
                    at = n
                    while at > 1 and values[at - 1] > value:
                        values[at] = values[at - 1]
                        at -= 1
                    values[at] = value
            values[0] = values[n + 1] = np.nan
            count[y, x] = n
            low[y, x], high[y, x] = values[(n + 1) // 2 - n % 2], values[n // 2 + 1 + n % 2]
            middle[y, x] = np.float32(0.5) * (values[(n + 1) // 2] + values[n // 2 + 1])
            if n == 0:
                low[y, x], middle[y, x], high[y, x] = np.nan, np.nan, np.nan


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _without(image: Image, low: Image, middle: Image, high: Image, count: Counts, others: Image) -> None:
    half = np.float32(0.5)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            value, centre = image[y, x], middle[y, x]
            if np.isnan(value):
                others[y, x] = np.nan
            elif count[y, x] % 2 == 0:
                others[y, x] = low[y, x] if value > centre else high[y, x]
            elif value > centre:
                others[y, x] = half * (low[y, x] + centre)
            elif value < centre:
                others[y, x] = half * (high[y, x] + centre)
            else:
                others[y, x] = half * (low[y, x] + high[y, x])
