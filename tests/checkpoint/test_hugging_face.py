"""Directories of transformers: what we write it loads and computes, and the other way round."""

import dataclasses
import functools
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from zoo_cases import NUM_CLASSES, Case, config_of

from vit_jax import checkpoint
from vit_jax.checkpoint import facts, hf_dir, names, recognise, recorded
from vit_jax.checkpoint.files.formats import open_archive
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import comparable, families, family_of
from vit_jax.models import from_config
from vit_jax.parity.figures import FLOAT64_BAR, relative_error
from vit_jax.parity.libraries import hf as library
from vit_jax.parity.traces import trace_ours, trace_torch

TINY = {"hidden_size": 16, "transformer": {"num_layers": 2, "num_heads": 2, "mlp_dim": 24}}
PYRAMID = {
    "hidden_sizes": (8, 16, 24), "depths": (1, 1, 1), "num_heads": (1, 2, 3),
    "mlp_ratios": (4, 2, 2), "sr_ratios": (4, 2, 1),
}  # fmt: skip
FLAT = {"hidden_size": 16, **TINY["transformer"]}
THEIR_TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "layer_norm_eps": 1e-6,
}  # fmt: skip
THEIR_PYRAMID = {
    "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "num_attention_heads": [1, 2, 3],
    "mlp_ratios": [4, 2, 2], "num_encoder_blocks": 3,
}  # fmt: skip
REDUCING = {"sr_ratios": [4, 2, 1], "patch_sizes": [7, 3, 3], "strides": [4, 2, 2]}


class Tiny(NamedTuple):
    """A model of ours and transformers' one with the same fields, in its own words.

    Attributes:
      name, fields: A registered model, and the fields in which this one is another.
      size: (height, width) in pixels.
      theirs, entries: transformers' class, and the entries of its config.
      exact: Whether entries can say our numerics.
    """

    name: str
    fields: dict[str, Any]
    size: tuple[int, int]
    theirs: str
    entries: dict[str, Any]
    exact: bool = True


CASES = {
    "vit": Tiny(
        "ViT-B_16", TINY, (32, 48), "ViTForImageClassification",
        THEIR_TINY | {"image_size": [32, 48], "hidden_act": "gelu_pytorch_tanh"},
    ),
    "deit": Tiny(
        "deit_tiny_patch16_224", FLAT, (32, 48), "ViTForImageClassification",
        THEIR_TINY | {"image_size": [32, 48], "hidden_act": "gelu"},
    ),
    "deit_distilled": Tiny(
        "deit_tiny_distilled_patch16_224", FLAT, (32, 48), "DeiTForImageClassificationWithTeacher",
        THEIR_TINY | {"image_size": [32, 48]},
    ),
    "swin": Tiny(
        "swin_tiny_patch4_window7_224",
        {"hidden_size": 8, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4}, (32, 48),
        "SwinForImageClassification",
        {"embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 4,
         "image_size": [32, 48]},
    ),
    "beit": Tiny(
        "beit_base_patch16_224", FLAT, (48, 48), "BeitForImageClassification",
        THEIR_TINY | {"image_size": 48, "use_relative_position_bias": True},
    ),
    "levit": Tiny(
        "levit_128s",
        {"hidden_sizes": (16, 24, 32), "num_heads": (1, 2, 3), "depths": (1, 2, 1), "key_dim": 8},
        (64, 64), "LevitForImageClassificationWithTeacher",
        {"hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 3], "depths": [1, 2, 1],
         "key_dim": [8, 8, 8], "image_size": 64},
    ),
    "pvt": Tiny(
        "pvt_tiny", PYRAMID, (32, 32), "PvtForImageClassification",
        THEIR_PYRAMID
        | {"image_size": 32, "sequence_reduction_ratios": [4, 2, 1], "patch_sizes": [4, 2, 2],
           "strides": [4, 2, 2]}, exact=False,
    ),
    "pvt_v2": Tiny(
        "pvt_v2_b0", PYRAMID, (32, 64), "PvtV2ForImageClassification",
        THEIR_PYRAMID | REDUCING | {"image_size": [32, 64]}, exact=False,
    ),
    "pvt_v2_li": Tiny(
        "pvt_v2_b2_li", PYRAMID, (32, 64), "PvtV2ForImageClassification",
        THEIR_PYRAMID | REDUCING | {"image_size": [32, 64], "linear_attention": True}, exact=False,
    ),
    "cvt": Tiny(
        "cvt_13", {"hidden_sizes": (8, 16, 24), "num_heads": (1, 2, 3), "depths": (1, 2, 3)},
        (28, 36), "CvtForImageClassification",
        {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}, exact=False,
    ),
}  # fmt: skip
ALLOWED = ("other-function",)
NAMES = [f"class {i}" for i in range(NUM_CLASSES)]


@functools.cache
def ours(key: str) -> Case:
    this = CASES[key]
    return Case(this.name, this.size, layout="hf", **this.fields)


@pytest.fixture(params=CASES)
def key(request):
    return request.param


@pytest.fixture
def written(key, tmp_path):
    """A directory that we wrote, and what was said of it."""
    this = ours(key)
    recorded = {
        "name": "mine",
        "config": this.config,
        "class_names": NAMES,
        "preprocess": Preprocess(size=max(this.size)).to_dict(),
        "image_size": this.size,
    }
    src = tmp_path / "src.npz"
    checkpoint.save(src, this.variables, metadata={"vit_jax": json.dumps(recorded)})
    if not CASES[key].exact:
        with pytest.raises(UserError, match="--allow other-function"):
            checkpoint.convert(src, tmp_path / "hf", to="hf")
    return tmp_path / "hf", checkpoint.convert(src, tmp_path / "hf", to="hf", allow=ALLOWED)


def loaded(key: str, folder) -> torch.nn.Module:
    """What `from_pretrained` makes of a directory, strictly."""
    cls = getattr(transformers, CASES[key].theirs)
    module, report = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float64)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[what], what
    return module


def logits(module: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    return trace_torch(module, images, [], np.float64, library.LIBRARY.logits_of).logits


def match(module: torch.nn.Module, config: Any) -> None:
    """Our numerics, where no entry says them."""
    library._match(module, config, families()[family_of(config)].layouts["hf"].build)


def computed(config: Any) -> dict[str, Any]:
    """The fields that decide what is computed in evaluation."""
    return comparable(config, "dropout_rate", "attention_dropout_rate")


def tensors(path) -> dict[str, np.ndarray]:
    with open_archive(path) as archive:
        return {name: np.array(archive[name]) for name in archive}


def assert_same(path, other) -> None:
    here, there = tensors(path), tensors(other)
    assert here.keys() == there.keys()
    for name, x in here.items():
        np.testing.assert_array_equal(x, there[name], err_msg=name)
        assert x.dtype == there[name].dtype, name


# --- ours to theirs -------------------------------------------------------------------------------


def test_transformers_computes_what_we_wrote(key, written):
    folder, done = written
    this = ours(key)
    module = loaded(key, folder)
    assert [module.config.id2label[i] for i in range(NUM_CLASSES)] == NAMES
    shipped = relative_error(this.ours64, logits(module, this.images))
    said = [note for note in done.notes if "transformers computes with another" in note]
    assert (shipped <= FLOAT64_BAR, bool(said)) == (CASES[key].exact, not CASES[key].exact)
    match(module, this.config)
    assert relative_error(this.ours64, logits(module, this.images)) <= FLOAT64_BAR
    for part in module.modules():  # LeViT has BatchNorm only
        if hasattr(part, "eps"):
            part.eps *= 10
    assert relative_error(this.ours64, logits(module, this.images)) > FLOAT64_BAR


def test_what_we_wrote_is_read_back(key, written, tmp_path):
    folder, _ = written
    this = ours(key)
    found = checkpoint.identify(folder)
    assert (found.format, found.layout, found.name) == ("hf", "hf", "mine")
    assert comparable(found.config) == comparable(this.config)
    assert found.class_names == NAMES
    back = checkpoint.convert(folder, tmp_path / "back.npz", to="official")
    assert back.model == "mine"
    assert_same(tmp_path / "back.npz", tmp_path / "src.npz")
    with pytest.MonkeyPatch.context() as patch:  # as a directory that somebody else wrote
        patch.setattr("vit_jax.checkpoint.recorded.OURS", "none")
        foreign = checkpoint.identify(folder)
    wanted = this.config | ({"activation": "gelu"} if key == "cvt" else {})
    assert computed(foreign.config) == computed(wanted)
    assert foreign.image_size == this.size or key == "cvt"  # whose config.json tells no size
    assert foreign.class_names == NAMES
    assert foreign.preprocess.resize == "squash"


# --- theirs to ours -------------------------------------------------------------------------------


@functools.cache
def theirs(key: str) -> torch.nn.Module:
    """transformers' model, every number in it random."""
    this = CASES[key]
    cls = getattr(transformers, this.theirs)
    module = cls(cls.config_class(num_labels=NUM_CLASSES, **this.entries)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, x in module.state_dict().items():
            if not x.is_floating_point():
                continue
            noise = torch.randn(x.shape, generator=generator)
            if x.ndim > 1:
                x.copy_(noise / x[0].numel() ** 0.5)
            elif "running_var" in name:
                x.copy_(noise.abs() + 0.5)
            else:
                x.copy_(0.1 * noise + ("weight" in name))
    return module


@pytest.fixture
def saved(key, tmp_path):
    theirs(key).float().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_we_compute_what_transformers_saved(key, saved):
    images = ours(key).images
    facts = checkpoint.identify(saved)
    wanted = ours(key).config | ({"activation": "gelu"} if key == "cvt" else {})
    assert computed(facts.config) == computed(wanted)
    assert (facts.num_classes, facts.class_names) == (NUM_CLASSES, None)
    variables = checkpoint.load(saved)
    variables = variables if "params" in variables else {"params": variables}
    model = from_config(facts.config, num_classes=NUM_CLASSES)
    mine = trace_ours(model, variables, images, [], np.float64).logits
    module = loaded(key, saved)
    exact = CASES[key].exact or key == "cvt"  # which is read as transformers computes
    assert (relative_error(mine, logits(module, images)) <= FLOAT64_BAR) == exact
    match(module, facts.config)
    assert relative_error(mine, logits(module, images)) <= FLOAT64_BAR
    with torch.no_grad():
        next(iter(module.parameters())).mul_(1.001)
    assert relative_error(mine, logits(module, images)) > FLOAT64_BAR


def test_a_round_trip_changes_no_bit(key, saved, tmp_path):
    checkpoint.convert(saved, tmp_path / "x.npz", to="official")
    checkpoint.convert(tmp_path / "x.npz", tmp_path / "again", to="hf", allow=ALLOWED)
    assert_same(saved / hf_dir.WEIGHTS, tmp_path / "again" / hf_dir.WEIGHTS)
    live = {name: x.numpy() for name, x in theirs(key).state_dict().items()}
    config = checkpoint.identify(saved).config
    again = checkpoint.to_torch(checkpoint.from_torch(live, config, "hf"), config, "hf")
    for name, x in tensors(saved / hf_dir.WEIGHTS).items():
        np.testing.assert_array_equal(again[name], x, err_msg=name)


def test_names_alone_are_recognised(key, saved):
    """A file of weights with nothing beside it."""
    shapes = {name: x.shape for name, x in tensors(saved / hf_dir.WEIGHTS).items()}
    entries = list(recognise._entries(shapes))
    assert family_of(ours(key).config) in {e.family for e in entries if e.layout == "hf"}
    assert all(e.layout == "hf" for e in entries)


# --- without a head -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "cls", "options"),
    [
        ("deit", "ViTModel", {"add_pooling_layer": False}),
        ("swin", "SwinModel", {}),
        ("beit", "BeitModel", {}),
        ("levit", "LevitModel", {}),
    ],
)
def test_models_without_a_head(key, cls, options, tmp_path):
    this = CASES[key]
    case = Case(this.name, this.size, layout="hf", num_classes=0, **this.fields)
    checkpoint.save(tmp_path / "x.npz", case.variables)
    checkpoint.convert(
        tmp_path / "x.npz", tmp_path / "hf", to="hf", model=case.config, image_size=this.size
    )
    module, report = getattr(transformers, cls).from_pretrained(
        tmp_path / "hf", output_loading_info=True, dtype=torch.float64, **options
    )
    assert not any(report.values())
    assert relative_error(case.ours64, logits(module, case.images)) <= FLOAT64_BAR
    module.float().save_pretrained(tmp_path / "again")
    found = checkpoint.identify(tmp_path / "again")
    assert computed(found.config) == computed(case.config)
    assert found.num_classes == 0
    assert_same(tmp_path / "again" / hf_dir.WEIGHTS, tmp_path / "hf" / hf_dir.WEIGHTS)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("deit_distilled", {"architectures": ["DeiTForImageClassification"]}, "the class token's"),
        ("levit", {"architectures": ["LevitForImageClassification"]}, "one head"),
        ("levit", {"key_dim": [8, 8, 16]}, "no one key_dim"),
        ("levit", {"attention_ratio": [2, 2, 4]}, "attention_ratio is"),
        ("beit", {"architectures": ["BeitForMaskedImageModeling"]}, "share one table"),
        ("beit", {"use_mean_pooling": False}, "use_mean_pooling is False"),
        ("beit", {"use_relative_position_bias": False}, "use_relative_position_bias is False"),
        ("swin", {"use_absolute_embeddings": True}, "use_absolute_embeddings is True"),
        ("swin", {"mlp_ratio": 2.0}, "mlp_ratio is 2.0"),
        ("swin", {"patch_size": [4, 8]}, "no square one"),
        ("pvt_v2", {"strides": [4, 2, 1]}, "strides is"),
        ("pvt", {"qkv_bias": False}, "qkv_bias is False"),
        ("cvt", {"stride_kv": [1, 1, 1]}, "stride_kv is"),
    ],
)
def test_a_config_of_no_model_here_is_refused(key, changes, message, tmp_path):
    theirs(key).config.save_pretrained(tmp_path)
    path = tmp_path / hf_dir.CONFIG
    fields = json.loads(path.read_text()) | {"architectures": [CASES[key].theirs]}
    assert recorded.read_beside({hf_dir.CONFIG: fields}).config is not None
    with pytest.raises(UserError, match=message):
        recorded.read_beside({hf_dir.CONFIG: fields | changes})


def test_a_vit_is_read_by_its_numerics():
    fields = {"model_type": "vit", "num_attention_heads": 2}
    for act, eps, family, differ, is_other in (
        ("gelu_pytorch_tanh", 1e-6, "vit", 0, False),
        ("gelu_fast", 1e-6, "vit", 0, False),
        ("gelu", 1e-6, "deit", 0, False),
        ("gelu", 1e-12, "vit", 2, False),  # as transformers ships the original's weights
        ("gelu_pytorch_tanh", 1e-12, "vit", 1, False),
        ("gelu", 1e-5, "vit", 2, True),
        ("relu", 1e-12, "vit", 2, True),
        ("relu", 1e-6, "vit", 1, True),
    ):
        found = recorded.read_beside(
            {hf_dir.CONFIG: fields | {"hidden_act": act, "layer_norm_eps": eps}}
        )
        words, other = facts.other_function(found, found.config)
        assert (found.family, len(words), other) == (family, differ, is_other), (act, eps)


@pytest.mark.parametrize(
    ("key", "size", "message"),
    [
        ("swin", (40, 64), "multiples of 32 pixels"),  # 10 rows, shifted windows of 4
        ("swin", (16, 16), "multiples of 32 pixels"),
        ("swin", (30, 32), "multiples of 32 pixels"),
        ("swin", (16, 32), "multiples of 32 pixels"),
        ("beit", (48, 64), "square images only"),
        ("levit", (64, 48), "square"),
        ("levit", (72, 72), "multiples of 16"),
        ("pvt", (32, 64), "square"),
    ],
)
def test_image_sizes_that_transformers_computes_otherwise(key, size, message):
    config = ours(key).config
    build = families()[family_of(config)].layouts["hf"].build
    with pytest.raises(UserError, match=message):
        build.write(config, size)


# --- preprocessing --------------------------------------------------------------------------------

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    ("cls", "fields", "wanted"),
    [
        ("ViTImageProcessor", {}, (224, 1.0, "squash", "bilinear")),
        ("ViTImageProcessor", {"size": 384, "resample": 3}, (384, 1.0, "squash", "bicubic")),
        ("PvtImageProcessor", {}, (224, 1.0, "squash", "bicubic")),
        ("DeiTImageProcessor", {}, (224, 0.875, "squash", "bicubic")),
        ("DeiTImageProcessor", {"do_center_crop": False}, (256, 1.0, "squash", "bicubic")),
        ("LevitImageProcessor", {}, (224, 0.875, "shortest", "bicubic")),
        ("ConvNextImageProcessor", {}, (384, 1.0, "squash", "bicubic")),
        (
            "ConvNextImageProcessor",
            {"size": {"shortest_edge": 224}},
            (224, 0.875, "shortest", "bicubic"),
        ),
        (
            "ConvNextImageProcessor",
            {"size": {"shortest_edge": 192}, "crop_pct": 0.75},
            (192, 0.75, "shortest", "bicubic"),
        ),
        ("CLIPImageProcessor", {}, (224, 1.0, "shortest", "bicubic")),
    ],
)
def test_every_processor_is_read_as_it_computes(cls, fields, wanted, tmp_path):
    processor = getattr(transformers, cls)(**fields)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / hf_dir.PREPROCESSOR).read_text())
    found = hf_dir.preprocess(saved)
    assert (found.size, found.crop, found.resize, found.method) == (
        wanted[0],
        pytest.approx(wanted[1]),
        *wanted[2:],
    )
    # A picture of one colour in the middle: what is seen of it tells size, crop and shape.
    picture = np.zeros((300, 500, 3), np.uint8)
    picture[100:200, 200:300] = 255
    pixels = processor(picture, return_tensors="np")["pixel_values"][0]
    assert pixels.shape == (3, found.size, found.size)
    resized = round(found.size / found.crop)
    scale = {"squash": (resized / 300, resized / 500), "shortest": (resized / 300,) * 2}
    inside = pixels[0] > pixels[0].mean(keepdims=True).max() + 0.5
    for axis, factor in enumerate(scale[found.resize]):
        assert inside.any(1 - axis).sum() == pytest.approx(100 * factor, abs=2)
    assert pixels[:, 0, 0] == pytest.approx(-np.array(found.mean) / found.std, abs=1e-5)
    # Written again it is the same.
    size = (found.size, found.size)
    again = hf_dir.preprocess(hf_dir.preprocessor_json(found, size))
    assert again == dataclasses.replace(found, crop=pytest.approx(found.crop, abs=2e-3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resample": 1}, "resample is 1"),  # Lanczos
        ({"resample": 0}, "resample is 0"),  # the nearest
        ({"image_processor_type": "PvtImageProcessor"}, "resample is None"),  # versions differ
        ({"do_normalize": False}, "normalising"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"size": {"shortest_edge": 224}}, "crops nothing"),
        ({"size": {"longest_edge": 224}}, "height"),
    ],
)
def test_preprocessing_that_is_not_ours_is_said(fields, message, tmp_path):
    theirs("deit").float().save_pretrained(tmp_path)
    (tmp_path / hf_dir.PREPROCESSOR).write_text(json.dumps(_IMAGENET | fields))
    found = checkpoint.identify(tmp_path)
    (note,) = (note for note in found.notes if hf_dir.PREPROCESSOR in note)
    assert message in note


# --- folders of timm's hub ------------------------------------------------------------------------

_CFG = {
    "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
}  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "tag", "classes", "wanted", "computes"),
    [
        ("vit_tiny_patch16_224", "augreg_in21k_ft_in1k", 1000, "ViT-Ti_16", "tanh"),
        ("vit_base_patch16_224", "mae", 0, "deit_base_patch16_224", "erf"),
        ("deit_tiny_patch16_224", "fb_in1k", 1000, "deit_tiny_patch16_224", "erf"),
        ("swin_tiny_patch4_window7_224", "ms_in1k", 1000, "swin_tiny_patch4_window7_224", "erf"),
    ],
)
def test_folders_of_timms_hub(architecture, tag, classes, wanted, computes, tmp_path):
    config = config_of(wanted)
    shapes = names.expected_shapes(config, num_classes=classes, image_size=(224, 224))
    empty = {n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()}
    empty_file(tmp_path / "model.safetensors", names.exported(empty, config, "timm"))
    fields = {
        "architecture": architecture,
        "num_classes": classes,
        "pretrained_cfg": _CFG | {"tag": tag, "num_classes": classes},
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = checkpoint.identify(tmp_path)
    assert (found.format, found.layout, found.name) == ("hf", "timm", wanted)
    assert found.candidates == ()
    assert computes in families()[family_of(found.config)].computes
    assert (found.num_classes, found.image_size) == (classes, (224, 224))
    assert found.preprocess == Preprocess(
        224, 0.9, "shortest", "bicubic", True, tuple(_CFG["mean"]), tuple(_CFG["std"])
    )


def empty_file(path, tensors) -> None:
    """A file of zeros of these shapes, which takes no room on a disk."""
    header, end = {}, 0
    for name in tensors:
        start, end = end, end + 4 * tensors[name].size
        shape = list(tensors[name].shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + end)
