"""Masked autoencoders of transformers: numbers, spellings, directories; and encoders alone."""

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from zoo_mae import CONFIG, PATCH

from vit_jax.checkpoint import convert, from_torch, identify, load, load_pretrained, names, to_torch
from vit_jax.checkpoint.files.formats import open_archive, write_npz
from vit_jax.checkpoint.recorded import OURS
from vit_jax.errors import UserError
from vit_jax.families.mae import DECODER, ENCODER, encoder_config
from vit_jax.models import from_config
from vit_jax.parity.comparing import compare
from vit_jax.parity.figures import FLOAT32_BAR, FLOAT64_BAR, relative_error
from vit_jax.parity.references import load as load_weights
from vit_jax.parity.subject import random_params
from vit_jax.parity.traces import trace_ours
from vit_jax.train.masked_autoencoder import KEPT, MaskedAutoencoding
from vit_jax.tree import arrays, unflatten

# transformers builds a model of oblong images only where the number of patches is a square.
SQUARE, OBLONG = (32, 32), (16, 64)


@functools.cache
def weights(size: tuple[int, int] = SQUARE) -> dict[str, np.ndarray]:
    """Every parameter random, the tables of positions too."""
    shapes = names.expected_shapes(CONFIG, num_classes=0, image_size=size)
    return random_params(shapes, seed=0)


def tree(size: tuple[int, int] = SQUARE) -> dict[str, Any]:
    return {"params": unflatten(weights(size))}


def theirs(size: tuple[int, int] = SQUARE, **entries: Any) -> Any:
    """transformers' model with these weights, loaded strictly."""
    build = names.layout_of(CONFIG, "hf").build
    fields = build.write(CONFIG, size) | {"attn_implementation": "sdpa"} | entries
    module = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**fields))
    state = to_torch(tree(size), CONFIG, "hf")
    live = names.respelled(module.state_dict(), CONFIG, "hf")
    load_weights(module, {live[name]: x for name, x in state.items()})
    return module.eval()


@functools.cache
def batch(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images and noise."""
    rng = np.random.default_rng(1)
    patches = size[0] * size[1] // 64
    return rng.uniform(-1, 1, (2, *size, 3)), rng.uniform(size=(2, patches))


@functools.cache
def ours(size: tuple[int, int], dtype: Any, norm_pixels: bool) -> tuple[np.ndarray, float]:
    """Predictions and loss."""
    import jax

    images, noise = batch(size)
    task = MaskedAutoencoding(PATCH, norm_pixels=norm_pixels)
    with jax.enable_x64(dtype == np.float64):
        images = images.astype(dtype)
        made, asked = task.masked(noise.astype(dtype), {"image": images})
        inputs = {"images": images, KEPT: np.asarray(asked[KEPT])}
        pred = trace_ours(from_config(CONFIG), tree(size), inputs, [], dtype).logits
        return pred, float(jax.jit(task.loss)((pred,), made).mean())


def of_transformers(module: Any, size: tuple[int, int], dtype: Any) -> tuple[np.ndarray, float]:
    """The same; its own loss is for square images only."""
    images, noise = (torch.from_numpy(x.astype(dtype)) for x in batch(size))
    pixels = images.permute(0, 3, 1, 2)
    with torch.no_grad():
        if size == SQUARE:
            output = module(pixels, noise=noise)
            return output.logits.numpy(), float(output.loss)
        encoded = module.vit(pixels, noise=noise)
        pred = module.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
        return pred.numpy(), float("nan")


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_loss_and_predictions_are_transformers(norm_pixels):
    module = theirs(norm_pix_loss=norm_pixels).double()
    pred, loss = of_transformers(module, SQUARE, np.float64)
    found = ours(SQUARE, np.float64, norm_pixels)
    assert relative_error(found[0], pred) <= FLOAT64_BAR
    np.testing.assert_allclose(found[1], loss, rtol=FLOAT64_BAR)


def test_parity_compares_all_of_it():
    """Every block of both parts, the predictions, and gradients; by the patches that are kept."""
    how: dict[str, Any] = {"num_classes": 0, "num_images": 2}
    found = compare(CONFIG, image_size=(48, 48), gradients=True, **how)
    drifts = [*found.matched.blocks, found.matched.logits]
    assert max(drift.error for drift in drifts) <= FLOAT64_BAR
    assert max(drift.error_float32 for drift in drifts) <= FLOAT32_BAR
    assert len(drifts) == CONFIG["num_layers"] + CONFIG["decoder"]["num_layers"] + 1
    assert found.as_shipped.logits.error > FLOAT64_BAR  # with another eps
    assert max(tensor.error for tensor in found.gradients.tensors) <= FLOAT64_BAR
    for size, message in ((OBLONG, "takes square images"), ((32, 48), "cannot be built")):
        with pytest.raises(UserError, match=message):
            compare(CONFIG, image_size=size, **how)


def test_in_float32():
    pred, loss = of_transformers(theirs(norm_pix_loss=True), SQUARE, np.float32)
    found = ours(SQUARE, np.float32, True)
    assert relative_error(found[0], pred) <= FLOAT32_BAR
    np.testing.assert_allclose(found[1], loss, rtol=FLOAT32_BAR)


def test_predictions_of_oblong_images_and_controls():
    """The LayerNorm eps that transformers ships, tanh GELU and its eager softmax are seen."""
    module = theirs(OBLONG).double()
    pred, _ = of_transformers(module, OBLONG, np.float64)
    found = ours(OBLONG, np.float64, True)[0]
    assert relative_error(found, pred) <= FLOAT64_BAR
    changes = ({"layer_norm_eps": 1e-5}, {"hidden_act": "gelu_pytorch_tanh"})
    # Its eager attention takes the softmax in float32, whatever the type of the model.
    for change in (*changes, {"attn_implementation": "eager"}):
        other, _ = of_transformers(theirs(OBLONG, **change).double(), OBLONG, np.float64)
        assert relative_error(found, other) > FLOAT64_BAR, change


# --- spellings and directories --------------------------------------------------------------------


def test_all_spellings_are_the_same_weights(tmp_path):
    """Of live models, of files that version 5 writes, and of version 4, which is written here."""
    module = theirs()
    module.save_pretrained(tmp_path / "theirs")
    saved = load_file(tmp_path / "theirs" / "model.safetensors")
    live = {name: x.numpy() for name, x in module.state_dict().items()}
    older = to_torch(tree(), CONFIG, "hf")
    assert any(name.startswith("decoder.decoder_encoder.layer.0.") for name in saved)
    assert any(name.startswith("decoder.decoder_layers.0.attention.q_proj.") for name in live)
    assert any(".decoder_layers.0.attention.attention.query." in name for name in older)
    for state in (saved, live, older):
        flat = arrays(from_torch(state, CONFIG, "hf")["params"])
        assert flat.keys() == weights().keys()
        for name, x in weights().items():
            np.testing.assert_array_equal(flat[name], x, err_msg=name)
    found = identify(tmp_path / "theirs")
    assert (found.config["family"], found.layout) == ("mae", "hf")
    read = arrays(load(tmp_path / "theirs"))
    assert all((read[name] == x).all() for name, x in weights().items())


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("mae") / "mae.npz"
    write_npz(path, weights(), {OURS: json.dumps({"name": "tiny", "config": CONFIG})})
    return path


def test_a_directory_for_transformers_is_loaded_whole(npz, tmp_path):
    """Its loader misses nothing, and computes our predictions with its own configuration."""
    convert(npz, tmp_path / "hf", to="hf")
    module, report = transformers.ViTMAEForPreTraining.from_pretrained(
        tmp_path / "hf", output_loading_info=True, attn_implementation="sdpa"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert module.config.layer_norm_eps == 1e-6
    pred, _ = of_transformers(module.eval().double(), SQUARE, np.float64)
    assert relative_error(ours(SQUARE, np.float64, True)[0], pred) <= FLOAT64_BAR
    convert(tmp_path / "hf", tmp_path / "torch.safetensors", to="torch")
    save_file(load_file(tmp_path / "torch.safetensors"), tmp_path / "bare.safetensors")
    convert(tmp_path / "bare.safetensors", tmp_path / "back.npz", to="official", model=CONFIG)
    with open_archive(tmp_path / "back.npz") as archive:
        for name, x in weights().items():
            np.testing.assert_array_equal(archive[name], x, err_msg=name)


# --- the encoder alone ----------------------------------------------------------------------------


def encoder() -> dict[str, np.ndarray]:
    below = f"{ENCODER}/"
    return {n.removeprefix(below): x for n, x in weights().items() if n.startswith(below)}


def test_the_encoder_is_a_part_that_timm_loads(npz, tmp_path):
    import timm

    done = convert(npz, tmp_path / "encoder.safetensors", to="timm", part=ENCODER)
    assert "the weights 'encoder' are read, not 'decoder'" in done.notes
    read = arrays(load(tmp_path / "encoder.safetensors"))
    assert read.keys() == encoder().keys()
    module = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0
    )
    load_weights(module, load_file(tmp_path / "encoder.safetensors"))
    images = batch(SQUARE)[0]
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        wanted = module.eval().double()(pixels).numpy()
    model = from_config(encoder_config(CONFIG))
    found = trace_ours(model, {"params": unflatten(encoder())}, images, [], np.float64).logits
    assert relative_error(found, wanted) <= FLOAT64_BAR


def test_an_encoder_of_transformers_is_read(tmp_path):
    """`ViTMAEModel`, which computes a DeiT where no patch is removed."""
    whole = theirs(mask_ratio=0.0)
    whole.vit.save_pretrained(tmp_path / "encoder")
    found = identify(tmp_path / "encoder")
    assert (found.config["family"], found.layout) == ("deit", "hf")
    read = arrays(load(tmp_path / "encoder"))
    assert read.keys() == encoder().keys()
    assert all((read[name] == x).all() for name, x in encoder().items())
    images, noise = batch(SQUARE)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        output = whole.vit.double()(pixels, noise=torch.from_numpy(noise))
    model = from_config(encoder_config(CONFIG))
    mine = trace_ours(model, {"params": unflatten(read)}, images, [], np.float64).logits
    assert relative_error(mine, output.last_hidden_state[:, 0].numpy()) <= FLOAT64_BAR


# --- fine-tuning ----------------------------------------------------------------------------------


def tuned(path: Any, config: dict[str, Any], size: tuple[int, int] = SQUARE) -> dict[str, Any]:
    """What `load_pretrained` makes of fresh parameters that are 7 all over."""
    shapes = names.expected_shapes(config, num_classes=5, image_size=size)
    init = {name: np.full(shape, 7, np.float32) for name, shape in shapes.items()}
    grid = size[0] // 8, size[1] // 8
    params = load_pretrained(
        pretrained_path=path, init_params=unflatten(init), model_config=config, new_grid=grid
    )
    found = arrays(params)
    assert {name: x.shape for name, x in found.items()} == shapes
    return found


def averaging(norm_mean: bool = True) -> dict[str, Any]:
    return {**encoder_config(CONFIG), "family": "vit_avg", "norm_mean": norm_mean}


def test_fine_tuning_leaves_the_decoder_behind_by_name(npz, caplog):
    found = tuned(npz, averaging())
    assert "left behind: decoder" in caplog.text
    assert "left behind: Transformer/encoder_norm/bias, Transformer/encoder_norm/scale" in (
        caplog.text
    )
    fresh = {name for name, x in found.items() if (x == 7).all()}
    assert fresh == {"head/kernel", "head/bias", "fc_norm/scale", "fc_norm/bias"}
    for name in found.keys() - fresh:
        np.testing.assert_array_equal(found[name], encoder()[name], err_msg=name)


def test_other_models_that_begin_with_it(npz, tmp_path):
    """A class token that is read, and a norm of all tokens: every tensor of the encoder."""
    for config in ({**encoder_config(CONFIG)}, averaging(norm_mean=False)):
        found = tuned(npz, config)
        assert {n for n, x in found.items() if (x == 7).all()} == {"head/kernel", "head/bias"}
    # An encoder alone does, too.
    convert(npz, tmp_path / "encoder.safetensors", to="timm", part=ENCODER)
    alone = tuned(tmp_path / "encoder.safetensors", averaging())
    assert all((alone[name] == x).all() for name, x in tuned(npz, averaging()).items())


def test_fine_tuning_at_another_size(npz):
    """In both directions, and to an oblong one: the class token's row stays zero."""
    for size in ((48, 48), (16, 16), (24, 56)):
        found = tuned(npz, averaging(), size)["posembed_input/pos_embedding"]
        np.testing.assert_array_equal(found[:, 0], encoder()["posembed_input/pos_embedding"][:, 0])
        assert np.isfinite(found).all()


def test_both_tables_are_resized(npz, tmp_path):
    convert(npz, tmp_path / "large.npz", to="official", image_size=(32, 48))
    with open_archive(tmp_path / "large.npz") as archive:
        for part in (ENCODER, DECODER):
            assert archive[f"{part}/posembed_input/pos_embedding"].shape[1] == 25


def test_what_a_whole_one_cannot_be_is_said(npz, tmp_path):
    changes: list[tuple[dict[str, Any], str]] = [
        ({"channels": 1}, "it predicts their pixels, of all channels; .*--part encoder"),
        ({"num_classes": 10}, "has no classes, but num_classes=10.*--part encoder"),
    ]
    for change, message in changes:
        with pytest.raises(UserError, match=message):
            convert(npz, tmp_path / "out.npz", to="official", **change)
    convert(npz, tmp_path / "grey.npz", to="official", part=ENCODER, channels=1)
    with open_archive(tmp_path / "grey.npz") as archive:
        assert archive["embedding/kernel"].shape == (8, 8, 1, 32)


def test_what_does_not_go_on_is_refused(npz):
    other = {**encoder_config(CONFIG), "family": "deit3"}
    with pytest.raises(UserError, match="does not hold this model"):
        tuned(npz, other)
