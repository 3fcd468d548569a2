"""How good frozen features are: a linear probe in closed form, and k nearest neighbours.

NumPy on the host; features come from `vit_jax.evaluate.features`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from vit_jax.errors import UserError

# The bias is the weight of a constant feature so large that the penalty hardly touches it.
_BIAS = 100.0
# The strength that big_vision always uses; taken here if no example can be held out.
DEFAULT_L2 = 2.0**10
L2S = tuple(2.0**i for i in range(-10, 21, 2))
_MOST_FOLDS = 5
# The number of similarities of queries and training examples that are in memory at once.
_BLOCK = 2**26


@dataclasses.dataclass(frozen=True)
class Examples:
    """Features [N, D] of N examples, and their classes, int [N] from 0 to `num_classes` - 1."""

    features: np.ndarray
    labels: np.ndarray
    num_classes: int

    def __post_init__(self):
        if not len(self.labels):
            raise UserError("a probe needs at least one example; got none")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: np.ndarray) -> Self:
        return dataclasses.replace(self, features=self.features[rows], labels=self.labels[rows])


@dataclasses.dataclass(frozen=True)
class RidgePath:
    """Least squares with a penalty, solved for every strength of the penalty at once.

    Regresses features, each scaled to mean 0 and deviation 1 over the examples, on {-1, 1}^K
    (Dosovitskiy et al. 2021, arXiv:2010.11929, section 4.1). With X [N, D + 1], whose last column
    is the bias's, and targets Y:

      W(l2) = (X'X + l2 I)^-1 X'Y = X' (XX' + l2 I)^-1 Y = left (eigenvalues + l2)^-1 right,

    from one decomposition of the smaller of X'X and XX'. Float64.
    """

    mean: np.ndarray
    std: np.ndarray
    eigenvalues: np.ndarray
    left: np.ndarray
    right: np.ndarray

    @classmethod
    def fit(cls, examples: Examples) -> Self:
        """Decomposes the examples' features, after which any strength is cheap to solve."""
        features = examples.features.astype(np.float64)
        mean, std = features.mean(axis=0), features.std(axis=0) + 1e-5
        x = _with_bias((features - mean) / std)
        y = 2.0 * np.eye(examples.num_classes)[examples.labels] - 1.0
        if x.shape[0] >= x.shape[1]:
            eigenvalues, q = np.linalg.eigh(x.T @ x)
            return cls(mean, std, eigenvalues, q, q.T @ (x.T @ y))
        eigenvalues, q = np.linalg.eigh(x @ x.T)
        return cls(mean, std, eigenvalues, x.T @ q, q.T @ y)

    def scores(self, features: np.ndarray, l2: float) -> np.ndarray:
        """Features [N, D] to scores [N, num_classes]; the class of the largest is predicted."""
        weights = (self.left / (self.eigenvalues + l2)) @ self.right
        return _with_bias((features - self.mean) / self.std) @ weights

    def correct(self, examples: Examples, l2: float) -> int:
        """The number of examples whose class is predicted with the penalty `l2`."""
        predicted = self.scores(examples.features, l2).argmax(axis=-1)
        return int((predicted == examples.labels).sum())


def _with_bias(x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 1)), constant_values=_BIAS)


def choose_l2(examples: Examples, l2s: Sequence[float] = L2S) -> float:
    """The strength of the penalty that does best in cross-validation over `examples`.

    Every fold has its share of each class. Of equally good strengths the middle one is chosen. If
    a class has only one example, nothing can be held out, and the strength nearest to `DEFAULT_L2`
    is chosen.

    Raises:
      UserError: if `l2s` is empty or holds a value that is not above 0.
    """
    l2s = sorted(l2s)
    if not l2s or l2s[0] <= 0:
        raise UserError(f"the values of l2 must be above 0, and at least one; got {l2s}")
    sizes = np.bincount(examples.labels)
    folds = min(int(sizes[sizes > 0].min()), _MOST_FOLDS)
    if len(l2s) == 1 or folds < 2:
        return min(l2s, key=lambda l2: abs(np.log2(l2 / DEFAULT_L2)))
    fold = _ranks(examples.labels) % folds
    correct = np.zeros(len(l2s), int)
    for held_out in range(folds):
        path = RidgePath.fit(examples[fold != held_out])
        correct += [path.correct(examples[fold == held_out], l2) for l2 in l2s]
    best = np.flatnonzero(correct == correct.max())
    return l2s[best[(len(best) - 1) // 2]]


def _ranks(labels: np.ndarray) -> np.ndarray:
    """The position of each example among the examples of its class, counted from 0."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order], side="left")
    ranks = np.empty(len(labels), int)
    ranks[order] = np.arange(len(labels)) - starts
    return ranks


def linear_probe(train: Examples, test: Examples, l2s: Sequence[float] = L2S) -> dict[str, float]:
    """The 'l2' chosen on `train` alone, and the accuracy 'top1' of the probe on `test`, 0 to 1."""
    l2 = choose_l2(train, l2s)
    return {"l2": l2, "top1": RidgePath.fit(train).correct(test, l2) / len(test)}


def knn_votes(
    train: Examples, queries: np.ndarray, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """The votes [N, num_classes] of the `k` training examples most similar to each query [N, D].

    The similarity s is the cosine, and a vote counts exp(s / temperature) (Wu et al. 2018,
    arXiv:1805.01978, section 3.4). The default k = 20 is that of DINO (arXiv:2104.14294).

    Raises:
      UserError: for a `k` that is not 1 to the number of training examples.
    """
    check_k(k, len(train))
    keys, queries = _unit(train.features), _unit(queries)
    votes = np.zeros((len(queries), train.num_classes))
    rows = max(1, _BLOCK // len(train))
    for start in range(0, len(queries), rows):
        block = votes[start : start + rows]
        similar = queries[start : start + rows] @ keys.T
        nearest = np.argpartition(-similar, k - 1, axis=-1)[:, :k]
        weights = np.exp(np.take_along_axis(similar, nearest, axis=-1) / temperature)
        np.add.at(block, (np.arange(len(block))[:, None], train.labels[nearest]), weights)
    return votes


def check_k(k: int, examples: int) -> None:
    """Raises UserError for a number of neighbours that is not 1 to that of the examples."""
    if not 1 <= k <= examples:
        raise UserError(f"k={k} neighbours of {examples} training examples; expected 1 to all")


def _unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.maximum(norm, np.finfo(x.dtype).tiny)


def knn(train: Examples, test: Examples, k: int = 20, temperature: float = 0.07) -> float:
    """The top-1 accuracy on `test` by the votes of the nearest examples of `train`, 0 to 1."""
    predicted = knn_votes(train, test.features, k, temperature).argmax(axis=-1)
    return float((predicted == test.labels).mean())
