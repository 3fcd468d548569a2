"""SigLIP 2's models of variable size against transformers and timm, and their batches of patches.

Both libraries resize positions in float32 whatever the model's type: here PyTorch's own
interpolation in float64 takes that place.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from kernels import kernels
from torch.nn import functional
from transformers.models.siglip2 import image_processing_siglip2 as theirs_sizes
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from zoo_cases import config_of

from vit_jax import checkpoint
from vit_jax.checkpoint import names, to_torch
from vit_jax.errors import UserError
from vit_jax.input_pipeline.patches import patch_batch
from vit_jax.layers import flexible
from vit_jax.layers.attention.choice import attending
from vit_jax.models import from_config
from vit_jax.parity import references, subject
from vit_jax.parity.comparing import compare
from vit_jax.parity.figures import FLOAT32_BAR, FLOAT64_BAR, relative_error
from vit_jax.patches import PatchBatch, cut, fitting_size
from vit_jax.tree import arrays

pytestmark = pytest.mark.promotes  # float64, in which Flax's norms promote

GRIDS, LENGTH, PATCH = ((2, 9), (7, 3), (5, 4), (1, 1)), 21, 16
SMALL = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "mlp_dim": 96, "position_grid": 5}
POINTS = ("Transformer/encoderblock_0", "Transformer/encoderblock_1", "Transformer/encoder_norm")


@functools.cache
def config() -> dict:
    return config_of("naflexvit_base_patch16_siglip") | SMALL


@functools.cache
def prepared() -> subject.Subject:
    return subject.prepare(config(), None, (32, 48), 0, seed=0)


@functools.cache
def batch() -> PatchBatch:
    """Images of several shapes; what fills them up is as large as they are."""
    rng = np.random.default_rng(1)
    patches = rng.uniform(-1, 1, (len(GRIDS), LENGTH, PATCH * PATCH * 3))
    grid = np.array(GRIDS, np.int32)
    valid = np.arange(LENGTH)[None] < grid.prod(axis=1, keepdims=True)
    return PatchBatch(patches, valid, grid)


def computed(inputs, dtype: Any = np.float64) -> Any:
    """Tokens after both blocks and the norm, and the embedding."""
    model = from_config(prepared().config)

    @jax.jit
    def forward(variables, inputs):
        wanted = {tuple(point.split("/")) for point in POINTS}
        keep: dict[str, Any] = {"capture_intermediates": lambda module, _: module.path in wanted}
        y, state = model.apply(variables, inputs, train=False, mutable=["intermediates"], **keep)
        return y, state["intermediates"]

    with jax.enable_x64(dtype == np.float64), attending("auto"):
        variables = jax.tree.map(lambda x: np.asarray(x, dtype), prepared().variables)
        if isinstance(inputs, PatchBatch):
            inputs = inputs._replace(patches=inputs.patches.astype(dtype))
        y, seen = jax.device_get(forward(variables, inputs))
    found = arrays(seen)
    return [found[f"{point}/__call__"][0] for point in POINTS], y


@functools.cache
def ours64():
    return computed(batch())


def by_interpolation(table, spatial_shapes, max_length):
    """Positions as PyTorch's own interpolation gives them, in the table's type."""
    found = table.new_zeros(len(spatial_shapes), max_length, table.shape[-1])
    for i, (height, width) in enumerate(spatial_shapes.tolist()):
        how = {"mode": "bilinear", "align_corners": False, "antialias": True}
        resized = functional.interpolate(table.permute(2, 0, 1)[None], (height, width), **how)
        found[i, : height * width] = resized[0].flatten(1).T
    return found


def transformers_model(*, matched=True, dtype=torch.float64) -> Any:
    state = to_torch(prepared().variables, config(), "hf")
    build = references.get("hf").build
    model: Any = build(config(), state, num_classes=0, image_size=(32, 48), matched=True).to(dtype)
    if matched:
        model.embeddings.resize_positional_embeddings = by_interpolation
    return model


def of_transformers(model, inputs=None, mask=None):
    inputs = inputs or batch()
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        output = model(
            torch.from_numpy(inputs.patches).to(dtype),
            torch.from_numpy(inputs.valid if mask is None else mask).long(),
            torch.from_numpy(inputs.grid).long(),
            output_hidden_states=True,
        )
    tokens = [*output.hidden_states[1:3], output.last_hidden_state]
    return [x.numpy() for x in tokens], output.pooler_output.numpy()


def errors(ours, theirs):
    """Of the images' own tokens, and of the embedding."""
    valid = batch().valid
    pairs = zip(ours[0], theirs[0], strict=True)
    tokens = [relative_error(a[valid], b[valid]) for a, b in pairs]
    return [*tokens, relative_error(ours[1], theirs[1])]


@pytest.mark.filterwarnings("ignore")
def test_a_batch_of_shapes_is_transformers():
    wide = of_transformers(transformers_model())
    assert max(errors(ours64(), wide)) <= FLOAT64_BAR
    assert max(errors(computed(batch(), np.float32), wide)) <= FLOAT32_BAR
    # As shipped its positions are float32.
    assert (
        FLOAT64_BAR
        < max(errors(ours64(), of_transformers(transformers_model(matched=False))))
        < 1e-6
    )


@pytest.mark.filterwarnings("ignore")
def test_a_batch_of_shapes_is_timms(monkeypatch):
    state = to_torch(prepared().variables, config(), "timm")
    build = references.get("timm").build
    model = build(config(), state, num_classes=0, image_size=(32, 48), matched=True).double()
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)
    place = np.arange(LENGTH)[None]
    columns = batch().grid[:, 1:]
    coordinates = np.stack([place // columns, place % columns], -1) * batch().valid[..., None]
    with torch.no_grad():
        found = model(
            torch.from_numpy(batch().patches),
            patch_coord=torch.from_numpy(coordinates),
            patch_valid=torch.from_numpy(batch().valid),
        )
    assert relative_error(ours64()[1], found.numpy()) <= FLOAT64_BAR


@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_is_seen(monkeypatch):
    model = transformers_model()
    everything = np.ones_like(batch().valid)
    assert errors(ours64(), of_transformers(model, mask=everything))[-1] > 0.3
    shape = (len(GRIDS), LENGTH, PATCH, PATCH, 3)
    turned = batch().patches.reshape(shape).transpose(0, 1, 4, 2, 3).reshape(batch().patches.shape)
    assert errors(ours64(), of_transformers(model, batch()._replace(patches=turned)))[-1] > 0.3

    def without_antialias(table, spatial_shapes, max_length):
        interpolate = functional.interpolate
        with monkeypatch.context() as patched:
            wrong = functools.partial(interpolate)
            patched.setattr(
                functional, "interpolate", lambda x, size, antialias, **how: wrong(x, size, **how)
            )
            return by_interpolation(table, spatial_shapes, max_length)

    model.embeddings.resize_positional_embeddings = without_antialias
    assert errors(ours64(), of_transformers(model))[-1] > 1e-2


@pytest.mark.filterwarnings("ignore")
def test_gradients_of_a_batch_of_shapes_are_transformers():
    """Of every parameter, with the table of positions, which each image resizes otherwise."""
    module = transformers_model().requires_grad_(True)
    weights = np.random.default_rng(2).standard_normal((len(GRIDS), SMALL["hidden_size"]))
    inputs = {"pixel_values": batch().patches, "pixel_attention_mask": batch().valid.astype(int)}
    tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
    pooled = module(**tensors, spatial_shapes=torch.from_numpy(batch().grid).long()).pooler_output
    (pooled * torch.from_numpy(weights)).sum().backward()
    live = names.respelled(module.state_dict(), config(), "hf")
    parameters = dict(module.named_parameters())
    state = {file: parameters[name].grad.numpy() for file, name in live.items()}
    theirs = arrays(checkpoint.from_torch(state, config(), "hf")["params"])

    model = from_config(prepared().config)
    with jax.enable_x64(True), attending("auto"):
        variables = jax.tree.map(lambda x: np.asarray(x, np.float64), prepared().variables)

        def loss(variables, inputs):
            return (model.apply(variables, inputs, train=False) * weights).sum()

        ours = arrays(jax.device_get(jax.jit(jax.grad(loss))(variables, batch()))["params"])
    assert ours.keys() == theirs.keys()
    floor = 1e-12 * max(np.abs(x).max() for x in theirs.values())  # a key's bias has none
    for name, wanted in theirs.items():
        error = np.abs(ours[name] - wanted).max()
        assert error <= max(FLOAT64_BAR * np.abs(wanted).max(), floor), name


def test_bfloat16_stays_near():
    model = from_config(prepared().config | {"dtype": jnp.bfloat16})
    narrow = batch()._replace(patches=batch().patches.astype(np.float32))
    apply = jax.jit(functools.partial(model.apply, train=False))
    embeddings = apply(prepared().variables, narrow)
    assert embeddings.dtype == jnp.float32
    assert 1e-4 < relative_error(np.asarray(embeddings), ours64()[1]) < 0.1


def test_what_fills_up_changes_nothing():
    """Neither what it is, nor how much of it there is; an image alone needs no mask at all."""
    other = np.where(batch().valid[..., None], batch().patches, 3.0)
    tokens, embeddings = computed(batch()._replace(patches=other))
    np.testing.assert_array_equal(embeddings, ours64()[1])
    for found, wanted in zip(tokens, ours64()[0], strict=True):
        np.testing.assert_array_equal(found[batch().valid], wanted[batch().valid])
    for i, (rows, columns) in enumerate(GRIDS[:2]):
        own = batch().patches[i, : rows * columns].reshape(rows, columns, PATCH, PATCH, 3)
        image = own.transpose(0, 2, 1, 3, 4).reshape(1, rows * PATCH, columns * PATCH, 3)
        np.testing.assert_array_equal(cut(image, PATCH)[0][0], batch().patches[i, : rows * columns])
        _, alone = computed(image)
        assert relative_error(embeddings[i : i + 1], alone) <= 1e-12


def test_kernels_decline_a_mask_and_take_images_of_one_size():
    model = from_config(prepared().config | {"dtype": jnp.bfloat16})
    narrow = batch()._replace(patches=batch().patches.astype(jnp.bfloat16))
    images = np.zeros((2, 32, 48, 3), jnp.bfloat16)
    apply = attending("auto", platform="tpu")(functools.partial(model.apply, train=False))
    found = [kernels(apply, prepared().variables, inputs) for inputs in (narrow, images)]
    assert found == [[], ["packed_attention_forward"] * 2]


def test_positions_are_resized_as_pytorch_does():
    table = np.random.default_rng(0).standard_normal((16, 16, 8))
    grids = np.array([(16, 16), (3, 40), (64, 2), (17, 15), (1, 1)], np.int32)
    with jax.enable_x64(True):
        found = jax.jit(flexible.resized_positions, static_argnums=2)(table, grids, 256)
    wanted = by_interpolation(torch.from_numpy(table), torch.from_numpy(grids).long(), 256).numpy()
    for own, right, count in zip(np.asarray(found), wanted, grids.prod(axis=1), strict=True):
        assert np.isfinite(own).all()
        np.testing.assert_allclose(own[:count], right[:count], rtol=0, atol=1e-13)


def test_sizes_are_those_of_transformers():
    theirs = theirs_sizes.get_image_size_for_max_num_patches
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (480, 640), (1, 5000), *rng.integers(1, 3000, (60, 2)).tolist()]:
        for length in (1, 64, 256, 1024):
            size = fitting_size(height, width, patch=PATCH, length=length)
            assert size == theirs(height, width, PATCH, length)
    with pytest.raises(UserError, match="one pixel and a length of one patch"):
        fitting_size(0, 5, patch=PATCH, length=4)


def test_batches_are_those_of_transformers():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in [(50, 90), (200, 31), (7, 7)]]
    processor: Any = Siglip2ImageProcessorPil()
    wanted = processor(images, max_num_patches=36, return_tensors="np")
    found = patch_batch(images, length=36)
    np.testing.assert_array_equal(found.grid, wanted["spatial_shapes"])
    np.testing.assert_array_equal(found.valid, wanted["pixel_attention_mask"])
    np.testing.assert_allclose(found.patches, wanted["pixel_values"], rtol=0, atol=1e-6)
    for wrong, message in [([], "at least one image"), ([images[0][..., 0]], "expected images")]:
        with pytest.raises(UserError, match=message):
            patch_batch(wrong)


# --- both towers, and files -----------------------------------------------------------------------


@functools.cache
def both() -> dict:
    found = config_of("siglip2-base-patch16-naflex")
    found["image"] |= SMALL
    text = {"width": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 72, "vocab_size": 80}
    return found | {"text": text, "out_dim": (None, 48), "length": 6}


@pytest.mark.filterwarnings("ignore")
def test_both_towers_are_transformers():
    size = (5 * PATCH, 5 * PATCH)  # at which positions are not resized
    found = compare(both(), against="hf", image_size=size, num_images=2)
    drifts = [*found.matched.blocks, found.matched.logits]
    assert max(drift.error for drift in drifts) <= FLOAT64_BAR
    assert max(drift.error_float32 for drift in drifts) <= FLOAT32_BAR


def test_both_towers_take_a_batch_of_shapes():
    this = subject.prepare(both(), None, (32, 48), 0, seed=0)
    model = from_config(this.config)
    narrow = batch()._replace(patches=batch().patches.astype(np.float32))
    tokens = np.ones((2, 6), np.int32)
    zimg, ztxt, out = jax.jit(model.apply)(this.variables, narrow, tokens)
    assert (zimg.shape, ztxt.shape) == ((len(GRIDS), 48), (2, 48))
    np.testing.assert_allclose(np.linalg.norm(zimg, axis=1), 1, rtol=1e-5)
    assert out["b"].shape == (1,)


@pytest.mark.parametrize("to", ["hf", "big_vision"])
def test_files_of_both_towers_come_back_bit_for_bit(to, tmp_path):
    this = subject.prepare(both(), None, (80, 80), 0, seed=0)
    checkpoint.save(tmp_path / "x.npz", this.variables["params"])
    there = tmp_path / ("there" if to == "hf" else "there.npz")
    checkpoint.convert(tmp_path / "x.npz", there, to=to, model=both())
    back = arrays(checkpoint.load(there, None if to == "hf" else both()))
    assert back.keys() == this.params.keys()
    for name, x in this.params.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)


@pytest.mark.parametrize("to", ["timm", "hf", "big_vision"])
def test_files_of_the_image_tower_come_back_bit_for_bit(to, tmp_path):
    checkpoint.save(tmp_path / "x.npz", prepared().variables["params"])
    there = tmp_path / {"timm": "x.safetensors", "hf": "x", "big_vision": "y.npz"}[to]
    checkpoint.convert(tmp_path / "x.npz", there, to=to, model=config())
    back = arrays(checkpoint.load(there, config()))
    for name, x in prepared().params.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)
