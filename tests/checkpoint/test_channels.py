"""Models of any number of channels: told by the tensors, fitted by timm's rule, converted."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import timm.models
import torch

from vit_jax import checkpoint, inference
from vit_jax.checkpoint import edits, names
from vit_jax.checkpoint.conversion import convert
from vit_jax.checkpoint.files.formats import open_archive
from vit_jax.errors import UserError
from vit_jax.families.registry import families, resolve, shrunk, taking
from vit_jax.models import from_config
from vit_jax.parity import compare, references
from vit_jax.parity.figures import relative_error
from vit_jax.parity.subject import random_params
from vit_jax.parity.traces import trace_ours, trace_torch
from vit_jax.tree import unflatten
from vit_jax.variables import collections

SIZE = (32, 48)
TARGETS = {"official": "x.npz", "orbax": "x", "timm": "x.safetensors", "hf": "x-hf"}


def tiny(name: str = "ViT-Ti_16", channels: int = 1) -> dict:
    return {**shrunk(resolve(name).config.to_dict()), "channels": channels}


def params(config: dict, size=SIZE) -> dict[str, np.ndarray]:
    return random_params(names.expected_shapes(config, num_classes=3, image_size=size), seed=0)


@pytest.mark.parametrize("name", taking("images"))
def test_the_stem_is_what_has_the_channels(name):
    channels = 11  # which nothing else of a tiny model has
    config = shrunk({"family": name, **next(iter(families()[name].architectures.values())).config})
    config |= {"channels": channels}
    shapes = names.expected_shapes(config, num_classes=3, image_size=(64, 64))
    family = families()[name]
    stem = {*family.stem(config), *family.stem_norms(config)}
    assert {n for n, s in shapes.items() if channels in s} == stem
    assert names.channels_of(config, shapes) == channels


@pytest.mark.parametrize("channels", [1, 5])
def test_logits_are_timms(channels):
    config = tiny(channels=channels)
    weights = unflatten(params(config))
    found = compare(config, weights=weights, against="timm", image_size=SIZE, num_images=2)
    assert found.matched.logits.error <= 1e-9


@pytest.mark.parametrize("channels", [1, 5])
def test_logits_of_a_pyramid_are_timms(channels):
    config, size = tiny("pvt_v2_b0", channels), (64, 96)
    variables = {"params": unflatten(params(config, size))}
    images = np.random.default_rng(0).uniform(-1, 1, (2, *size, channels)).astype(np.float32)
    state = checkpoint.to_torch(variables, config)
    module = references.get("timm").build(
        config, state, num_classes=3, image_size=size, matched=True
    )
    ours = trace_ours(from_config(config, num_classes=3), variables, images, [], np.float64)
    theirs = trace_torch(module, images, [], np.float64)
    assert relative_error(ours.logits, theirs.logits) <= 1e-9


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6])
def test_the_rule_for_a_change_of_channels_is_timms(channels):
    config = tiny(channels=3)
    ours = params(config)
    edit = edits.with_channels(config, names.shapes_of(ours), channels)
    assert edit is not None
    assert edit.config == {"channels": channels}
    got = names.applied(edit, ours)["embedding/kernel"]
    kernel = torch.from_numpy(ours["embedding/kernel"]).permute(3, 2, 0, 1)
    wanted = timm.models.adapt_input_conv(channels, kernel.contiguous())
    np.testing.assert_allclose(got, wanted.permute(2, 3, 1, 0).numpy(), rtol=1e-5, atol=1e-7)
    assert edits.with_channels(config, names.shapes_of(ours), 3) is None
    with pytest.raises(UserError, match="1 or more; got 0"):
        edits.with_channels(config, names.shapes_of(ours), 0)


@pytest.mark.parametrize("to", TARGETS)
def test_a_model_of_one_channel_goes_there_and_back(tmp_path, to):
    config = tiny()
    ours = params(config)
    src, dst, back = tmp_path / "src.npz", tmp_path / TARGETS[to], tmp_path / "back.npz"
    checkpoint.save_timm(tmp_path / "src.safetensors", unflatten(ours), config, image_size=SIZE)
    convert(tmp_path / "src.safetensors", src, to="official")
    convert(src, dst, to=to)
    convert(dst, back, to="official")
    facts = checkpoint.identify(dst)
    assert facts.config is not None
    assert (facts.config["channels"], facts.image_size) == (1, SIZE)
    model = facts.model()
    assert (model.preprocess.channels, model.preprocess.height_width) == (1, SIZE)
    with open_archive(src) as first, open_archive(back) as last:
        assert all(np.array_equal(first[n], last[n]) for n in first)
    if to == "timm":
        with open_archive(dst) as archive:
            described = json.loads(archive.metadata["timm"])
        assert described["model_args"]["in_chans"] == 1
        assert described["pretrained_cfg"]["input_size"] == [1, *SIZE]
    if to == "hf":
        fields = json.loads((dst / "config.json").read_text())
        assert fields["num_channels"] == 1
        processor = json.loads((dst / "preprocessor_config.json").read_text())
        assert processor["image_mean"] == [0.5]
        (dst / "config.json").write_text(json.dumps(fields | {"num_channels": 3}))
        bare = safetensors.numpy.load_file(dst / "model.safetensors")  # without our own metadata
        safetensors.numpy.save_file(bare, dst / "model.safetensors")
        with pytest.raises(UserError, match="of 1 channels; the model here is one of 3"):
            checkpoint.identify(dst)


def test_weights_of_rgb_start_a_model_of_one_channel(tmp_path, caplog):
    ours = params(tiny(channels=3))
    checkpoint.save(tmp_path / "x.npz", unflatten(ours))
    convert(
        tmp_path / "x.npz", tmp_path / "y.npz", to="official", model=tiny(channels=3), channels=1
    )
    init = unflatten(params(tiny()))
    found = checkpoint.load_pretrained(
        pretrained_path=tmp_path / "x.npz",
        init_params=init,
        model_config=tiny(),
        old_grid=(2, 3),
        new_grid=(2, 3),
    )
    got = found["embedding"]["kernel"]
    np.testing.assert_allclose(got, ours["embedding/kernel"].sum(2, keepdims=True), atol=1e-7)
    assert "3 channels of the images become 1, summed" in caplog.text
    with open_archive(tmp_path / "y.npz") as converted:
        assert np.array_equal(converted["embedding/kernel"], got)
        assert "become 1, summed" in converted.metadata["vit_jax_conversion"]


def test_a_model_of_five_channels_reads_arrays(tmp_path):
    config = tiny(channels=5)
    checkpoint.save_timm(
        tmp_path / "x.safetensors", unflatten(params(config)), config, image_size=SIZE
    )
    loaded = inference.load_model(tmp_path / "x.safetensors")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (40, 50, 5), np.uint8))
    image = loaded.read_image(tmp_path / "x.npy")
    assert image.shape == (*SIZE, 5)
    assert loaded.logits(image[None]).shape == (1, 3)
    with pytest.raises(UserError, match=r"expected images \[N, height, width, 5\]"):
        loaded.logits(image[None, ..., :3])


# --- images that do not fit ----------------------------------------------------------------------

WRONG = {
    "channels first": ((2, 3, 64, 64), r"got \[2, 3, 64, 64\], whose channels come first"),
    "one channel": ((2, 64, 64, 1), r"expected images \[N, height, width, 3\].*--channels 1"),
    "an empty batch": ((0, 64, 64, 3), r"at least one image .*an empty batch \[0, 64, 64, 3\]"),
    "no batch": ((64, 64, 3), r"got \[64, 64, 3\]; add the axis of the batch"),
    "another size": ((2, 96, 64, 3), r"expected images of .*, got 96×64; resize the images"),
}
# What fits images of any size.
ANY_SIZE = ("cpvt", "cvt", "dinov3", "naflex_vision", "pvt_v2", "simple_vit", "twins", "vt")


@pytest.mark.parametrize("family", taking("images"))
def test_images_that_do_not_fit_are_one_sentence(family):
    known = families()[family].architectures
    config = shrunk({"family": family, **next(iter(known.values())).config})
    shapes = names.expected_shapes(config, num_classes=3, image_size=(64, 64))
    model = from_config(config, num_classes=3)
    floats = {n: jax.ShapeDtypeStruct(s, "float32") for n, s in shapes.items()}
    variables = collections(floats, names.statistics(config))
    for what, (shape, message) in WRONG.items():
        images = jax.ShapeDtypeStruct(shape, "float32")
        if what == "another size" and family in ANY_SIZE:
            continue
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)


def test_a_model_has_a_name():
    from vit_jax.models import get_model

    nameless: str = None  # pyright: ignore[reportAssignmentType]
    with pytest.raises(UserError, match=r"expected the registered name of a model, .* got None"):
        get_model(nameless)
