"""A checkpoint of any format, open: what is known of it, and its tensors under our names."""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax import allow as allowing
from vit_jax.allow import NOT_FINITE, OTHER_FUNCTION, Allow
from vit_jax.checkpoint import facts, hf_dir, names, recognise, recorded, wrappers
from vit_jax.checkpoint.facts import Facts
from vit_jax.checkpoint.files import hub
from vit_jax.checkpoint.files.archive import Archive, Spec, View, reading
from vit_jax.checkpoint.files.fetch import fetch
from vit_jax.checkpoint.files.formats import open_archive
from vit_jax.checkpoint.files.orbax import is_orbax, newest_step
from vit_jax.checkpoint.names import Tensors
from vit_jax.checkpoint.stacked import stacked_names
from vit_jax.errors import UserError
from vit_jax.families.family import Config, Size, channels, is_head
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import get
from vit_jax.families.rules import listed
from vit_jax.families.text import Text, vocabulary_in

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Source:
    """An open checkpoint. Close it, or use `with`.

    Attributes:
      archive: The file.
      view: Its parameters by the file's names, unstacked, without a trainer's prefixes.
      facts: What is known of it.
      image_size: What the caller gave.
      allowed: What is no error here, see `vit_jax.allow`.
    """

    archive: Archive
    view: View
    facts: Facts
    image_size: Size | None
    allowed: frozenset[str] = frozenset()

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
        return names.head_is_zero(self.to_linen(self.view))

    def not_finite(self) -> dict[str, int]:
        """Tensor (the file's name) -> how many of its numbers are NaN or infinite; reads all."""
        counts = {name: count_not_finite(self.view[name]) for name in self.view}
        return {name: count for name, count in counts.items() if count}

    def zero_biases(self) -> dict[str, int]:
        """Name (ours, with a # for each number) -> how many biases, where all of them are zero.

        Heads are left out: see `head_is_zero`. Reads every bias.
        """
        if self.facts.config is None:
            return {}
        ours, zero = self.to_linen(self.view), dict[str, list[bool]]()
        for name in ours:
            if name.endswith("/bias") and not is_head(name):
                of_kind = zero.setdefault(re.sub(r"\d+", "#", name), [])
                of_kind.append(not ours[name].any())
        return {name: len(each) for name, each in zero.items() if all(each)}

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
    allow: Allow = (),
) -> Source:
    """Opens and recognises a checkpoint.

    Args:
      path: A file or its address, a directory of Hugging Face, timm or Orbax, a repository of the
        hub (`hf://org/name`), or the workdir of a run, of which the newest checkpoint is taken.
      model: Name or config of the model in it, where the file does not tell.
      image_size: (height, width) in pixels that the weights are for, where nothing in the file
        tells it: how many positions are computed, or how the patches of an oblong image lie.
      part: Which of several sets of weights is meant, by the name under which the file has it:
        `model` or `model_ema`.
      allow: What is no error: 'other-function', weights of a model that computes otherwise than
        ours; 'not-finite', numbers that are NaN or infinite.

    Raises:
      UserError: for a file that is unreadable, damaged or of no known format, that does not hold
        `model`, or that holds several sets of weights and `part` says not which.
    """
    given, allowed = str(path), allowing.check(allow)
    path = fetch(path)
    if not path.exists():
        raise UserError(
            f"no such file or directory {str(path)!r}; expected a checkpoint (.npz, .safetensors, "
            "…) or the workdir of a run"
        )
    weights, beside = _located(path)
    archive = open_archive(weights)
    try:
        found = recorded.read(archive, beside)
        if model is None and (repository := hub.repository_of(weights)):
            recorded.read_repository(repository, found)
        if tower := wrappers.branch(archive, part):
            _reduce(found, given, archive, tower)
        view, skipped, notes = _parameters(archive, part)
        found.notes[:0] = notes
        known = _facts(given, archive, view, found, model, image_size, skipped, beside)
        if OTHER_FUNCTION in allowed:
            known = dataclasses.replace(known, other_function="")
        return Source(archive, view, known, image_size, allowed)
    except BaseException:
        archive.close()
        raise


def _reduce(found: recorded.Recorded, path: str, archive: Archive, branch: str) -> None:
    """Makes of what is recorded of a model of several parts what is known of one of them."""
    shapes = {n: s.shape for n, s in _parameters(archive, None)[0].specs.items()}
    whole = facts.decide(path, shapes, found, None)
    spec, config = whole.spec, None if whole.chosen is None else whole.chosen.config
    parts = {} if config is None else get(config).parts(config)
    found.by, found.name = f"{found.name or (spec and spec.name) or 'the whole'}", None
    found.config = dict(parts[branch]) if branch in parts else None
    found.class_names, found.num_heads = None, None
    if spec is not None:
        found.preprocess = found.preprocess or spec.preprocess
        found.text = found.text or spec.weights.text


def _located(path: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """Where the weights of a file or directory are, and the JSON objects beside them."""
    if not path.is_dir():
        return path, hf_dir.read(path)
    folder = path
    with reading(folder, "directory"):
        if hf_dir.is_repository(folder):
            beside = hf_dir.read(hf_dir.expected(folder))
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


def _parameters(archive: Archive, part: str | None) -> tuple[View, list[str], tuple[str, ...]]:
    """Parameters and statistics, unstacked, without wrappers; what else there is; and notes."""
    inside, notes = wrappers.weights_in(archive, part)
    is_tower = wrappers.branch(archive, part)  # the others of its file are parameters too
    skipped = [] if is_tower else sorted(set(archive) - set(inside.values()))
    if skipped:
        log.info("not parameters, skipped: %s", listed(skipped))
    unstacked = stacked_names({new: archive.specs[old].shape for new, old in inside.items()})
    view = View(archive, {n: (inside[stack], i) for n, (stack, i) in unstacked.items()})
    return view, skipped, notes


def _facts(
    path: str,
    archive: Archive,
    view: View,
    found: recorded.Recorded,
    model: Any,
    image_size: Size | None,
    skipped: list[str],
    beside: Mapping[str, Any],
) -> Facts:
    shapes = {n: s.shape for n, s in view.specs.items()}
    decision = facts.decide(path, shapes, found, model, image_size)
    chosen = decision.chosen
    common = {
        "path": path,
        "format": "hf" if hf_dir.CONFIG in beside else archive.format,
        "recorded": found.config is not None,
        "history": found.history,
        "skipped": tuple(skipped),
        "metadata": archive.metadata,
        "class_names": found.class_names,
        "licence": found.licence,
        "origin": hub.origin(archive.path),
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
    size, unsure = image_size, ""
    if not computed:
        size, unsure = facts.image_size_of(chosen, found.image_size, image_size)
    notes += (unsure,) if unsure else ()
    differ, is_other = facts.other_function(found, chosen.config)
    notes += tuple(differ)
    tensors = specs_of(
        lambda file: recognise.read(file, chosen.config, chosen.layout, image_size)[0], view.specs
    )
    steps = recognise.read(
        {n: s.dummy() for n, s in view.specs.items()}, chosen.config, chosen.layout, image_size
    )[1]
    spec = decision.spec
    fallback = spec.preprocess if spec is not None else Preprocess()
    preprocess = found.preprocess or fallback
    folder = archive.path.parent if beside else None
    text = _text(found, None if spec is None else spec.weights.text, chosen.config, folder)
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
        grid=names.grid_of(chosen.config, size),
        image_size=size,
        num_classes=names.num_classes_of(chosen.shapes),
        preprocess=preprocess,
        notes=notes,
        steps=() if needs_size else steps,
        needs_size=needs_size,
        tensors=tensors,
        other_function=_goes_on(differ, chosen) if is_other else "",
        size_is_known=not unsure,
        text=text,
        **common,
    )


def _text(
    found: recorded.Recorded, published: Text | None, config: Config, folder: pathlib.Path | None
) -> Text | None:
    """How texts are prepared: as the folder says, as recorded, or as published.

    Args:
      found: What is recorded.
      published: What is known of the registered model.
      config: The model's.
      folder: Of which the file is a part, whose vocabulary is taken; None for a file alone.
    """
    family = get(config)
    if "tokens" not in family.inputs:
        return None
    told = found.text or published
    usual = told or next(iter(family.architectures.values())).default.text
    kind = found.tokenizer or (usual and usual.kind)
    path = None if folder is None or kind is None else vocabulary_in(folder, kind)
    if kind is None or path is None:
        return told
    length = family.text_length(config) if found.text is None else found.text.length
    return Text(kind, hub.origin(path) or str(path), length)


def _goes_on(differ: list[str], chosen: recognise.Candidate) -> str:
    return (
        f"its weights were made for a model that computes otherwise than the "
        f"{get(chosen.config).title} here: {'; '.join(differ)}. Go on all the same with "
        f"--allow {OTHER_FUNCTION}"
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


def count_not_finite(x: np.ndarray) -> int:
    """How many numbers are NaN or infinite."""
    with np.errstate(all="ignore"):
        if np.isfinite(x.sum()):  # several times faster, and almost always enough
            return 0
    return x.size - int(np.count_nonzero(np.isfinite(x)))


def read_all(source: Source) -> dict[str, np.ndarray]:
    """Every parameter and statistic by our names, as arrays of their own memory.

    Raises UserError for numbers that are NaN or infinite, unless the source allows them.
    """
    read = {name: np.array(x, order="C") for name, x in source.params().items()}
    if NOT_FINITE not in source.allowed:
        counts = {name: count_not_finite(x) for name, x in read.items()}
        facts.require_finite(source.facts.path, {n: c for n, c in counts.items() if c})
    return read
