"""Boosted decision trees for two classes, kept as text (Friedman 2001, Ann. Statist. 29, 1189)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DEPTH = 3
_INNER, _LEAVES = 2**DEPTH - 1, 2**DEPTH
_BINS = 48
_RATE = 0.08
_RIDGE = 2.0
_LEAST_WEIGHT = 3.0


@dataclass(frozen=True, eq=False)
class Trees:
    """Full binary trees of depth 3: `feature`, `threshold` (n, 7), `value` (n, 8).

    Node k's children are 2k + 1 and, where the feature exceeds the threshold, 2k + 2. `value` is what a leaf
    adds to the log odds, which begin with `start`.
    """

    start: float
    feature: Ints
    threshold: Floats
    value: Floats

    def log_odds(self, values: Floats) -> Floats:
        """(rows,) of features (rows, m)."""
        total = np.full(len(values), self.start)
        for feature, threshold, value in zip(self.feature, self.threshold, self.value, strict=True):
            total += value[_leaf(values, feature, threshold)]
        return total


def boost(values: Floats, labels: Bools, weights: Floats, rounds: int) -> Trees:
    """Trees for labels (rows,) given features (rows, m): Newton's steps down the weighted logistic loss."""
    edges = [np.unique(np.quantile(column, np.linspace(0.0, 1.0, _BINS + 1)[1:-1])) for column in values.T]
    binned = np.column_stack([np.searchsorted(e, column) for e, column in zip(edges, values.T, strict=True)])
    share = (weights * labels).sum() / weights.sum()
    start = float(np.log(share / (1.0 - share)))
    total, grown = np.full(len(values), start), []
    for _ in range(rounds):
        p = 1.0 / (1.0 + np.exp(-total))
        tree = _tree(binned, edges, weights * (labels - p), weights * p * (1.0 - p))
        total += tree[2][_leaf(values, *tree[:2])]
        grown.append(tree)
    feature, threshold, value = (np.array(parts) for parts in zip(*grown, strict=True))
    return Trees(start, feature, threshold, value)


def _leaf(values: Floats, feature: Ints, threshold: Floats) -> Ints:
    node = np.zeros(len(values), np.int64)
    rows = np.arange(len(values))
    for _ in range(DEPTH):
        node = 2 * node + 1 + (values[rows, feature[node]] > threshold[node])
    leaf: Ints = node - _INNER
    return leaf


def _tree(binned: Ints, edges: list[Floats], gradient: Floats, hessian: Floats) -> tuple[Ints, Floats, Floats]:
    """One tree. A node that no split betters sends everything to its first child."""
    feature, threshold = np.zeros(_INNER, np.int64), np.full(_INNER, np.inf)
    node = np.zeros(len(binned), np.int64)
    for k in range(_INNER):
        here = node == k
        split = _best_split(binned[here], gradient[here], hessian[here])
        if split is not None:
            feature[k], threshold[k] = split[0], edges[split[0]][split[1]]
            node[here] = 2 * k + 1 + (binned[here, split[0]] > split[1])
        else:
            node[here] = 2 * k + 1
    leaf = node - _INNER
    up = np.bincount(leaf, gradient, _LEAVES)
    down = np.bincount(leaf, hessian, _LEAVES)
    return feature, threshold, _RATE * up / (down + _RIDGE)


def _best_split(binned: Ints, gradient: Floats, hessian: Floats) -> tuple[int, int] | None:
    """(feature, last bin of the first child) that lowers the loss most."""
    best, found = 1e-9, None
    g_all, h_all = gradient.sum(), hessian.sum()
    for m in range(binned.shape[1]):
        g = np.cumsum(np.bincount(binned[:, m], gradient, _BINS + 1))[:-1]
        h = np.cumsum(np.bincount(binned[:, m], hessian, _BINS + 1))[:-1]
        gain = g**2 / (h + _RIDGE) + (g_all - g) ** 2 / (h_all - h + _RIDGE) - g_all**2 / (h_all + _RIDGE)
        gain[(h < _LEAST_WEIGHT) | (h_all - h < _LEAST_WEIGHT)] = 0.0
        at = int(np.argmax(gain))
        if gain[at] > best:
            best, found = float(gain[at]), (m, at)
    return found
