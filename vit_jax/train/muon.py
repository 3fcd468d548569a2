"""Muon: the momentum of each hidden matrix is made orthogonal before it is followed.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025
(arXiv:2502.16982, equation 4), which gives Muon's updates the size of AdamW's, so that learning
rates and weight decays found for AdamW hold for both.
"""

import math
import re
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from vit_jax.errors import UserError
from vit_jax.train.parameter_rules import Rules, per_parameter, stack_depths

# The root mean square of AdamW's updates, which Liu et al. 2025 observed and give to Muon's.
_RMS = 0.2
_NEWTON_SCHULZ_STEPS = 5
_HEADS_LAST = re.compile(r"(?:.*/)?(?:query|key|value)/kernel")


def scale_by_muon_and_adam(
    rules: Rules[bool], adam: optax.GradientTransformation, momentum: float, dtype: str
) -> optax.GradientTransformation:
    """Muon's direction for the matrices that `rules` select, and `adam`'s for other parameters.

    The layers of stacked blocks are orthogonalised one by one, as if they were not stacked.

    Args:
      rules: Which kernels Muon takes, see `matrices`.
      adam: The transformation for all other parameters.
      momentum: The weight of the old momentum; it is Nesterov's momentum, and starts without bias.
      dtype: The type that Muon's momentum is kept in.
    """

    def matrices_here(tree: Any) -> Any:
        return matrices(tree, rules)

    def scaled(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map(_scale, updates, matrices_here(updates))

    muon = optax.contrib.scale_by_muon(
        ns_steps=_NEWTON_SCHULZ_STEPS,
        beta=momentum,
        mu_dtype=dtype,
        weight_dimension_numbers=matrices_here,
    )
    return optax.partition(
        {"muon": optax.chain(muon, optax.stateless(scaled)), "adam": adam},
        lambda tree: jax.tree.map(
            lambda _, matrix: "adam" if matrix is None else "muon", tree, matrices_here(tree)
        ),
    )


def matrices(params: Any, rules: Rules[bool]) -> Any:
    """A tree like `params` of the axes of Muon's matrices, and None for all other parameters.

    Muon takes a parameter that is called `kernel`, that the rules select, and that has more than
    one input and more than one output. An attention's query, key and value [D, heads, d] map D
    inputs to heads · d outputs, and its output [heads, d, D] maps heads · d inputs to D outputs. A
    convolution [height, width, inputs, outputs] maps a window to its outputs; one with a single
    input channel is a filter for each channel, and no matrix.

    Args:
      params: Parameters or updates, whole or in part.
      rules: Pairs (regex on parameter names, whether Muon takes kernels of these names).

    Raises:
      UserError: for rules that tell the layers of stacked blocks apart.
    """
    selected = per_parameter(rules, params, "muon_rules", partly=True)

    def matrix(path: Any, leaf: Any, depth: int, select: Any) -> MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not isinstance(select, (bool, int, float)):
            raise UserError(
                f"muon_rules tells the layers of {name} apart, which one array holds; give all of "
                "them the same value, or set scan=False"
            )
        axes = tuple(range(bool(depth), leaf.ndim))
        if not select or not re.fullmatch("(?:.*/)?kernel", name) or len(axes) < 2:
            return None
        split = 1 if _HEADS_LAST.fullmatch(name) else -1
        numbers = MuonDimensionNumbers(axes[:split], axes[split:])
        flat = len(axes) > 3 and leaf.shape[-2] == 1
        return None if flat or min(_sides(leaf.shape, numbers)) == 1 else numbers

    return jax.tree_util.tree_map_with_path(matrix, params, stack_depths(params), selected)


def newton_schulz_flops(params: Any, rules: Rules[bool]) -> float:
    """Floating point operations of one update's orthogonalisations, on one device.

    An iteration on an m × n matrix X with m ≤ n makes the products X Xᵀ, its square, and their sum
    with X, which are 4 m² n + 2 m³ operations.
    """
    total = 0.0
    for leaf, numbers in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(matrices(params, rules), is_leaf=_is_matrix),
        strict=True,
    ):
        if numbers is not None:
            m, n = sorted(_sides(leaf.shape, numbers))
            total += leaf.size / (m * n) * (4 * m * m * n + 2 * m**3)
    return _NEWTON_SCHULZ_STEPS * total


def _scale(update: jax.Array, numbers: MuonDimensionNumbers) -> jax.Array:
    return update * (_RMS * math.sqrt(max(_sides(update.shape, numbers))))


def _sides(shape: tuple[int, ...], numbers: MuonDimensionNumbers) -> tuple[int, int]:
    """The number of inputs and of outputs."""
    sides: Any = numbers
    inputs, outputs = (math.prod(shape[i] for i in axes) for axes in sides)
    return inputs, outputs


def _is_matrix(x: Any) -> bool:
    return x is None or isinstance(x, MuonDimensionNumbers)
