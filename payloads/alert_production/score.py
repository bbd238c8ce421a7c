"""Reliability: how probable it is that a DIASource is in the sky and not in the subtraction.

Boosted trees on what a person looks at: does it look like the PSF, is it balanced by a hole, what was there
before, what is masked nearby. The trees lie beside this file, with how good they are.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from payloads.alert_production.trees import Trees, boost
from payloads.imaging.psf_field import kernel_sigma
from schemas.errors import BadData
from schemas.image import Mask, Stamp
from schemas.tables import Table

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FEATURES = (
    "log_snr", "negative", "log_chi2", "size_excess", "elongation", "shape_failed", "aperture_ratio",
    "sharpness",
    "counterweight", "dipole", "dipole_tried", "trail", "log_science", "log_template", "log_template_peak",
    "change", "ring_noise", "ring_slope", "masked", "masked_center", "halo", "off_peak",
)  # fmt: skip

MIN_RELIABILITY = 0.5
"""What is less probable is not alerted: Rubin's threshold of 2026 (prompt-products.lsst.io)."""

_CORE, _INSIDE, _RING = 1.0, 3.0, (3.5, 5.5)
"""Radii, in sigmas of the difference's PSF."""
_DEARER = 2.0
"""What a real source lost weighs, in bogus ones kept: at a probability of a half about one in a hundred is lost."""
_NEVER = 1e300
_ROUNDS = 150
_FEWEST = 20


@dataclass(frozen=True, eq=False)
class Model:
    """P(real) = 1 / (1 + exp(-log odds)). `measured`: on sources it was not trained on, see `roc`."""

    version: str
    trees: Trees
    measured: dict[str, float]


def score(sources: Table, stamps: Sequence[Stamp]) -> Table:
    """The sources (n,) in a new table with `reliability` and its version. One stamp a source.

    What lies on a satellite's streak is not believed, whatever it looks like.
    """
    result = sources.copy()
    if sources.size:
        model = installed_model()
        astrophysical = probability(model, features(sources, stamps))
        result["reliability"] = np.where(sources["pixelFlags_streakCenter"], 0.0, astrophysical)
        result["reliabilityVersion"] = model.version
    return result


def features(sources: Table, stamps: Sequence[Stamp]) -> Floats:
    """(n, 22): `FEATURES` of each source. Raises BadData if there is not one stamp a source."""
    if len(stamps) != sources.size:
        raise BadData(f"{len(stamps)} stamps for {sources.size} sources")
    if not sources.size:
        return np.empty((0, len(FEATURES)))
    sign = np.where(sources["isNegative"], -1.0, 1.0)
    columns = _of_columns(sources) | _of_stamps(stamps, sign)
    return np.nan_to_num(np.column_stack([columns[name] for name in FEATURES]), nan=0.0, posinf=0.0, neginf=0.0)


def probability(model: Model, values: Floats) -> Floats:
    """P(real) (n,) of features (n, m)."""
    result: Floats = 1.0 / (1.0 + np.exp(-model.trees.log_odds(values)))
    return result


def train(values: Floats, real: Bools, version: str, measured: dict[str, float]) -> Model:
    """The model of labels `real` (n,) given `values` (n, m), as if there were `_DEARER` times as many real as bogus.

    Raises BadData if a class has fewer than 20 members.
    """
    if min(real.sum(), (~real).sum()) < _FEWEST:
        raise BadData(f"{real.sum()} real and {(~real).sum()} bogus sources are too few to train on")
    weights = np.where(real, 0.5 / real.mean(), 0.5 / (~real).mean())
    trees = boost(values, real, weights, _ROUNDS)
    return Model(version, replace(trees, start=trees.start + float(np.log(_DEARER))), measured)


def roc(probabilities: Floats, real: Bools) -> dict[str, float]:
    """Area under the curve, and the part of the bogus that is kept where 95, 98 and 99 % of the real are."""
    order = np.argsort(probabilities)
    rank = np.empty(order.size)
    rank[order] = np.arange(1, order.size + 1)
    n_real, n_bogus = int(real.sum()), int((~real).sum())
    area = (rank[real].sum() - n_real * (n_real + 1) / 2) / (n_real * n_bogus)
    result = {"real": float(n_real), "bogus": float(n_bogus), "auc": float(area)}
    for completeness in (0.95, 0.98, 0.99):
        threshold = np.quantile(probabilities[real], 1.0 - completeness)
        result[f"bogus_kept_at_{completeness}"] = float((probabilities[~real] >= threshold).mean())
    return result


def to_json(model: Model) -> str:
    """As it is kept beside this file; values to 6 digits."""
    trees = model.trees
    fields = {
        "version": model.version,
        "measured": {name: round(value, 5) for name, value in model.measured.items()},
        "features": FEATURES,
        "start": trees.start,
        "feature": trees.feature.tolist(),
        "threshold": [[_NEVER if np.isinf(v) else float(f"{v:.6g}") for v in row] for row in trees.threshold],
        "value": [[float(f"{v:.6g}") for v in row] for row in trees.value],
    }
    return json.dumps(fields, separators=(",", ":")).replace("],[", "],\n[") + "\n"


def from_json(text: str) -> Model:
    """The model that `to_json` wrote. Raises BadData if it was made for other features."""
    fields = json.loads(text)
    if tuple(fields["features"]) != FEATURES:
        raise BadData(f"the model {fields['version']} was made for the features {fields['features']}")
    trees = Trees(
        fields["start"], np.array(fields["feature"]), np.array(fields["threshold"]), np.array(fields["value"])
    )
    return Model(fields["version"], trees, fields["measured"])


@lru_cache(maxsize=1)
def installed_model() -> Model:
    """The model beside this file."""
    return from_json((resources.files("payloads.alert_production") / "reliability.json").read_text(encoding="utf-8"))


def _of_columns(s: Table) -> dict[str, Floats]:
    with np.errstate(divide="ignore", invalid="ignore"):
        size, psf_size = s["ixx"] + s["iyy"], s["ixxPSF"] + s["iyyPSF"]
        template = np.abs(s["templateFlux"]) + s["psfFluxErr"]
        masked = s["pixelFlags_saturated"] | s["pixelFlags_bad"] | s["pixelFlags_nodata"] | s["pixelFlags_edge"]
        return {
            "log_snr": np.log(s["snr"]),
            "negative": s["isNegative"],
            "log_chi2": np.log(s["psfChi2"] / s["psfNdata"]),
            "size_excess": np.clip(size / psf_size - 1.0, -1.0, 3.0),
            "elongation": np.hypot(s["ixx"] - s["iyy"], 2.0 * s["ixy"]) / size,
            "shape_failed": s["shape_flag"],
            "aperture_ratio": np.clip(s["apFlux"] / s["psfFlux"], -2.0, 4.0),
            "dipole": s["isDipole"],
            "dipole_tried": s["dipoleFitAttempted"],
            "trail": np.log1p(np.nan_to_num(s["trailLength"])),
            "log_science": np.arcsinh(s["scienceFlux"] / s["scienceFluxErr"]),
            "log_template": np.arcsinh(s["templateFlux"] / s["psfFluxErr"]),
            "change": np.log(np.abs(s["psfFlux"]) / template),
            "masked": masked,
            "masked_center": s["pixelFlags_crCenter"] | s["pixelFlags_interpolatedCenter"],
        }


def _of_stamps(stamps: Sequence[Stamp], sign: Floats) -> dict[str, Floats]:
    names = (
        "sharpness",
        "counterweight",
        "log_template_peak",
        "ring_noise",
        "ring_slope",
        "halo",
        "off_peak",
    )
    rows = [_of_stamp(stamp, s) for stamp, s in zip(stamps, sign, strict=True)]
    return dict(zip(names, np.array(rows, np.float64).T, strict=True))


def _of_stamp(stamp: Stamp, sign: float) -> tuple[float, ...]:
    """In units of the noise, with the source's own sign made positive."""
    size = stamp.difference.image.shape[0]
    dy, dx = np.mgrid[:size, :size] - size // 2
    radius = np.hypot(dx, dy) / kernel_sigma(stamp.psf_difference)
    noise = np.sqrt(stamp.difference.variance)
    z = np.nan_to_num(sign * stamp.difference.image / noise)
    below = np.nan_to_num(stamp.template.image / noise)
    inside, ring = z[radius < _INSIDE], z[(radius >= _RING[0]) & (radius < _RING[1])]
    brightest = int(np.argmax(np.where(radius < _INSIDE, z, -np.inf)))
    near = z[radius < _CORE]
    return (
        float(z.flat[brightest] / (np.abs(near).sum() + 1.0)),
        float(np.clip(-inside, 0.0, None).sum() / (np.abs(inside).sum() + 1e-6)),
        float(np.arcsinh(below[radius < _INSIDE].max())),
        float(np.log(ring.std() + 0.1)),
        float(np.arcsinh(ring.mean())),
        float(((stamp.difference.mask & np.uint16(Mask.HALO)) != 0)[radius < _INSIDE].mean()),
        float(radius.flat[brightest]),
    )
