"""Parameters and multiply-adds of every registered model.

The figures stand in `sizes.json`, so that listing the models needs no JAX;
`python -m vit_jax.families.sizes` writes the file anew from the code, without computing anything.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

_FILE = pathlib.Path(__file__).with_name("sizes.json")


@dataclasses.dataclass(frozen=True)
class Size:
    """What one image costs.

    Attributes:
      params: Number of parameters, the head included.
      macs: Multiply-adds of one forward pass in matrix products and convolutions, the figure
        that papers print as FLOPs (Swin, arXiv:2103.14030, Table 1).
    """

    params: int
    macs: int


def recorded() -> dict[str, Size]:
    """The size of every registered model, at its own image size and head, by name."""
    return {name: Size(**fields) for name, fields in json.loads(_FILE.read_text()).items()}


def measure(name: str) -> Size:
    """Counts a registered model from its code. Shapes only: no arrays are made."""
    import jax

    from vit_jax.families.registry import resolve
    from vit_jax.models import get_model

    spec = resolve(name)
    model = get_model(name)
    image = jax.ShapeDtypeStruct((1, spec.preprocess.size, spec.preprocess.size, 3), "float32")
    # One trace gives both figures: an initialiser draws numbers and multiplies none with another.
    trace = jax.make_jaxpr(
        lambda x: model.init(jax.random.key(0), x, train=False), return_shape=True
    )
    jaxpr, variables = trace(image)
    params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return Size(params, count_macs(jaxpr.jaxpr))


def count_macs(jaxpr: Any) -> int:
    """Multiply-adds of all matrix products and convolutions in a jaxpr.

    Of a conditional's branches the dearest counts. Raises ValueError for a `while` loop that
    holds a product, because its trip count is not known beforehand.
    """
    return sum(_equation_macs(equation) for equation in jaxpr.eqns)


def _equation_macs(equation: Any) -> int:
    match equation.primitive.name:
        case "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            left, product = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            return math.prod(product) * math.prod(left[axis] for axis in contracting)
        case "conv_general_dilated":
            kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            features_axis = equation.params["dimension_numbers"].rhs_spec[0]
            return math.prod(result) * math.prod(kernel) // kernel[features_axis]
        case "cond":
            return max(count_macs(branch.jaxpr) for branch in equation.params["branches"])
        case "scan":
            return equation.params["length"] * count_macs(equation.params["jaxpr"].jaxpr)
        case "while":
            if inner := sum(map(count_macs, _inner_jaxprs(equation))):
                raise ValueError(f"a while loop of unknown length holds {inner} multiply-adds")
            return 0
        case _:
            return sum(map(count_macs, _inner_jaxprs(equation)))


def _inner_jaxprs(equation: Any) -> list[Any]:
    """What a call-like equation (jit, remat, custom_jvp, …) calls."""
    inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
    return [value for value in inner if hasattr(value, "eqns")]


def main() -> None:
    from vit_jax.families.registry import registered

    rows = {name: dataclasses.asdict(measure(name)) for name in registered()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    _FILE.write_text(f"{{\n{lines}\n}}\n")
    print(f"{len(rows)} models written to {_FILE}")


if __name__ == "__main__":
    main()
