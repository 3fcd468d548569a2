"""A checkpoint of any format, open: what is known of it, and its tensors under our names."""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint import facts, hf_dir, names, recognise, recorded
from vit_jax.checkpoint.facts import Facts
from vit_jax.checkpoint.files.archive import Archive, Spec, View, reading
from vit_jax.checkpoint.files.fetch import fetch
from vit_jax.checkpoint.files.formats import open_archive
from vit_jax.checkpoint.files.orbax import is_orbax, newest_step
from vit_jax.checkpoint.names import Tensors
from vit_jax.checkpoint.stacked import stacked_names
from vit_jax.errors import UserError
from vit_jax.families.family import Size, channels
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.rules import listed

log = logging.getLogger(__name__)

# Trainers put the parameters beside the optimizer's state; the original's in a tuple, `0/`.
_PREFIXES = ("opt/target/", "0/target/", "target/", "params/", "0/")
# What PyTorch's training scripts wrap weights in; the second ones are moving averages.
_PLAIN = ("state_dict", "model", "module", "net", "_orig_mod", "student")
_AVERAGED = ("state_dict_ema", "model_ema", "ema", "teacher", "params_ema")
_NO_WEIGHTS = ("optimizer", "optim", "lr_scheduler", "scheduler", "scaler", "amp")
_WRAPPER = re.compile(rf"({'|'.join((*_PLAIN, *_AVERAGED))})\.")


@dataclasses.dataclass
class Source:
    """An open checkpoint. Close it, or use `with`.

    Attributes:
      archive: The file.
      view: Its parameters by the file's names, unstacked, without a trainer's prefixes.
      facts: What is known of it.
      image_size: What the caller gave.
    """

    archive: Archive
    view: View
    facts: Facts
    image_size: Size | None

    def to_linen(self, file: Tensors) -> Tensors:
        """Tensors of the file's names under ours, lazily."""
        if self.facts.config is None:
            return file
        size = self.image_size or self.facts.image_size
        return recognise.read(file, self.facts.config, self._layout, size)[0]

    @property
    def _layout(self) -> str:
        layout = self.facts.layout
        return names.LINEN if layout == "released" else layout

    def params(self) -> Tensors:
        """The parameters and statistics by our names, each read when asked for.

        Raises UserError where the model is not known, or several fit.
        """
        self.facts.require_model()
        return self.to_linen(self.view)

    def head_is_zero(self) -> bool | None:
        """Whether every number of the head is zero; None without a head."""
        if self.facts.config is None or not self.facts.num_classes:
            return None
        tensors = self.to_linen(self.view)
        return not any(tensors[n].any() for n in tensors if names.is_head(n) and "norm" not in n)

    def close(self) -> None:
        self.archive.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def specs_of(pipeline: Callable[[Tensors], Tensors], specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """What a pipeline makes of tensors of these shapes and dtypes, found on empty ones."""
    made = pipeline({name: spec.dummy() for name, spec in specs.items()})
    return {name: Spec(x.shape, x.dtype) for name, x in made.items()}


def open_source(
    path: str | os.PathLike,
    model: Any = None,
    image_size: Size | None = None,
    *,
    part: str | None = None,
) -> Source:
    """Opens and recognises a checkpoint.

    Args:
      path: A file or its address, a directory of Hugging Face, timm or Orbax, or the workdir of a
        run, of which the newest checkpoint is taken.
      model: Name or config of the model in it, where the file does not tell.
      image_size: (height, width) in pixels, needed only for files whose model computes its
        positions.
      part: Which of several sets of weights is meant, by the name under which the file has it:
        `model` or `model_ema`.

    Raises:
      UserError: for a file that is unreadable, damaged or of no known format, that does not hold
        `model`, or that holds several sets of weights and `part` says not which.
    """
    given = str(path)
    path = fetch(path)
    if not path.exists():
        raise UserError(
            f"no such file or directory {str(path)!r}; expected a checkpoint (.npz, .safetensors, "
            "…) or the workdir of a run"
        )
    weights, beside = _located(path) if path.is_dir() else (path, {})
    archive = open_archive(weights)
    try:
        view, skipped = _parameters(archive, part)
        found = recorded.read(archive, beside)
        known = _facts(given, archive, view, found, model, image_size, skipped, bool(beside))
        return Source(archive, view, known, image_size)
    except BaseException:
        archive.close()
        raise


def _located(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """Where a directory's weights are, and the JSON objects beside them."""
    with reading(folder, "directory"):
        if (folder / hf_dir.CONFIG).exists():
            beside = hf_dir.read(folder)
            recorded.read_beside(beside)  # an unknown model is said before missing weights
            return hf_dir.weights(folder), beside
        if is_orbax(folder):
            return folder, {}
        if (step := newest_step(folder)) is not None:
            return step, {}
    raise UserError(
        f"{str(folder)!r} holds no checkpoint: expected the workdir of a run (`checkpoint_N`), a "
        f"directory of Orbax, or one of Hugging Face or timm ({hf_dir.CONFIG})"
    )


def _parameters(archive: Archive, part: str | None) -> tuple[View, list[str]]:
    """Parameters and statistics, unstacked, without a trainer's prefix; and what else there is."""
    prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in archive)), "")
    if not prefix:
        prefix = _wrapper(archive, part)
    elif part is not None:
        raise UserError(f"{str(archive.path)!r} holds one set of weights only, no {part!r}")
    inside = {n.removeprefix(prefix): n for n in archive if n.startswith(prefix)}
    skipped = sorted(set(archive) - set(inside.values()))
    if skipped:
        log.info("not parameters, skipped: %s", listed(skipped))
    unstacked = stacked_names({new: archive.specs[old].shape for new, old in inside.items()})
    return View(archive, {n: (inside[stack], i) for n, (stack, i) in unstacked.items()}), skipped


def _wrapper(archive: Archive, part: str | None) -> str:
    """What stands before the names of the weights that are meant, in PyTorch's files."""
    prefix = ""
    while True:
        inside = [n.removeprefix(prefix) for n in archive if n.startswith(prefix)]
        first = {m[1] for n in inside if (m := _WRAPPER.match(n))}
        sets = [w for w in (*_PLAIN, *_AVERAGED) if w in first]
        if part in sets:
            prefix, part = f"{prefix}{part}.", None
            continue
        if _is_a_model([n for n in inside if not _WRAPPER.match(n)]):
            sets = ["", *sets] if sets else []
        if part is not None and not sets:
            raise UserError(f"{str(archive.path)!r} holds no weights {part!r}")
        if len(sets) > 1:
            raise _several(archive, prefix, sets, part)
        if not sets:
            return prefix
        prefix += f"{sets[0]}."


def _is_a_model(bare: list[str]) -> bool:
    """Whether these names, which lie in no wrapper, are of a model's weights."""
    kept = [n for n in bare if not n.startswith(_NO_WEIGHTS)]
    return sum(n.endswith((".weight", ".bias")) for n in kept) > 1


def _several(archive: Archive, prefix: str, sets: list[str], part: str | None) -> UserError:
    called = ", ".join(repr(f"{prefix}{name}") if name else "one without a name" for name in sets)
    asked = f", and no {part!r}" if part else ""
    return UserError(
        f"{str(archive.path)!r} holds several sets of weights: {called}{asked}. Say which one is "
        f"meant: --part {sets[-1]}"
    )


def _facts(
    path: str,
    archive: Archive,
    view: View,
    found: recorded.Recorded,
    model: Any,
    image_size: Size | None,
    skipped: list[str],
    is_directory: bool,
) -> Facts:
    shapes = {n: s.shape for n, s in view.specs.items()}
    decision = facts.decide(path, shapes, found, model)
    chosen = decision.chosen
    common = {
        "path": path,
        "format": "hf" if is_directory else archive.format,
        "recorded": found.config is not None,
        "history": found.history,
        "skipped": tuple(skipped),
        "metadata": archive.metadata,
        "class_names": found.class_names,
    }
    notes = (*found.notes, *decision.notes)
    if chosen is None:
        layouts = list(dict.fromkeys(c.layout for c in decision.candidates))
        tensors = dict(view.specs)
        return Facts(
            layout=facts.layout_name(layouts[0] if layouts else names.LINEN, shapes),
            models=tuple(str(c.name) for c in decision.candidates),
            candidates=decision.candidates,
            undecided=decision.why_not,
            ambiguous=(),
            name="",
            config=None,
            num_params=facts.count(tensors, None),
            dtypes=_dtypes(tensors),
            grid=None,
            image_size=None,
            num_classes=names.num_classes_of(
                decision.candidates[0].shapes if decision.candidates else shapes
            ),
            preprocess=found.preprocess,
            notes=notes,
            steps=(),
            needs_size=False,
            tensors=tensors,
            **common,
        )
    computed = names.layout_of(chosen.config, chosen.layout).computed(shapes)
    needs_size = computed and image_size is None
    size = image_size if computed else facts.image_size_of(chosen, found.image_size)
    tensors = specs_of(
        lambda file: recognise.read(file, chosen.config, chosen.layout, image_size)[0], view.specs
    )
    steps = recognise.read(
        {n: s.dummy() for n, s in view.specs.items()}, chosen.config, chosen.layout, image_size
    )[1]
    spec = decision.spec
    fallback = spec.preprocess if spec is not None else Preprocess()
    preprocess = found.preprocess or fallback
    if preprocess.channels != (count := channels(chosen.config)):
        preprocess = preprocess.for_channels(count)
        notes += (_assumed(preprocess),)
    return Facts(
        layout=facts.layout_name(chosen.layout, shapes),
        models=_models(chosen),
        candidates=(),
        undecided="",
        ambiguous=_ambiguous(chosen, needs_size),
        name=found.name or (spec.name if spec is not None else _stem(archive)),
        config=chosen.config,
        num_params=facts.count(tensors, chosen.config),
        dtypes=_dtypes(tensors),
        grid=facts.grid_of(chosen, size),
        image_size=size,
        num_classes=names.num_classes_of(chosen.shapes),
        preprocess=preprocess,
        notes=notes,
        steps=() if needs_size else steps,
        needs_size=needs_size,
        tensors=tensors,
        **common,
    )


def _assumed(preprocess: Preprocess) -> str:
    count, mean, std = preprocess.channels, preprocess.mean[0], preprocess.std[0]
    return (
        f"its images have {'one channel' if count == 1 else f'{count} channels'}, and nothing "
        f"records their mean and deviation; the average of RGB's is taken: {mean:.4g}, {std:.4g}"
    )


def _stem(archive: Archive) -> str:
    return archive.path.stem


def _models(chosen: recognise.Candidate) -> tuple[str, ...]:
    return (chosen.name,) if chosen.name else ()


def _dtypes(tensors: Mapping[str, Spec]) -> dict[str, int]:
    dtypes: dict[str, int] = {}
    for spec in tensors.values():
        dtypes[spec.dtype.name] = dtypes.get(spec.dtype.name, 0) + 1
    return dtypes


def _ambiguous(chosen: recognise.Candidate, needs_size: bool) -> tuple[str, ...]:
    found = []
    if not recognise.heads_known(chosen.config):
        found.append(
            "the number of attention heads: PyTorch files do not hold it, and no registered model "
            "has these sizes"
        )
    found += names.get(chosen.config).leaves_open(chosen.config)
    if needs_size:
        found.append("the image size: the model computes its position embeddings (sincos2d)")
    return tuple(found)


def read_all(source: Source) -> dict[str, np.ndarray]:
    """Every parameter and statistic by our names, as arrays of their own memory."""
    return {name: np.array(x, order="C") for name, x in source.params().items()}
