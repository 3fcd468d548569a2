"""Writes what is generated from the families: sizes, fingerprints, the table of docs/models.md.

`python -m vit_jax.families.generate` does it, without computing anything; run it after a family was
added or changed. That takes minutes: with names of families behind it only these are counted, and
the others stay as they are recorded. A test fails when the files are not up to date.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

from vit_jax.errors import UserError
from vit_jax.families import fingerprints, sizes
from vit_jax.families.family import Config, Family, is_head
from vit_jax.families.registry import families, registered, resolve
from vit_jax.families.rules import Table
from vit_jax.families.sizes import Size
from vit_jax.variables import arrays, named

_ROOT = pathlib.Path(__file__).parents[2]
TABLE = _ROOT / "docs" / "models.md"
ERRORS = _ROOT / "benchmarks" / "zoo.json"  # measured by benchmarks/zoo.py
BEGIN, END = "<!-- families: generated -->", "<!-- families: end -->"


@functools.lru_cache(1)
def traced(name: str) -> tuple[Any, dict[str, Any]]:
    """A registered model's program, and its variables as shapes: no arrays are made."""
    import jax

    from vit_jax.checkpoint.names import one_of
    from vit_jax.models import get_model

    spec = resolve(name)
    model = get_model(name)
    size = spec.preprocess.height_width
    inputs = [jax.ShapeDtypeStruct(*x) for x in one_of(spec.config.to_dict(), size).values()]
    # One trace gives both figures: an initialiser draws numbers and multiplies none with another.
    trace = jax.make_jaxpr(
        lambda *x: model.init(jax.random.key(0), *x, train=False), return_shape=True
    )
    jaxpr, variables = trace(*inputs)
    return jaxpr, variables


def measure(name: str) -> Size:
    """Counts a registered model from its code."""
    import jax

    from vit_jax.evaluate.flops import count_macs

    spec, (jaxpr, variables) = resolve(name), traced(name)
    params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    config = spec.config.to_dict()
    shapes = {n: tuple(leaf.shape) for n, leaf in arrays(named(variables)).items()}
    body = fingerprints.body(families()[spec.family], config, shapes)
    return Size(params, count_macs(jaxpr.jaxpr), body)


def fingerprint_rows() -> list[list[str]]:
    """[fingerprint, family, layout, model, …]: all names that a file of a model can have."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, family in families().items():
        models = [
            (n, a.config, any(w.num_classes != 0 for w in a.weights.values()))
            for n, a in family.architectures.items()
            if a.alias_of is None
        ]
        for model, config, heads in [*models, *(("", form, True) for form in family.forms)]:
            for layout, names in _names(family, config, heads):
                key = (fingerprints.fingerprint(names), name, layout)
                found.setdefault(key, [])
                if model and model not in found[key]:
                    found[key].append(model)
    return [[*key, *models] for key, models in found.items()]


def _names(family: Family, config: Config, heads: bool) -> Iterator[tuple[str, list[str]]]:
    """Every layout's names, with the head and without; without `heads` the latter alone.

    A size that was published without a head is not found in files of others that have one.
    """
    for layout, known in family.layouts.items():
        whole = [known.table] if heads else []
        for table in (*whole, known.headless or _without_head(known.table)):
            with contextlib.suppress(UserError):  # a layout that cannot hold the model
                rows = table(config)
                if known.reading is None:
                    ours = {o for r in rows for o in r.ours}
                    zeros = [theirs for theirs, like in known.zeros.items() if like in ours]
                    yield layout, [*(r.theirs for r in rows), *zeros]
                yield fingerprints.LINEN, [o for r in rows for o in r.ours]
    if family.shapes is not None:
        for num_classes in (1, 0):
            yield fingerprints.LINEN, list(family.shapes(config, num_classes, (224, 224)) or {})


def _without_head(table: Callable[[Config], Table]) -> Callable[[Config], Table]:
    return lambda config: [r for r in table(config) if not is_head(r.ours[0])]


def table_rows() -> list[str]:
    """The table of families: the header, and one line each."""
    errors = json.loads(ERRORS.read_text())
    known = sizes.recorded()
    lines = [
        "| family | paper (arXiv) | variants | parameters, M | GFLOPs | published top-1 "
        "| reference | error (float64) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, family in families().items():
        models = [n for n, a in family.architectures.items() if a.alias_of is None]
        if family.infer is not None:
            continue  # the original's own models have a table of their own
        costs = [known[n] for n in models]
        top1 = [x for n in models if (x := family.architectures[n].default.top1) is not None]
        cells = (
            family.title,
            f"[{family.paper}](https://arxiv.org/abs/{family.paper})",
            f"{len(models)}: `{models[0]}` … `{models[-1]}`",
            _range([c.params / 1e6 for c in costs]),
            _range([c.macs / 1e9 for c in costs]),
            _range(top1),
            # No library holds what is not measured: tests have recorded figures of official code.
            family.reference if name in errors else family.figures,
            errors.get(name, "at most 1e-9"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _range(values: list[float]) -> str:
    if not values:
        return "–"
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} – {high}"


def with_table(page: str) -> str:
    """The page's text with the table of families between its markers."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    table = "\n".join(table_rows())
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main(changed: Collection[str] = ()) -> None:
    """Writes all files; sizes are counted of the families in `changed`, or of all without any."""
    if unknown := set(changed) - set(families()):
        raise UserError(f"no family {sorted(unknown)}; known: {', '.join(families())}")
    known = sizes.recorded() if changed else {}
    kept = {name: size for name, size in known.items() if resolve(name).family not in changed}
    rows = {name: dataclasses.asdict(kept.get(name) or measure(name)) for name in registered()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    sizes.FILE.write_text(f"{{\n{lines}\n}}\n")
    rows = ",\n".join(f"  {json.dumps(row)}" for row in fingerprint_rows())
    fingerprints.FILE.write_text(f"[\n{rows}\n]\n")
    TABLE.write_text(with_table(TABLE.read_text()))
    print(f"{len(registered())} models: {sizes.FILE}, {fingerprints.FILE} and {TABLE} written")


if __name__ == "__main__":
    main(sys.argv[1:])
