"""What training code puts around a model's weights, and where in a file the weights are.

A wrapper shows as a beginning of names: `module._orig_mod.` of a compiled and distributed model,
`state_dict.model.` of a trainer's checkpoint, `backbone.` of a class of somebody's own.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from vit_jax.checkpoint import recognise
from vit_jax.checkpoint.files.archive import Archive, Spec
from vit_jax.errors import UserError

# Trainers in JAX put the parameters beside the optimizer's state; the original's in a tuple, `0/`.
_JAX = ("opt/target/", "0/target/", "target/", "params/", "0/")
# What PyTorch's training scripts wrap weights in; the second ones are moving averages.
_PLAIN = ("state_dict", "model", "module", "net", "_orig_mod", "student")
_AVERAGED = ("state_dict_ema", "model_ema", "ema", "teacher", "params_ema")
_NO_WEIGHTS = ("optimizer", "optim", "lr_scheduler", "scheduler", "scaler", "amp")
_WRAPPER = re.compile(rf"({'|'.join((*_PLAIN, *_AVERAGED))})\.")
# Low-rank and other adapters (peft's names, and those of LoRA's first code).
_ADAPTER = re.compile(
    r"(.*[./])?(lora_[A-Za-z]\w*|lora_magnitude_vector|base_layer|ia3_l|hada_w\d\w*|oft_\w+)([./].*)?"
)
_LEAST = 0.2  # share of the tensors that may be a model's: fewer are a loss's, or a projection's


class Inside(NamedTuple):
    """The weights in a file.

    Attributes:
      names: {name without wrappers: name in the file}.
      notes: What was left out, in words.
    """

    names: dict[str, str]
    notes: tuple[str, ...] = ()


def branch(archive: Archive, part: str | None) -> str | None:
    """`part`, if a file in JAX's names has it as a branch of its tree: a tower; else None."""
    prefix = _jax_prefix(archive)
    is_branch = part and any(n.startswith(f"{prefix}{part}/") for n in archive)
    return part if is_branch else None


def _jax_prefix(archive: Archive) -> str:
    return next((p for p in _JAX if any(n.startswith(p) for n in archive)), "")


def weights_in(archive: Archive, part: str | None) -> Inside:
    """The weights that are meant.

    Args:
      archive: The file.
      part: Which of several sets of weights is meant, by its wrapper; None where there is one.

    Raises:
      UserError: for several sets where `part` says not which, for a `part` that is not there, and
        for adapters that are not merged.
    """
    prefix = _jax_prefix(archive)
    # A run of ours that trains adapters stores the merged weights too, and those are read.
    if adapters := [n for n in archive if n.startswith(prefix) and _ADAPTER.fullmatch(n)]:
        raise _not_merged(str(archive.path), adapters)
    if tower := branch(archive, part):
        others = {n.removeprefix(prefix).split("/")[0] for n in archive if n.startswith(prefix)}
        note = f"the weights {tower!r} are read" + _not_these(sorted(others - {tower}))
        return Inside(_under(archive, f"{prefix}{tower}/"), (note,))
    if prefix:
        if part is not None:
            raise UserError(f"{str(archive.path)!r} holds one set of weights only, no {part!r}")
        return Inside(_under(archive, prefix))
    prefix, chosen = _known(archive, part)
    notes = [chosen] if chosen else []
    inside = _under(archive, prefix)
    shapes = {new: archive.specs[old].shape for new, old in inside.items()}
    if not recognise.is_known(shapes):
        outer, inside = _unknown(archive, prefix, inside)
        prefix += outer
    if prefix:
        notes.append(f"names are read without {prefix!r}")
    return Inside(inside, tuple(notes))


def _under(archive: Archive, prefix: str) -> dict[str, str]:
    return {n.removeprefix(prefix): n for n in archive if n.startswith(prefix)}


def _known(archive: Archive, part: str | None) -> tuple[str, str]:
    """The wrappers of PyTorch's scripts around the weights meant, and a choice in words."""
    prefix, chosen = "", ""
    while True:
        inside = list(_under(archive, prefix))
        first = {m[1] for n in inside if (m := _WRAPPER.match(n))}
        sets = [w for w in (*_PLAIN, *_AVERAGED) if w in first]
        if part is not None and any(n.startswith(f"{part}.") for n in inside):
            others = [w for w in sets if w != part]
            chosen = f"the weights {part!r} are read" + _not_these(others)
            prefix, part = f"{prefix}{part}.", None
            continue
        bare = [n for n in inside if not _WRAPPER.match(n)]
        if len(bare) >= _LEAST * len(inside) and _is_a_model(bare):
            sets = ["", *sets] if sets else []
        if part is not None and not sets:
            raise UserError(f"{str(archive.path)!r} holds no weights {part!r}")
        if len(sets) > 1:
            raise _several(archive, prefix, sets, part)
        if not sets:
            return prefix, chosen
        prefix += f"{sets[0]}."


def _not_these(others: list[str]) -> str:
    return f", not {', '.join(map(repr, others))}" if others else ""


def _is_a_model(bare: list[str]) -> bool:
    """Whether these names, which lie in no wrapper, are of a model's weights."""
    kept = [n for n in bare if not n.startswith(_NO_WEIGHTS)]
    return sum(n.endswith((".weight", ".bias")) for n in kept) > 1


def _several(archive: Archive, prefix: str, sets: list[str], part: str | None) -> UserError:
    called = ", ".join(repr(f"{prefix}{name}") if name else "one without a name" for name in sets)
    asked = f", and no {part!r}" if part else ""
    options = " or ".join(f"--part {name}" for name in sets if name)
    return UserError(
        f"{str(archive.path)!r} holds several sets of weights: {called}{asked}. Say which one is "
        f"meant: {options}"
    )


def _unknown(
    archive: Archive, prefix: str, inside: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """A wrapper of any name in which there is a model, and that model's names; '' for none.

    Raises UserError where there are several beside each other.
    """
    specs = archive.specs
    found: dict[str, dict[str, str]] = {}
    for outer in _beginnings(inside):
        if any(outer.startswith(known) for known in found):
            continue
        kept = {n.removeprefix(outer): old for n, old in inside.items() if n.startswith(outer)}
        rest = {n: old for n, old in inside.items() if not n.startswith(outer)}
        for names in ([{**rest, **kept}] if not kept.keys() & rest.keys() else []) + [kept]:
            if recognise.is_known(_shapes(names, specs)):
                found[outer] = names
                break
    if len(found) > 1:
        raise _several(archive, prefix, [outer.removesuffix(".") for outer in found], None)
    return next(iter(found.items()), ("", dict(inside)))


def _beginnings(names: Iterable[str]) -> Iterator[str]:
    """What many of the names begin with, up to a '.', the shortest first."""
    counts: dict[str, int] = {}
    names = list(names)
    for name in names:
        ends = [i + 1 for i, letter in enumerate(name) if letter == "."]
        for end in ends:
            counts[name[:end]] = counts.get(name[:end], 0) + 1
    most = [begin for begin, count in counts.items() if count >= _LEAST * len(names)]
    yield from sorted(most, key=len)


def _shapes(names: Mapping[str, str], specs: Mapping[str, Spec]) -> dict[str, tuple[int, ...]]:
    return {new: specs[old].shape for new, old in names.items()}


def _not_merged(path: str, adapters: list[str]) -> UserError:
    some = ", ".join(adapters[:2])
    return UserError(
        f"{path!r} holds adapters (such as LoRA's) that are not merged into the weights: {some}, … "
        f"{len(adapters)} tensors. Merge them first: what `vit-jax convert --to lora` wrote by "
        "`vit-jax convert … --merge BASE`; in PyTorch with peft: "
        "`merged = PeftModel.from_pretrained(base_model, adapters).merge_and_unload()`, or "
        "`model.merge_and_unload()` where the model is at hand; then "
        "`torch.save(merged.state_dict(), 'merged.pth')`"
    )
