"""open_clip's SigLIP: its names both ways, what it computes, and what its config tells."""

import jax
import numpy as np
import pytest
from recipes import GOLDEN
from safetensors.numpy import load_file, save_file

from vit_jax import checkpoint
from vit_jax.checkpoint import from_torch, open_clip, to_torch
from vit_jax.families.registry import comparable, config_of, resolve
from vit_jax.models import from_config
from vit_jax.parity.figures import FLOAT64_BAR, relative_error

FIGURES = dict(np.load(GOLDEN / "open_clip/siglip.npz"))
STATE = {n.removeprefix("state/"): x for n, x in FIGURES.items() if n.startswith("state/")}
BOTH = {
    "siglip2-base-patch16-256": ("vit_base_patch16_siglip_256", 256_000, 768),
    "siglip-so400m-patch14-384": ("vit_so400m_patch14_siglip_384", 32_000, 1152),
    "siglip2-base-patch16-naflex": ("naflexvit_base_patch16_siglip", 256_000, 768),
}


def config():
    """A tiny SigLIP 2; open_clip divides an embedding by its length alone."""
    found = resolve("siglip2-base-patch16-256").config.to_dict()
    sizes = {"num_layers": 2, "num_heads": 2, "mlp_dim": 32}
    found["image"] |= {"patches": {"size": (8, 8)}, "hidden_size": 16}
    found["image"]["transformer"] |= sizes
    text = {"width": 12, "num_layers": 2, "num_heads": 2, "mlp_dim": 24, "vocab_size": 24}
    return found | {"text": text, "out_dim": (None, 16), "length": 6, "norm_eps": 0.0}


def computed(state):
    variables = from_torch(state, config(), "open_clip")
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        apply = jax.jit(from_config(config()).apply)
        zimg, ztxt, out = apply(variables, FIGURES["images"], FIGURES["tokens"])
        scores = out["t"][None] * zimg @ ztxt.T + out["b"][None]
    return {"zimg": zimg, "ztxt": ztxt, "scores": scores}


@pytest.mark.promotes
def test_it_computes_what_open_clip_does():
    found = computed(STATE)
    for name, x in found.items():
        assert relative_error(np.asarray(x), FIGURES[name]) <= FLOAT64_BAR
    moved = {"text.text_projection.bias": "ztxt", "visual.trunk.attn_pool.latent": "zimg"}
    wrong = computed({n: x + 0.1 * (n in moved) for n, x in STATE.items()})
    for name in moved.values():
        assert relative_error(np.asarray(wrong[name]), FIGURES[name]) > 1e-3


def test_names_both_ways_bit_for_bit(tmp_path):
    back = to_torch(from_torch(STATE, config(), "open_clip"), config(), "open_clip")
    assert back.keys() == STATE.keys()
    for name, x in STATE.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)
        assert back[name].shape == x.shape
    save_file(STATE, tmp_path / "x.safetensors")
    checkpoint.convert(
        tmp_path / "x.safetensors", tmp_path / "y.npz", to="official", model=config()
    )
    checkpoint.convert(tmp_path / "y.npz", tmp_path / "z.safetensors", to="open_clip")
    assert load_file(tmp_path / "z.safetensors").keys() == STATE.keys()


@pytest.mark.parametrize("name", BOTH)
def test_its_config_names_the_model(name):
    tower, vocabulary, width = BOTH[name]
    large = {"heads": 16, "layers": 27, "mlp_ratio": 3.7362} if width == 1152 else {}
    text = {"context_length": 64, "vocab_size": vocabulary, "width": width, "heads": 12} | large
    model = {"vision_cfg": {"timm_model_name": tower}, "text_cfg": text, "embed_dim": width}
    found = open_clip.config({"model_cfg": model})
    assert found is not None
    assert found["model_name"] == name
    assert comparable(found) == comparable(config_of(name))
    assert open_clip.config({"model_cfg": model | {"embed_dim": 3}}) is None
