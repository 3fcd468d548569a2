"""Whatever writes weights, everything that reads them finds the same: every family, every pair.

A tiny model of each family has random numbers in every parameter and statistic, a preprocessing
that no other model has, and seven class names. What a file tells is read from it; the config is
given only where a file holds tensors alone.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from held import held_params

from vit_jax import inference
from vit_jax.checkpoint import (
    convert,
    from_torch,
    identify,
    load,
    load_pretrained,
    names,
    recorded,
    save,
    save_timm,
)
from vit_jax.checkpoint.facts import Model
from vit_jax.checkpoint.files.formats import open_archive
from vit_jax.errors import UserError
from vit_jax.families import registry
from vit_jax.families.family import is_head
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import comparable, families, get, resolve, shrunk, taking
from vit_jax.models import from_config
from vit_jax.train import run_info
from vit_jax.train.checkpointing import Checkpoints
from vit_jax.train.state import TrainState
from vit_jax.tree import arrays
from vit_jax.variables import collections, named

SIDE = 64
CLASS_NAMES = [f"kind {i}" for i in range(7)]
PREPROCESS = Preprocess(
    size=SIDE,
    crop=0.875,
    resize="shortest",
    method="bicubic",
    antialias=True,
    mean=(0.4, 0.5, 0.3),
    std=(0.2, 0.3, 0.4),
)
# Models whose tensors are others than those of their family's first one.
FORMS = {
    "hybrid": ("R+ViT-Ti_16", {"resnet": {"num_layers": (), "width_factor": 1}}),
    "attention pooling": ("ViT-Ti_16", {"classifier": "map", "representation_size": None}),
    "dinov2 mean": ("vit_small_patch14_dinov2", {"head_reads": "token_mean"}),
    "dinov2_registers mean": ("vit_small_patch14_reg4_dinov2", {"head_reads": "token_mean"}),
}
# Fewer blocks, or as many as a library builds at least; a Vision Transformer keeps two.
FIELDS = {
    "cvt": {"depths": (1, 2, 3)},
    # Windows that fill all maps, without which Hugging Face's Swin computes otherwise.
    "swin": {"depths": (1, 1, 1, 1), "window_size": 2},
    **{key: {"depths": (1, 1, 1, 1)} for key in ("pvt", "pvt_v2", "twins")},
}
# Read and written, but no class of ours computes it.
NOT_BUILT = ("attention pooling",)
# What timm builds at registered sizes only: its file cannot be described.
REFUSED = ("botnet",)
# Of these only the head is new, and who can hold it.
MEANS = ("dinov2 mean", "dinov2_registers mean")
HOLD_MEANS = ("save", "convert hf", "convert torch")
# What would write a head that a library's model does not have, and how it refuses.
_TIMM = ("save_timm", "save_weights timm", "convert timm", "convert timm pth")
_DINOV2 = ("dinov2", "dinov2_registers")
OTHER_HEADS = {
    ("dinov3", "convert hf"): "without a head only; drop the head",
    **{
        (k, f"convert {to}"): "no head that reads 'token'"
        for k in _DINOV2
        for to in ("hf", "torch")
    },
    **{
        (f"{k} mean", to): "timm has no head that reads 'token_mean'"
        for k in _DINOV2
        for to in _TIMM
    },
}


@dataclasses.dataclass
class Subject:
    """A tiny model with its weights, flat and as collections."""

    config: dict[str, Any]
    flat: dict[str, np.ndarray]
    folder: pathlib.Path

    @functools.cached_property
    def source(self) -> pathlib.Path:
        """A file for `convert` to start from."""
        # timm has no head that reads more than the class token.
        official = "official" in names.holding(self.config) or "head_reads" in self.config
        path = self.folder / ("source.npz" if official else "source.safetensors")
        inference.save_weights(path, self.weights, "official" if official else "timm")
        return path

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        return collections(self.flat, names.statistics(self.config))

    @functools.cached_property
    def tree(self) -> dict[str, Any]:
        """What `load` gives: parameters alone where there are no statistics."""
        return self.variables if self.variables["batch_stats"] else self.variables["params"]

    @functools.cached_property
    def weights(self) -> inference.Weights:
        name = str(self.config.get("model_name") or "custom")
        model = Model(
            name, self.config, len(CLASS_NAMES), (SIDE, SIDE), PREPROCESS, list(CLASS_NAMES)
        )
        return inference.Weights(model, self.variables)

    @functools.cached_property
    def loaded(self) -> inference.LoadedModel:
        """The model as it is without any file; compiled once, for all comparisons."""
        module = from_config(self.config, num_classes=len(CLASS_NAMES))
        return inference.LoadedModel(self.weights, module, self.weights.for_model())

    @functools.cached_property
    def images(self) -> np.ndarray:
        return np.random.default_rng(1).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)

    @functools.cached_property
    def logits(self) -> np.ndarray:
        found = self.loaded.logits(self.images)
        assert found.std() > 0.01
        return found


@functools.cache
def config_of(key: str) -> dict[str, Any]:
    if key in FORMS:
        name, fields = FORMS[key]
    else:
        name = next(n for n in families()[key].architectures if not n.startswith("testing"))
        fields = {}
    config = shrunk(resolve(name).config.to_dict()) | fields | FIELDS.get(key, {})
    config.pop("model_name", None)  # that of a model of other sizes
    return config


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """The model of a key, made when it is first asked for."""

    @functools.cache
    def make(key: str) -> Subject:
        config = config_of(key)
        flat = held_params(config, len(CLASS_NAMES), (SIDE, SIDE))
        return Subject(config, flat, tmp_path_factory.mktemp("sources"))

    return make


# --- what writes ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Writer:
    """`write` makes the file or directory below a folder and returns its path.

    Attributes:
      layout: Whose names the file has; a family that has no such layout is left out.
      tells_model: Whether the file says which model it holds.
      tells_images: Whether it says how images are prepared.
      tells_classes: Whether it holds the class names.
    """

    write: Callable[[Subject, Any], Any]
    layout: str = "official"
    tells_model: bool = True
    tells_images: bool = True
    tells_classes: bool = True


def _save(this: Subject, folder):
    save(folder / "x.npz", this.tree)
    return folder / "x.npz"


def _save_with_metadata(this: Subject, folder):
    metadata = {recorded.OURS: json.dumps(this.weights.model.metadata())}
    save(folder / "x.npz", this.tree, metadata=metadata)
    return folder / "x.npz"


def _save_timm(this: Subject, folder):
    save_timm(
        folder / "x.safetensors",
        this.tree,
        this.config,
        image_size=(SIDE, SIDE),
        preprocess=PREPROCESS,
        class_names=CLASS_NAMES,
    )
    return folder / "x.safetensors"


def _save_weights(to: str, name: str):
    def write(this: Subject, folder):
        inference.save_weights(folder / name, this.weights, to)
        return folder / name

    return write


def _convert(to: str, name: str):
    def write(this: Subject, folder):
        convert(this.source, folder / name, to=to, allow=("other-function",))
        return folder / name

    return write


def _run(this: Subject, folder):
    """What a run leaves: a checkpoint of its state, and what it says of itself."""
    info = run_info.RunInfo(
        this.config, len(CLASS_NAMES), list(CLASS_NAMES), PREPROCESS, {}, {"jax": "0"}
    )
    momentum = jax.tree.map(np.ones_like, this.variables["params"])
    state = TrainState(np.int32(3), this.variables["params"], {"trace": momentum}, None)
    state = dataclasses.replace(state, batch_stats=this.variables["batch_stats"])
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state)
    run_info.save(info, folder)
    return folder


_ALONE = {"tells_model": False, "tells_images": False, "tells_classes": False}
WRITERS = {
    "save": Writer(_save, **_ALONE),
    "save with metadata": Writer(_save_with_metadata),
    "save_timm": Writer(_save_timm, "timm"),
    "save_weights official": Writer(_save_weights("official", "x.npz")),
    "save_weights timm": Writer(_save_weights("timm", "x.safetensors"), "timm"),
    "run": Writer(_run, "linen"),
    "convert official": Writer(_convert("official", "x.npz")),
    "convert orbax": Writer(_convert("orbax", "x"), "linen"),
    "convert big_vision": Writer(_convert("big_vision", "x.npz"), "big_vision"),
    "convert timm": Writer(_convert("timm", "x.safetensors"), "timm"),
    "convert timm pth": Writer(_convert("timm", "x.pth"), "timm", **_ALONE),
    "convert hf": Writer(_convert("hf", "x"), "hf"),
    "convert torch": Writer(_convert("torch", "x.safetensors"), "torch"),
    "convert tlt": Writer(_convert("tlt", "x.safetensors"), "tlt"),
    "convert vit_pytorch": Writer(_convert("vit_pytorch", "x.safetensors"), "vit_pytorch"),
}


@pytest.fixture(scope="module")
def written(subject, tmp_path_factory):
    """The file of a pair, written when it is first asked for."""

    @functools.cache
    def write(key: str, writer: str):
        return WRITERS[writer].write(subject(key), tmp_path_factory.mktemp("written"))

    return write


# --- what reads -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Written:
    """A file, what it should hold, and the model that must be named to read it, None for none."""

    path: Any
    subject: Subject
    writer: Writer
    model: dict[str, Any] | None
    folder: Any

    @property
    def image_size(self) -> tuple[int, int]:
        """As recorded, else as the tensors tell, else that of the family's first model."""
        if self.writer.tells_images:
            return SIDE, SIDE
        return names.image_size_of(self.subject.config, names.shapes_of(self.subject.flat))

    def assert_known(self, known: Any) -> None:
        """Preprocessing and class names, as far as the file can hold them."""
        if self.writer.tells_images:
            assert dataclasses.replace(known.preprocess, size=SIDE) == PREPROCESS
        if self.writer.tells_classes:
            assert known.class_names == CLASS_NAMES


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert got[name].dtype == x.dtype, name
        np.testing.assert_array_equal(got[name], x, err_msg=name)


def _with_load(file: Written) -> None:
    assert_same(arrays(load(file.path, file.model)), arrays(file.subject.tree))


def _with_load_pretrained(file: Written) -> None:
    """A head of three classes is the model's own, everything else the file's."""
    flat, config = file.subject.flat, file.subject.config
    shapes = names.expected_shapes(config, num_classes=3, image_size=(SIDE, SIDE))
    init = {n: np.full(s, 0.25, np.float32) for n, s in shapes.items()}
    variables = collections(init, names.statistics(config))
    found = load_pretrained(pretrained_path=file.path, init_params=variables, model_config=config)
    assert_same(arrays(named(found)), {n: x if is_head(n) else flat[n] for n, x in init.items()})


def _with_load_weights(file: Written) -> None:
    _assert_weights(file, inference.load_weights(file.path, file.model))


def _assert_weights(file: Written, found: inference.Weights) -> None:
    assert_same(arrays(named(found.variables)), file.subject.flat)
    known = found.model
    assert known.num_classes == len(CLASS_NAMES)
    assert known.image_size == file.image_size
    assert known.preprocess.size == max(file.image_size)
    file.assert_known(known)


def _with_load_model(file: Written) -> None:
    """`load_weights`, and the model that they make."""
    this, found = file.subject, inference.load_model(file.path, file.model)
    _assert_weights(file, found.weights)
    assert comparable(registry.config_of(found.model)) == comparable(
        registry.config_of(this.loaded.model)
    )
    found.__dict__["_forward"] = this.loaded._forward  # of an equal model: compiled once
    np.testing.assert_array_equal(found.logits(this.images), this.logits)


def _with_from_torch(file: Written) -> None:
    path = file.path / "model.safetensors" if file.path.is_dir() else file.path
    with open_archive(path) as archive:
        state = {n: np.array(archive[n]) for n in archive}
    found = from_torch(state, file.subject.config, file.writer.layout)
    assert_same(arrays(named(found)), file.subject.flat)


def _with_convert(file: Written) -> None:
    """Back to our own names: nothing is lost on the way, what is recorded neither."""
    back = file.folder / "back.npz"
    to = "official" if "official" in names.holding(file.subject.config) else "big_vision"
    report = convert(file.path, back, to=to, model=file.model)
    known = names.layout_of(file.subject.config, file.writer.layout)
    completes = file.writer.layout == "timm" and known.after_reading is not None
    assert len(report.steps) == (1 if completes else 0)
    assert report.not_finite == {}
    found = inference.load_weights(back)
    assert_same(arrays(named(found.variables)), file.subject.flat)
    file.assert_known(found.model)
    with open_archive(back) as archive:
        assert json.loads(archive.metadata[recorded.HISTORY])[-1]["to"] == to


def _with_identify(file: Written) -> None:
    this, found = file.subject, identify(file.path, file.model)
    assert found.config is not None
    assert get(found.config) is get(this.config)
    assert comparable(found.config) == comparable(this.config)
    assert found.num_classes == len(CLASS_NAMES)
    assert found.image_size == file.image_size
    statistics = names.statistics(this.config)
    assert found.num_params == sum(x.size for n, x in this.flat.items() if n not in statistics)
    assert found.shapes == {n: x.shape for n, x in this.flat.items()}
    assert found.head_is_zero is False
    assert found.ambiguous == ()
    file.assert_known(found)


READERS = {
    "load": _with_load,
    "load_pretrained": _with_load_pretrained,
    "load_weights": _with_load_weights,
    "load_model": _with_load_model,
    "from_torch": _with_from_torch,
    "convert": _with_convert,
    "identify": _with_identify,
}
_TORCH = ("timm", "hf", "torch", "tlt", "vit_pytorch")


def _is_refused(key: str, writer: str) -> bool:
    return key in REFUSED and writer in ("save_timm", "save_weights timm", "convert timm")


def _matrix() -> list[tuple[str, str, str]]:
    return [
        (key, name, reader)
        for key in (*taking("images"), *FORMS)
        for name, writer in WRITERS.items()
        if writer.layout in names.holding(config_of(key)) and not _is_refused(key, name)
        if (key, name) not in OTHER_HEADS
        if key not in MEANS or name in HOLD_MEANS
        for reader in READERS
        if reader != "from_torch" or writer.layout in _TORCH
        if reader != ("load_model" if key in NOT_BUILT else "load_weights")
    ]


@pytest.mark.parametrize(("key", "writer", "reader"), _matrix())
def test_what_is_written_is_read(key, writer, reader, subject, written, tmp_path):
    row, this = WRITERS[writer], subject(key)
    model = None if row.tells_model else this.config
    READERS[reader](Written(written(key, writer), this, row, model, tmp_path))


@pytest.mark.parametrize("writer", ["save_timm", "save_weights timm", "convert timm"])
@pytest.mark.parametrize("key", REFUSED)
def test_what_timm_cannot_build_is_not_written(key, writer, subject, tmp_path):
    with pytest.raises(UserError, match="timm builds no"):
        WRITERS[writer].write(subject(key), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("key", "writer"), OTHER_HEADS)
def test_a_head_that_a_library_has_not_is_not_written(key, writer, subject, tmp_path):
    with pytest.raises(UserError, match=OTHER_HEADS[key, writer]):
        WRITERS[writer].write(subject(key), tmp_path)


def test_what_a_layout_refuses_is_known():
    """The matrix leaves these pairs out: a layout that refuses more would shrink it in silence."""
    refused = {
        key: set(names.layouts_of(config_of(key))) - set(names.holding(config_of(key)))
        for key in (*taking("images"), *FORMS)
    }
    assert {key: layouts for key, layouts in refused.items() if layouts} == {
        "hybrid": {"hf", "big_vision"},
        "attention pooling": {"hf", "official"},
        "naflex_vision": {"hf"},
        "siglip_vision": {"hf"},
    }
