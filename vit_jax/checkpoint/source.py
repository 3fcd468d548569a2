"""A checkpoint of any format, recognised and readable tensor by tensor under linen names."""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoint import describe, hf_dir, infer, zoo
from vit_jax.checkpoint.files.archive import Archive, Edited, Spec, View, reading
from vit_jax.checkpoint.files.fetch import fetch
from vit_jax.checkpoint.files.formats import open_archive
from vit_jax.checkpoint.files.orbax import is_orbax, newest_step
from vit_jax.checkpoint.stacked import stacked_names
from vit_jax.checkpoint.tables import big_vision, released
from vit_jax.checkpoint.torch_names import imported, respelled
from vit_jax.errors import UserError
from vit_jax.families.registry import family_of, is_google
from vit_jax.families.resize import Grid
from vit_jax.families.rules import Imported, listed
from vit_jax.layers.sincos import sincos2d

log = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]

# Trainers put the parameters beside the optimizer's state; the original's in a tuple, `0/`.
_PREFIXES = ("opt/target/", "0/target/", "target/", "params/", "0/")
_TIMM_NAMES = ("patch_embed.proj.weight", "stem.proj.weight")
_HF_NAMES = ("embeddings.patch_embeddings.projection.weight",)


@dataclasses.dataclass
class Source:
    """An open checkpoint. Close it, or use `with`.

    Attributes:
      archive: The file.
      format: 'npz', 'safetensors', 'torch', 'flax', 'orbax' or 'hf'.
      layout: 'linen', 'released', 'big_vision', 'timm', 'hf', or another of the model's family.
      config: Constructor fields of the model; None if the tensors are no known family's. Its
        `num_heads` is None where nothing tells it.
      skipped: Tensors of the file that are not parameters.
      steps: What had to be done beyond renaming, in words.
      notes: What the reader of the file should know.
      described: Fields that a Hugging Face directory holds beside the weights.
    """

    archive: Archive
    format: str
    layout: str
    view: View
    to_linen: Callable[[Tensors], Tensors]
    config: dict[str, Any] | None
    skipped: list[str] = dataclasses.field(default_factory=list)
    steps: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    described: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def has_positions(self) -> bool:
        """Whether the file holds position embeddings, or its model needs none."""
        survey = self.config is not None and not is_google(self.config)
        return survey or not _lacks_positions(self.view)

    @property
    def heads_known(self) -> bool:
        """Whether the file tells the number of attention heads, or is of no known model."""
        return _heads_known(self.config or {})

    def params(self) -> Tensors:
        """The parameters under linen names, unstacked, each read when asked for."""
        self.require_heads()
        return self.to_linen(self.view)

    def specs(self) -> dict[str, Spec]:
        """Shape and dtype of every parameter; nothing is read."""
        return specs_of(self.to_linen, self.view.specs)

    def require_heads(self) -> None:
        """Raises UserError if nothing tells the number of attention heads."""
        if not self.heads_known:
            raise UserError(
                f"{str(self.archive.path)!r} is no registered model, and nothing in it tells its "
                "number of attention heads; name the model"
            )

    def close(self) -> None:
        self.archive.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _heads_known(config: Mapping[str, Any]) -> bool:
    transformer = config.get("transformer")
    return transformer is None or transformer["num_heads"] is not None


def specs_of(pipeline: Callable[[Tensors], Tensors], specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """What a pipeline makes of tensors of these shapes and dtypes, found on empty ones."""
    made = pipeline({name: spec.dummy() for name, spec in specs.items()})
    return {name: Spec(x.shape, x.dtype) for name, x in made.items()}


def open_source(
    path: str | os.PathLike, model: Any = None, image_size: Grid | None = None
) -> Source:
    """Opens and recognises a checkpoint.

    Args:
      path: A file or its address, a Hugging Face or Orbax directory, or the workdir of a run, of
        which the newest checkpoint is taken.
      model: Name or config of the model in it, where the file does not tell.
      image_size: (height, width) in pixels, needed only for files without position embeddings.

    Raises:
      UserError: for a file that is unreadable, damaged or of no known layout, or that does not
        hold `model`.
    """
    path = fetch(path)
    if not path.exists():
        raise UserError(
            f"no such file or directory {str(path)!r}; expected a checkpoint (.npz, .safetensors, "
            "…) or the workdir of a run"
        )
    weights, described = _located(path) if path.is_dir() else (path, {})
    archive = open_archive(weights)
    try:
        wanted = describe.config_of(model) if model is not None else None
        if (config := wanted or _recorded_config(archive)) and not is_google(config):
            return _zoo_source(archive, config)
        try:
            source = _recognised(archive, image_size, wanted, described)
        except UserError:
            if wanted is not None or (source := _zoo_model(archive)) is None:
                raise
            return source
        if source.config is None and (zoo_source := _zoo_model(archive)) is not None:
            return zoo_source
        if wanted is not None:
            _require_model(source, wanted, model)
        _settle_classifier(source, wanted)
        return source
    except BaseException:
        archive.close()
        raise


def _located(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """Where a directory's weights are, and what a Hugging Face directory says of them."""
    with reading(folder, "directory"):
        if (folder / hf_dir.CONFIG).exists():
            described = hf_dir.read(folder)
            return hf_dir.weights(folder), described
        if is_orbax(folder):
            return folder, {}
        if (step := newest_step(folder)) is not None:
            return step, {}
    raise UserError(
        f"{str(folder)!r} holds no checkpoint: expected the workdir of a run (`checkpoint_N`), a "
        f"directory of Orbax, or one of Hugging Face ({hf_dir.CONFIG})"
    )


def _recognised(
    archive: Archive,
    image_size: Grid | None,
    wanted: Mapping[str, Any] | None,
    described: dict[str, Any],
) -> Source:
    if any(n in archive for n in _TIMM_NAMES):
        return _torch_source(archive, "timm", wanted, described)
    if any(n.removeprefix("vit.") in _HF_NAMES for n in archive):
        return _torch_source(archive, "hf", wanted, described)
    return _linen_source(archive, image_size)


def _recorded_config(archive: Archive) -> dict[str, Any] | None:
    """Constructor fields of a family of the survey, where our own metadata holds them."""
    fields = metadata_json(archive, "vit_jax")
    config = fields.get("config") if isinstance(fields, dict) else None
    if not isinstance(config, dict) or "family" not in config:
        return None
    family_of(config)  # one that we do not know is an error to tell
    return config


def _zoo_source(archive: Archive, config: Mapping[str, Any], layout: str | None = None) -> Source:
    """A checkpoint of this model, one of the survey's."""
    view, skipped = _parameters(archive)
    if layout is None and (layout := zoo.layout_of(view, config)) is None:
        # Says what is missing and what is not expected, of the layout that fits best.
        layout = zoo.closest_layout(view, config)
        zoo.imported(view, config, layout)
    source = Source(
        archive,
        archive.format,
        layout,
        view,
        lambda x: zoo.imported(x, config, layout),
        dict(config),
        skipped,
    )
    zoo.check(config, {name: spec.shape for name, spec in source.specs().items()})
    return source


def _zoo_model(archive: Archive) -> Source | None:
    """The same, of the registered model that fits; None if none does."""
    view, _ = _parameters(archive)
    found = zoo.recognised({name: spec.shape for name, spec in view.specs.items()})
    if not found:
        return None
    spec, layout = found[0]
    config = spec.config.to_dict()
    source = _zoo_source(archive, config, layout)
    # One architecture at several image sizes: the tensors tell which, if anything does.
    shapes = {name: spec.shape for name, spec in source.specs().items()}
    at_size = [s for s, _ in found if zoo.is_for(config, shapes, s.preprocess.size)]
    best = (at_size or [spec])[0]
    source.config = best.config.to_dict()
    others = [s.name for s, _ in found if s.name not in zoo.fitting_models(source.config)]
    if others:
        source.notes.append(f"taken for {best.name}; the tensors fit {', '.join(others)} too")
    return source


def _parameters(archive: Archive) -> tuple[View, list[str]]:
    """Parameters and statistics, unstacked, without a trainer's prefix; and what else there is."""
    prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in archive)), "")
    names = {n.removeprefix(prefix): n for n in archive if n.startswith(prefix)}
    skipped = sorted(set(archive) - set(names.values()))
    if skipped:
        log.info("not parameters, skipped: %s", listed(skipped))
    unstacked = stacked_names({new: archive.specs[old].shape for new, old in names.items()})
    return View(archive, {n: (names[stack], i) for n, (stack, i) in unstacked.items()}), skipped


def _linen_source(archive: Archive, image_size: Grid | None) -> Source:
    view, skipped = _parameters(archive)
    shapes = {n: s.shape for n, s in view.specs.items()}
    steps: list[str] = []
    if _lacks_positions(shapes):
        layout, to_linen = "big_vision", _sincos_reader(shapes, image_size, steps)
    elif big_vision.is_big_vision(shapes):
        layout, to_linen = "big_vision", _big_vision_reader(shapes, steps)
    else:
        rows = released.reading(shapes)
        old = any("MultiHeadDotProductAttention_1/" in n for n in shapes)
        layout, to_linen = ("released" if old else "linen"), lambda x: Imported(rows, x)
    source = Source(archive, archive.format, layout, view, to_linen, None, skipped, steps)
    try:
        source.config = infer.from_linen({n: s.shape for n, s in source.specs().items()})
    except UserError as e:
        source.notes.append(f"no model of ours: {e}")
    return source


def _lacks_positions(names: Iterable[str]) -> bool:
    """A big_vision file whose model computes its position embeddings."""
    names = list(names)
    if "embedding/kernel" not in names or any("pos_embedding" in n for n in names):
        return False
    return any(n.startswith("Transformer/") for n in names)


def _big_vision_reader(shapes: Mapping[str, Any], steps: list[str]) -> Callable[[Tensors], Tensors]:
    rows = big_vision.reading(shapes)
    positions = next(r.theirs for r in rows if r.ours == (big_vision.POSEMB,))
    num_tokens = shapes[positions][1]
    if "cls" not in shapes or big_vision.has_class_position(num_tokens):
        return lambda x: Imported(rows, x)
    steps.append("position 0 of the class token added (it is folded into `cls`)")
    changed = {big_vision.POSEMB: add_class_position}
    return lambda x: Edited(Imported(rows, x), changed=changed)


def _sincos_reader(
    shapes: Mapping[str, Any], image_size: Grid | None, steps: list[str]
) -> Callable[[Tensors], Tensors]:
    rows = big_vision.reading(shapes)
    if image_size is None:
        raise UserError(
            "the file holds no position embeddings: its model computes them (sincos2d), and only "
            "the image size tells how many; give it"
        )
    rows_px, columns_px, _, width = shapes["embedding/kernel"]
    grid = image_size[0] // rows_px, image_size[1] // columns_px
    steps.append(f"sincos2d position embeddings computed for a grid of {grid[0]} × {grid[1]}")

    def positions() -> np.ndarray:
        table = sincos2d(grid, width)
        return add_class_position(table) if "cls" in shapes else table

    return lambda x: Edited(Imported(rows, x), added={big_vision.POSEMB: positions})


def add_class_position(posemb: np.ndarray) -> np.ndarray:
    """[1, N, D] -> [1, 1 + N, D]: a zero for a class token that has no position."""
    return np.concatenate([np.zeros_like(posemb[:, :1]), posemb], axis=1)


def _torch_source(
    archive: Archive,
    layout: str,
    wanted: Mapping[str, Any] | None,
    described: dict[str, Any],
) -> Source:
    view = View(archive, {new: (old, None) for new, old in respelled(archive, layout).items()})
    skeleton = infer.skeleton(view, layout)
    one_head = specs_of(lambda x: imported(x, skeleton, layout), view.specs)
    config = infer.from_linen({n: s.shape for n, s in one_head.items()})
    names_only = dict(config)  # shapes are known with one head; values need the true number
    if config.get("transformer") is not None:
        heads = _heads(archive, described, wanted, config["hidden_size"])
        config["transformer"] = config["transformer"] | {"num_heads": heads}
        if heads is None:
            config = infer.with_known_heads(config)
    source = Source(
        archive,
        "hf" if described else archive.format,
        layout,
        view,
        lambda x: imported(x, config if _heads_known(config) else names_only, layout),
        config,
        described=described,
    )
    source.notes += hf_dir.notes(described)
    return source


def _heads(
    archive: Archive, described: Mapping[str, Any], wanted: Mapping[str, Any] | None, width: int
) -> int | None:
    """Attention heads as recorded, else as asked for; None if neither tells."""
    recorded = described["config"]["num_attention_heads"] if described else None
    for key, path in (("vit_jax", ("config", "transformer")), ("timm", ("model_args",))):
        fields = metadata_json(archive, key)
        for part in path:
            fields = fields.get(part) if isinstance(fields, dict) else None
        if recorded is None and isinstance(fields, dict):
            recorded = fields.get("num_heads")
    if recorded is None:
        asked = ((wanted or {}).get("transformer") or {}).get("num_heads")
        return asked if asked and width % asked == 0 else None
    if type(recorded) is not int or recorded < 1 or width % recorded:
        raise UserError(
            f"{str(archive.path)!r} records {recorded!r} attention heads, which do not divide its "
            f"width {width}"
        )
    return recorded


def metadata_json(archive: Archive, key: str) -> Any:
    """A JSON field of the file's metadata; {} if it is absent or something else."""
    try:
        return json.loads(archive.metadata.get(key, "{}"))
    except ValueError:
        return {}


def _settle_classifier(source: Source, wanted: Mapping[str, Any] | None) -> None:
    """Whether tokens are averaged is not in the tensors, but may be recorded or given."""
    ours = metadata_json(source.archive, "vit_jax")
    config = wanted or (ours.get("config") if isinstance(ours, dict) else None)
    if not isinstance(config, Mapping) or source.config is None or "classifier" not in config:
        return
    has_cls = describe.has_class_token(source.config)
    if source.config["classifier"] != "map" and has_cls == describe.has_class_token(config):
        source.config["classifier"] = config["classifier"]


def _require_model(source: Source, wanted: Mapping[str, Any], model: Any) -> None:
    called = f"a {model}" if isinstance(model, str) else "this model"
    if source.config is None:
        raise UserError(
            f"{str(source.archive.path)!r} does not hold {called}: {'; '.join(source.notes)}"
        )
    got, want = infer.sizes(source.config), infer.sizes(wanted)
    if got != want:
        raise UserError(
            f"{str(source.archive.path)!r} does not hold {called}: expected sizes {want}, found "
            f"{got}"
        )
