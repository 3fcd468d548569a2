import itertools
import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import timm
import torch
from checkpoint_helpers import SHAPES, assert_equal_trees, narrow, narrow_params
from recipes import GOLDEN, flatten, random_params, unflatten
from shapes import param_shapes

from vit_jax import checkpoint
from vit_jax.checkpoint.files.formats import open_archive, write_npz, write_safetensors
from vit_jax.checkpoint.stacked import stack_blocks
from vit_jax.errors import UserError
from vit_jax.families.vit import POSITIONS

POSEMB = POSITIONS
TARGETS = ("official", "big_vision", "orbax", "timm", "hf")
SUFFIX = {"official": ".npz", "big_vision": ".npz", "orbax": "", "timm": ".safetensors", "hf": ""}


# An Orbax checkpoint has a file or two a tensor: one model of each kind, with one block, is enough.
ORBAX = ("testing", "testing-unpooled", "ViT-S_16-gap-norep", "R+ViT-Ti_16", "Mixer-B_16")


def can_hold(target: str, name: str) -> bool:
    config = SHAPES[name]["config"]
    if target == "orbax" and name not in ORBAX:
        return False
    if target == "hf":
        return config.get("classifier") == "token" and "resnet" not in config
    return target != "big_vision" or "resnet" not in config


def shallow(config: dict) -> dict:
    if "num_blocks" in config:
        return config | {"num_blocks": 1}
    if config.get("resnet"):
        stages = [1] * len(config["resnet"]["num_layers"])
        config = config | {"resnet": config["resnet"] | {"num_layers": stages}}
    return config | {"transformer": config["transformer"] | {"num_layers": 1}}


def same_file(a, b) -> None:
    with open_archive(a) as x, open_archive(b) as y:
        assert x.specs == y.specs
        for name in x:
            assert x[name].tobytes() == y[name].tobytes(), name


def weights_of(path):
    file = path / "model.safetensors"
    return file if file.exists() else path


def tiny_vit(**changes):
    config = narrow(SHAPES["ViT-Ti_16"]["config"])
    config["transformer"]["num_layers"] = 2
    return config | changes


@pytest.fixture
def saved(tmp_path):
    """Saves parameters as an official file."""

    def save(config, num_patches=4, num_classes=3, name="src.npz"):
        params = narrow_params(config, num_classes=num_classes, num_patches=num_patches)
        checkpoint.save(tmp_path / name, params)
        return params, tmp_path / name

    return save


WHOLE = ("testing", "ViT-L_16", "R50+ViT-B_16", "Mixer-B_16")
PAIRS = [
    (name, first, second)
    for name in SHAPES
    for first, second in itertools.permutations(TARGETS, 2)
    if can_hold(first, name) and can_hold(second, name)
]


@pytest.mark.parametrize(("name", "first", "second"), PAIRS)
def test_there_and_back_for_every_pair(tmp_path, name, first, second):
    config = narrow(SHAPES[name]["config"])
    # One of those models that differ in their depth alone is whole.
    if name not in WHOLE or "orbax" in (first, second):
        config = shallow(config)
    checkpoint.save(tmp_path / "src.npz", narrow_params(config))
    suffix, options = SUFFIX, {}
    if "resnet" in config:  # timm builds no ResNet so narrow, so its weights go without metadata
        suffix = SUFFIX | {"timm": ".pth"}
        options = {"model": config, "allow": ("other-function",)}
    a, b, again = (
        tmp_path / f"{n}{suffix[t]}" for n, t in (("a", first), ("b", second), ("c", first))
    )
    checkpoint.convert(tmp_path / "src.npz", a, to=first, **options)
    checkpoint.convert(a, b, to=second, **options)
    checkpoint.convert(b, again, to=first, **options)
    same_file(weights_of(a), weights_of(again))


@pytest.mark.parametrize("target", TARGETS)
def test_load_reads_every_target(saved, tmp_path, target):
    params, src = saved(tiny_vit())
    checkpoint.convert(src, tmp_path / "dst", to=target)
    assert_equal_trees(checkpoint.load(tmp_path / "dst"), params)


def big_vision_files(tmp_path, params):
    """The same function in every layout that big_vision's files have had."""
    flat = flatten(params)
    position = flat.pop(POSEMB)
    folded = flat | {"cls": flat["cls"] + position[:, :1]}
    current = folded | {"pos_embedding": position[:, 1:]}
    older = {
        n.replace("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1")
        .replace("LayerNorm_1", "LayerNorm_2")
        .replace("MlpBlock_0", "MlpBlock_3"): x
        for n, x in flat.items()
    }
    stacked = flatten(stack_blocks(unflatten(current)))
    optimizer = {"opt/0/mu/cls": np.ones(3), "opt/0/count": np.int32(3)}
    return {
        "current": ({f"params/{n}": x for n, x in current.items()} | optimizer, True),
        "bare": (current, True),
        "stacked": ({f"params/{n}": x for n, x in stacked.items()}, True),
        "with class position": (flat | {"pos_embedding": position}, False),
        "in the encoder": (flat | {"Transformer/pos_embedding": position}, False),
        "pre-linen": (
            {f"opt/target/{n}": x for n, x in (older | {POSEMB: position}).items()},
            False,
        ),
    }


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    "layout",
    ["current", "bare", "stacked", "with class position", "in the encoder", "pre-linen"],
)
def test_big_vision_layouts(tmp_path, layout, bfloat16):
    params = narrow_params(tiny_vit())
    if bfloat16:
        params = unflatten({n: x.astype(ml_dtypes.bfloat16) for n, x in flatten(params).items()})
    tensors, folded = big_vision_files(tmp_path, params)[layout]
    write_npz(tmp_path / "x.npz", tensors)
    want = flatten(params)
    if folded:
        want["cls"] = want["cls"] + want[POSEMB][:, :1]
        want[POSEMB] = np.concatenate([want[POSEMB][:, :1] * 0, want[POSEMB][:, 1:]], axis=1)
        want[POSEMB][:, :1] = 0
    assert_equal_trees(checkpoint.load(tmp_path / "x.npz"), unflatten(want))
    found = checkpoint.identify(tmp_path / "x.npz")
    assert found.layout == ("released" if layout == "pre-linen" else "big_vision")
    assert found.skipped == (("opt/0/count", "opt/0/mu/cls") if layout == "current" else ())
    # What big_vision wrote comes back bit for bit.
    if layout == "current":
        checkpoint.convert(tmp_path / "x.npz", tmp_path / "y.npz", to="official")
        checkpoint.convert(tmp_path / "y.npz", tmp_path / "z.npz", to="big_vision")
        write_npz(tmp_path / "w.npz", {n: x for n, x in tensors.items() if n.startswith("params/")})
        with open_archive(tmp_path / "w.npz") as a, open_archive(tmp_path / "z.npz") as b:
            assert dict(a).keys() == dict(b).keys()
            for name in a:
                assert a[name].tobytes() == b[name].tobytes(), name


def test_class_position_on_a_grid_that_is_not_square_is_folded(saved, tmp_path):
    params, src = saved(tiny_vit(), num_patches=6)
    done = checkpoint.convert(src, tmp_path / "x.npz", to="big_vision")
    assert "the class token's position folded into `cls`" in done.steps
    with open_archive(tmp_path / "x.npz") as archive:
        assert archive.specs["params/pos_embedding"].shape == (1, 6, 8)
        want = flatten(params)["cls"] + flatten(params)[POSEMB][:, :1]
        np.testing.assert_array_equal(archive["params/cls"], want)


def test_sincos2d(tmp_path):
    config = tiny_vit(classifier="gap")
    flat = flatten(narrow_params(config))
    del flat[POSEMB]
    write_npz(tmp_path / "x.npz", {f"params/{n}": x for n, x in flat.items()})
    with pytest.raises(UserError, match="image size"):
        checkpoint.load(tmp_path / "x.npz")
    found = checkpoint.identify(tmp_path / "x.npz")
    assert any("image size" in text for text in found.ambiguous)
    assert found.grid is None
    done = checkpoint.convert(
        tmp_path / "x.npz", tmp_path / "y.npz", to="official", image_size=(48, 32)
    )
    assert "sincos2d" in done.steps[0]
    posemb = flatten(checkpoint.load(tmp_path / "y.npz"))[POSEMB].reshape(3, 2, 8)
    # width 8: sin x, cos x, sin y, cos y at frequencies 1 and 1e-4
    want = [np.sin(1), np.sin(1e-4), np.cos(1), np.cos(1e-4)]
    np.testing.assert_allclose(posemb[0, 1, :4], want, atol=1e-7)
    np.testing.assert_allclose(posemb[2, 1, 4:6], [np.sin(2), np.sin(2e-4)], atol=1e-7)


def test_map_head_into_real_timm(tmp_path):
    config = tiny_vit(classifier="map")
    params = narrow_params(config)
    flat = flatten(params)
    position = flat.pop(POSEMB)
    tensors = {f"params/{n}": x for n, x in (flat | {"pos_embedding": position}).items()}
    write_npz(tmp_path / "x.npz", tensors)
    with pytest.raises(UserError, match="attention-pooling"):
        checkpoint.convert(tmp_path / "x.npz", tmp_path / "y.npz", to="official")
    checkpoint.convert(tmp_path / "x.npz", tmp_path / "y.safetensors", to="timm")
    theirs = built_by_timm(tmp_path / "y.safetensors")
    other = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=8, depth=2, num_heads=2, mlp_ratio=5 / 8,
        class_token=False, global_pool="map", fc_norm=False, num_classes=3, act_layer="gelu_tanh",
    )  # fmt: skip
    timm.models.vision_transformer._load_weights(other, str(tmp_path / "x.npz"))
    for name, x in other.state_dict().items():
        np.testing.assert_array_equal(theirs.state_dict()[name], x, err_msg=name)
    checkpoint.convert(tmp_path / "y.safetensors", tmp_path / "z.npz", to="big_vision")
    write_npz(tmp_path / "x.npz", dict(sorted(tensors.items())))
    with open_archive(tmp_path / "z.npz") as archive:
        assert {n: archive[n].tobytes() for n in archive} == {
            n: x.tobytes() for n, x in tensors.items()
        }


def built_by_timm(path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "np") as f:
        described = json.loads(f.metadata()["timm"])
    model = timm.create_model(described["architecture"], **described["model_args"])
    model.load_state_dict(load_file(path), strict=True)
    return model


@pytest.mark.parametrize("target", ["official", "big_vision"])
@pytest.mark.parametrize("name", ["ViT-Ti_16", "R+ViT-Ti_16"])
def test_timms_own_loader_reads_our_npz(saved, tmp_path, target, name):
    if not can_hold(target, name):
        return
    config = dict(SHAPES[name]["config"])
    config["transformer"] = config["transformer"] | {"num_layers": 1}
    shapes = param_shapes(config, num_classes=3, num_patches=4)
    params = random_params(shapes, 0.02)
    checkpoint.save(tmp_path / "src.npz", params)
    checkpoint.convert(tmp_path / "src.npz", tmp_path / "x.npz", to=target)
    arch = {"ViT-Ti_16": "vit_tiny_patch16_224", "R+ViT-Ti_16": "vit_tiny_r_s16_p8_224"}[name]
    size = 32 if name == "ViT-Ti_16" else 64
    model = timm.create_model(arch, depth=1, img_size=size, num_classes=3)
    timm.models.vision_transformer._load_weights(model, str(tmp_path / "x.npz"))
    want = checkpoint.to_torch({"params": params}, config)
    for key, x in model.state_dict().items():
        np.testing.assert_array_equal(x, want[key], err_msg=key)


@pytest.mark.parametrize("image_size", [(32, 32), (32, 48)])
def test_real_transformers_reads_the_directory(tmp_path, image_size):
    from transformers import ViTForImageClassification, ViTImageProcessor

    config = tiny_vit()
    rows, columns = image_size[0] // 16, image_size[1] // 16
    shapes = param_shapes(config, num_classes=3, num_patches=rows * columns)
    params = random_params(shapes, 0.2)
    names = ["tench", "crane", "crane"]
    ours = {"class_names": names, "name": "mine", "config": config, "preprocess": {"size": 32}}
    checkpoint.save(tmp_path / "x.npz", params, metadata={"vit_jax": json.dumps(ours)})
    options = {} if rows == columns else {"image_size": image_size}
    checkpoint.convert(tmp_path / "x.npz", tmp_path / "hf", to="hf", **options)
    model, report = ViTForImageClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert model.config.layer_norm_eps == 1e-6
    assert model.config.hidden_act == "gelu_pytorch_tanh"
    assert [model.config.id2label[i] for i in range(3)] == names
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, *image_size)).logits.shape == (1, 3)
    # A live model's names (transformers 5) and the file's lead back to the same bits.
    back = checkpoint.from_torch(model.state_dict(), config, layout="hf")["params"]
    assert_equal_trees(back, params)
    processor = ViTImageProcessor.from_pretrained(tmp_path / "hf")
    pixels = processor(np.full((50, 70, 3), 255, np.uint8), return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, *image_size)
    np.testing.assert_allclose(pixels, 1.0, atol=1e-6)


def test_hugging_face_writes_what_we_read(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=4, intermediate_size=5,
        image_size=32, patch_size=16, num_labels=3,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "hf")
    found = checkpoint.identify(tmp_path / "hf")
    assert (found.format, found.layout, found.num_classes) == ("hf", "hf", 3)
    assert found.config["transformer"]["num_heads"] == 4
    assert found.class_names is None
    assert "its hidden_act is 'gelu', ours is 'gelu_pytorch_tanh'" in found.notes
    assert "its layer_norm_eps is 1e-12, ours is 1e-06" in found.notes
    done = checkpoint.convert(tmp_path / "hf", tmp_path / "x.npz", to="official")
    assert done.notes == found.notes
    checkpoint.convert(tmp_path / "x.npz", tmp_path / "again", to="hf")
    same_file(tmp_path / "hf" / "model.safetensors", tmp_path / "again" / "model.safetensors")
    # A ViTModel's pooler is the official pre_logits.
    ViTModel(config).save_pretrained(tmp_path / "pooled")
    params = checkpoint.load(tmp_path / "pooled")
    assert params["pre_logits"]["kernel"].shape == (8, 8)
    checkpoint.convert(tmp_path / "pooled", tmp_path / "y.npz", to="official")
    checkpoint.convert(tmp_path / "y.npz", tmp_path / "z", to="hf")
    same_file(tmp_path / "pooled" / "model.safetensors", tmp_path / "z" / "model.safetensors")


def test_directories_that_are_not_hugging_faces(tmp_path, saved):
    _, src = saved(tiny_vit())
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="left alone"):
        checkpoint.convert(src, mine, to="hf")
    assert (mine / "thesis.txt").read_text() == "years of work"
    for text, message in (("{", "JSON"), ("[]", "JSON object"), ('{"model_type": "gpt2"}', "gpt2")):
        (mine / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            checkpoint.identify(mine)
    (mine / "config.json").write_text('{"model_type": "vit", "num_attention_heads": 2}')
    with pytest.raises(UserError, match="no weights"):
        checkpoint.identify(mine)


def test_options_are_steps_in_the_record(saved, tmp_path):
    params, src = saved(tiny_vit(representation_size=6))
    with pytest.raises(UserError, match="drop_pre_logits"):
        checkpoint.convert(src, tmp_path / "x.safetensors", to="timm")
    assert not (tmp_path / "x.safetensors").exists()
    seen = []
    done = checkpoint.convert(
        src, tmp_path / "x.safetensors", to="timm", drop_pre_logits=True, num_classes=5,
        image_size=(48, 32), resize_method="timm", dtype="bfloat16",
        progress=lambda now, end: seen.append((now, end)),
    )  # fmt: skip
    assert set(done.dropped) == {
        "pre_logits/kernel", "pre_logits/bias", "head/kernel", "head/bias"
    }  # fmt: skip
    assert [s.split(" ")[0] for s in done.steps] == ["pre_logits", "head", "resized", "cast"]
    assert seen[-1][0] == seen[-1][1]
    assert [now for now, _ in seen] == sorted(now for now, _ in seen)
    found = checkpoint.identify(tmp_path / "x.safetensors")
    assert (found.grid, found.num_classes, found.head_is_zero) == ((3, 2), 5, True)
    assert found.dtypes == {"bfloat16": len(found.tensors)}
    want = checkpoint.resize_posembed(flatten(params)[POSEMB], (2, 2), (3, 2), 1, "timm")
    got = flatten(checkpoint.load(tmp_path / "x.safetensors"))
    np.testing.assert_array_equal(got[POSEMB], want.astype(ml_dtypes.bfloat16))
    (record,) = json.loads(found.metadata["vit_jax_conversion"])
    assert record["steps"] == list(done.steps)
    assert record["source"]["sha256"] == done.source_sha256
    # The record grows with every conversion.
    checkpoint.convert(tmp_path / "x.safetensors", tmp_path / "y.npz", to="official")
    found = checkpoint.identify(tmp_path / "y.npz")
    assert len(json.loads(found.metadata["vit_jax_conversion"])) == 2
    assert found.grid == (3, 2)


def test_not_finite_numbers_are_converted_and_reported(saved, tmp_path):
    params, _ = saved(tiny_vit())
    params["head"]["bias"][:2] = np.nan, np.inf
    params["head"]["kernel"][0, 0] = 1e30
    checkpoint.save(tmp_path / "x.npz", params)
    done = checkpoint.convert(tmp_path / "x.npz", tmp_path / "y.npz", to="official")
    assert done.not_finite == {"head/bias": 2}
    assert_equal_trees(checkpoint.load(tmp_path / "y.npz", allow=["not-finite"]), params)
    done = checkpoint.convert(tmp_path / "x.npz", tmp_path / "y", to="timm", dtype="float16")
    assert done.not_finite == {"head.bias": 2, "head.weight": 1}


def test_identify_names_registered_models_and_what_is_open(tmp_path):
    for name, patches in (("ViT-Ti_16", 4), ("R+ViT-Ti_16", 4), ("ViT-S_16-gap-norep", 4)):
        shapes = param_shapes(SHAPES[name]["config"], num_classes=2, num_patches=patches)
        params = unflatten({n: np.zeros(s, np.float16) for n, s in shapes.items()})
        checkpoint.save(tmp_path / "x.npz", params)
        write_safetensors(
            tmp_path / "y", checkpoint.to_torch({"params": params}, SHAPES[name]["config"])
        )
        # A DeiT has the tensors of a ViT, but for their names here.
        several = name == "ViT-Ti_16"
        for file, layout in (("x.npz", "released"), ("y", "timm")):
            found = checkpoint.identify(tmp_path / file, name if several else None)
            assert found.models == (name,)
            assert (found.layout, found.grid, found.head_is_zero) == (layout, (2, 2), True)
            assert found.config["transformer"]["num_heads"] in (3, 6)
            assert bool(found.ambiguous) == ("gap" in name)
            assert json.dumps(found.to_dict())
        assert found.num_params == sum(np.prod(s, dtype=int) for s in shapes.values())


def test_heads_that_nobody_knows_must_be_named(tmp_path):
    config = tiny_vit()
    state = checkpoint.to_torch({"params": narrow_params(config)}, config)
    write_safetensors(tmp_path / "x", state)
    found = checkpoint.identify(tmp_path / "x")
    assert found.models == ()
    assert "attention heads" in found.ambiguous[0]
    with pytest.raises(UserError, match="attention heads"):
        checkpoint.convert(tmp_path / "x", tmp_path / "y.npz", to="official")
    checkpoint.convert(tmp_path / "x", tmp_path / "y.npz", to="official", model=config)
    for other in ("ViT-B_16", "Mixer-B_16", dict(config, hidden_size=4)):
        with pytest.raises(UserError, match="does not hold"):
            checkpoint.load(tmp_path / "x", other)


def test_refusals(saved, tmp_path):
    _, src = saved(tiny_vit())
    mixer = narrow(SHAPES["Mixer-B_32"]["config"])
    checkpoint.save(tmp_path / "mixer.npz", narrow_params(mixer))
    write_npz(tmp_path / "other.npz", {"Dense_0/kernel": np.ones((2, 3))})
    for kwargs, message in (
        ({"to": "onnx"}, "unknown format"),
        ({"to": "timm", "dtype": "float8"}, "unknown dtype"),
        ({"to": "timm", "num_classes": -1}, "0 or more"),
        ({"to": "timm", "image_size": (8, 8)}, "hold no patch"),
        ({"to": "timm", "image_size": (64, 64), "resize_method": "x"}, "unknown resize method"),
        ({"to": "timm", "src": "mixer.npz", "image_size": (128, 128)}, "cannot be resized"),
        ({"to": "hf", "src": "mixer.npz"}, "has no layout 'hf'"),
        ({"to": "timm", "src": "other.npz"}, "names of no model here"),
        ({"to": "timm", "src": "missing.npz"}, "missing.npz"),
    ):
        source = tmp_path / kwargs.pop("src", src.name)
        with pytest.raises(UserError, match=message):
            checkpoint.convert(source, tmp_path / "dst", **kwargs)
        assert not (tmp_path / "dst").exists()


def test_a_whole_process_streams(tmp_path):
    """Peak memory stays far below the file's size, and neither JAX nor torch is imported."""
    config = {
        "patches": {"size": (16, 16)}, "hidden_size": 512, "classifier": "token",
        "representation_size": None,
        "transformer": {"mlp_dim": 2048, "num_heads": 8, "num_layers": 32},
    }  # fmt: skip
    shapes = param_shapes(config, num_classes=10, num_patches=4)
    tensors = {n: np.broadcast_to(np.float32(1), s) for n, s in shapes.items()}
    checkpoint.save(tmp_path / "x.npz", unflatten(tensors))
    size = (tmp_path / "x.npz").stat().st_size
    code = (
        "import resource, sys\nfrom vit_jax import checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"checkpoint.convert({str(tmp_path / 'x.npz')!r}, {str(tmp_path / 'y')!r}, to='timm')\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print((after - before) * 1024, 'jax' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, jax, torch_ = done.stdout.split()
    assert (jax, torch_) == ("False", "False")
    assert size > 400e6
    assert int(grown) < 80e6


def test_golden_file_reaches_timm(tmp_path):
    done = checkpoint.convert(
        GOLDEN / "ckpt_testing_rep_prelinen.npz", tmp_path / "x", to="timm", drop_pre_logits=True
    )
    assert done.source_layout == "released"
    found = checkpoint.identify(tmp_path / "x")
    assert (found.num_classes, found.head_is_zero) == (0, None)
