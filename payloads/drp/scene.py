"""A patch as the sum of its objects in every band: where they are, which are galaxies, how bright each is.

Objects are points at first. Each is then fitted, in the band in which it stands out most, to its own light, which is
what all models leave of the image and its own model; and all fluxes are shared again, in turns.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from payloads.drp.blends import Field, Models, Shares, share
from payloads.drp.detect import Peaks
from payloads.drp.galaxies import Fits, Light, fit_discs, fit_points, try_discs
from payloads.drp.missed import find_missed
from payloads.drp.optics import Optics, Shapes, draw
from schemas.image import Image, Psf

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_POINT_TURNS, _DISC_TURNS = 3, 4
_NEAR_NEW = 15.0
"""Pixels from a new object within which others are points again: two points may have been taken for a disc."""
_BLENDED = 0.003
"""Part of an object's light that is others', from which it is fitted again in later turns."""
_GAIN, _PSF_ERROR = 12.0, 0.01
"""By how much chi2 is better of a galaxy than of a point: for its three more parameters; and for the PSF's own errors,
so much of the signal to noise, squared."""
_TRIAL_WIDTHS, _TRIAL_GAIN = (0.4, 1.0, 3.0), 2.0
"""Half-light radii that are tried, in sigmas of the PSF, and by how much chi2 must be better for a fit."""
_FIT_EDGE, _FIT_HALF = 5.0, (10, 60)
_FARTHEST = 3.0
"""Pixels from its peak beyond which a fit is not the peak's own."""
_BRIGHT, _FAR = 1000.0, 3
"""Signal to noise from which a point is drawn so many times farther out than its PSF is known: by its Gaussians."""
_EXTENT, _EXTENT_HALF = 5.0, 100
"""Half-light radii as far as which a galaxy is drawn, and at most so many pixels."""


@dataclass(frozen=True, eq=False)
class Band:
    """One band of a scene: its pixels and PSF at the objects, their models, and the light shared among these."""

    field: Field
    optics: Optics
    models: Models
    shares: Shares


@dataclass(frozen=True, eq=False)
class Scene:
    """What is known of all objects: `bands` in order; `points` and `discs` are the last fits of each, in its own band.

    `peaks`: those given, and after them those that were missed. `galaxy`: (n,), fitted so much better by a disc than by
    a point that it is drawn as one.
    """

    bands: Sequence[Band]
    shapes: Shapes
    galaxy: Flags
    points: Fits
    discs: Fits
    peaks: Peaks


def model_scene(fields: Sequence[Field], psfs: Sequence[Psf], peaks: Peaks) -> Scene:
    """All objects of a patch: `fields` and `psfs` of its bands, `peaks` on them."""
    turns = _Turns(fields, psfs, peaks)
    for turn in range(_POINT_TURNS):
        turns.fit_points(turns.blended() | (turn == 0))
    turns.fit_discs(np.ones(peaks.x.size, np.bool_))
    turns.add_missed()
    for _ in range(_DISC_TURNS):
        turns.fit_discs(turns.blended())
    return Scene(turns.bands, turns.shapes, turns.galaxy, turns.points, turns.discs, turns.peaks)


class _Turns:
    """The scene as it is after each turn."""

    def __init__(self, fields: Sequence[Field], psfs: Sequence[Psf], peaks: Peaks) -> None:
        self.galaxy = np.zeros(peaks.x.size, np.bool_)
        self.points = self.discs = Fits.none(peaks.x.size)
        self.peaks, self._fields, self._psfs = peaks, fields, psfs
        self._optics: list[Optics] = []
        self._draw(Shapes.points(peaks.x.astype(np.float64), peaks.y.astype(np.float64)))

    def blended(self) -> Flags:
        """Objects on which others shine, and those never fitted."""
        part = np.stack([band.shares.blended for band in self.bands])
        result: Flags = part[self.peaks.band, np.arange(self.galaxy.size)] > _BLENDED
        return result | np.isnan(self.points.x)

    def fit_points(self, chosen: Flags) -> None:
        """New places of points, and the light shared among them."""
        self.points = self._fitted(self.points, chosen, self._points_of)
        self._draw(Shapes.points(self.points.x, self.points.y))

    def fit_discs(self, chosen: Flags) -> None:
        """New places and ellipses, those of discs where they are better, and the light shared among them."""
        self.points = self._fitted(self.points, chosen, self._points_of)
        self.discs = self._fitted(self.discs, chosen, self._discs_of)
        self.galaxy = _is_galaxy(self.points, self.discs, self.peaks.value)
        self._draw(_chosen(self.points, self.discs, self.galaxy))

    def add_missed(self) -> None:
        """New objects where light is left; those near them are points again until they are fitted anew."""
        residuals = [band.shares.residual for band in self.bands]
        at, old = np.stack([self.shapes.x, self.shapes.y], axis=1), self.galaxy.size
        self.peaks = find_missed(self._fields, residuals, self._psfs, self.peaks, self.galaxy, at)
        x, y = (
            np.append(a, b[old:]).astype(np.float64)
            for a, b in ((self.shapes.x, self.peaks.x), (self.shapes.y, self.peaks.y))
        )
        none = Fits.none(x.size - old)
        self.points, self.discs = self.points.and_then(none), self.discs.and_then(none)
        self.galaxy = np.append(self.galaxy, np.zeros(x.size - old, np.bool_))
        near = np.zeros(x.size, np.bool_)
        if x.size > old:
            near = cKDTree(np.stack([x, y], axis=1)[old:]).query(np.stack([x, y], axis=1))[0] < _NEAR_NEW
        root = np.concatenate([self.shapes.root, np.zeros((x.size - old, 3))])
        self._draw(Shapes(x, y, np.where(near[:, None], 0.0, root)))

    def _draw(self, shapes: Shapes) -> None:
        self.shapes = shapes
        if len(self._optics) == 0 or self._optics[0].place.size != shapes.x.size:
            self._optics = [Optics.at(psf, shapes.x, shapes.y) for psf in self._psfs]
            self._window, self._reach = _windows(self.peaks), _reaches(self.peaks, self._psfs)
        half = np.maximum(self._reach, _extents(shapes))
        models = [draw(shapes, optics, half) for optics in self._optics]
        together = zip(self._fields, self._optics, models, strict=True)
        self.bands = [Band(field, optics, model, share(field, model)) for field, optics, model in together]

    def _fitted(self, before: Fits, chosen: Flags, fit: Callable[[Light, Ints], Fits]) -> Fits:
        """Fits of objects, each in its own band: anew of the `chosen`, of the others as they were `before`."""
        own = self.peaks.band
        lights = [Light(b.field, b.shares.residual, b.models, b.shares.flux, b.optics) for b in self.bands]
        parts = [fit(light, np.flatnonzero(chosen & (own == number))) for number, light in enumerate(lights)]
        parts.append(before)
        source, rows = np.where(chosen, own, len(lights)), np.arange(own.size)
        columns = (np.stack([getattr(p, f.name) for p in parts])[source, rows] for f in dataclasses.fields(Fits))
        return self._held(Fits(*columns))

    def _held(self, fits: Fits) -> Fits:
        """Fits, those that ran away put back to where they came from, as failed."""
        x, y = self.peaks.x.astype(np.float64), self.peaks.y.astype(np.float64)
        away = np.hypot(fits.x - x, fits.y - y) > _FARTHEST
        x, y = np.where(away, x, fits.x), np.where(away, y, fits.y)
        return dataclasses.replace(fits, x=x, y=y, failed=fits.failed | away)

    def _points_of(self, light: Light, which: Ints) -> Fits:
        return fit_points(light, self.shapes, which, self._window)

    def _discs_of(self, light: Light, which: Ints) -> Fits:
        return _discs(light, self.shapes, self.points, which, self._window)


def _discs(light: Light, shapes: Shapes, points: Fits, which: Ints, window: Ints) -> Fits:
    """Discs fitted to objects that one of some width fits better than a point, begun from that or from the last fit."""
    best, root = points.chi2 - _TRIAL_GAIN, np.zeros((shapes.x.size, 3))
    for width in _TRIAL_WIDTHS:
        side = width * light.optics.sigma[light.optics.place]
        trial = np.column_stack([side, np.zeros(side.size), side])
        chi2 = try_discs(light, shapes, trial, which, window)
        better = chi2 < best
        best, root = np.where(better, chi2, best), np.where(better[:, None], trial, root)
    known = np.any(shapes.root != 0.0, axis=1)
    root[known] = shapes.root[known]
    worth = which[np.any(root[which] != 0.0, axis=1)]
    return fit_discs(light, shapes, root, worth, window)


def _is_galaxy(points: Fits, discs: Fits, ratio: Image) -> Flags:
    gain = points.chi2 - discs.chi2
    galaxy: Flags = ~discs.failed & (points.failed | (gain > _GAIN + (_PSF_ERROR * ratio) ** 2))
    return galaxy


def _chosen(points: Fits, discs: Fits, galaxy: Flags) -> Shapes:
    x, y = np.where(galaxy, discs.x, points.x), np.where(galaxy, discs.y, points.y)
    return Shapes(x, y, np.where(galaxy[:, None], discs.root, 0.0))


def _windows(peaks: Peaks) -> Ints:
    """Half-widths of the windows in which objects are fitted: what is above the threshold, and an edge."""
    half = np.sqrt(peaks.area / np.pi) + _FIT_EDGE
    windows: Ints = np.clip(np.ceil(half), *_FIT_HALF).astype(np.int64)
    return windows


def _reaches(peaks: Peaks, psfs: Sequence[Psf]) -> Ints:
    """Half-widths of the boxes in which points are drawn."""
    known = max(psf.components.shape[1] for psf in psfs) // 2
    reaches: Ints = np.where(peaks.value > _BRIGHT, _FAR * known, known).astype(np.int64)
    return reaches


def _extents(shapes: Shapes) -> Ints:
    radius = np.sqrt((shapes.root**2).sum(1))
    extents: Ints = np.minimum(np.ceil(_EXTENT * radius) + 4.0, _EXTENT_HALF).astype(np.int64)
    return extents
