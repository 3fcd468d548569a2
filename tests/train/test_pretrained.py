"""`config.pretrained`: a run starts from a checkpoint of any format."""

import jax
import ml_dtypes
import numpy as np
import pytest
from checkpoint_helpers import assert_equal_trees
from recipes import flatten, random_params, unflatten
from shapes import param_shapes

from vit_jax import checkpoint
from vit_jax.checkpoint.files.formats import write_torch
from vit_jax.configs import common, models
from vit_jax.errors import UserError
from vit_jax.train.pretrained import find_pretrained

MODEL = models.get_testing_config()
CONFIG = MODEL.to_dict()


def params_of(num_classes, num_patches, dtype=np.float32):
    shapes = param_shapes(CONFIG, num_classes=num_classes, num_patches=num_patches)
    params = random_params(shapes, 0.5)
    return jax.tree.map(lambda x: x.astype(dtype), params)


def fine_tuned(path):
    """What a run of two classes at twice the size would start from."""
    config = common.get_config()
    config.model = MODEL
    config.pretrained = str(path)
    found = find_pretrained(common.with_defaults(config))
    init = jax.tree.map(np.zeros_like, params_of(2, 4 * 4))
    return checkpoint.load_pretrained(
        pretrained_path=found, init_params=init, model_config=config.model
    )


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("official", "x.npz"),
        ("big_vision", "x.npz"),
        ("orbax", "x"),
        ("timm", "x.safetensors"),
        ("hf", "x"),
    ],
)
def test_any_format_gives_the_same_start(tmp_path, to, name):
    checkpoint.save(tmp_path / "src.npz", params_of(3, 2 * 2))
    want = fine_tuned(tmp_path / "src.npz")
    checkpoint.convert(tmp_path / "src.npz", tmp_path / name, to=to)
    assert_equal_trees(fine_tuned(tmp_path / name), want)
    assert not flatten(want)["head/kernel"].any()
    assert flatten(want)["cls"].any()


def test_a_bare_state_dict_takes_its_heads_from_the_model(tmp_path):
    params = params_of(3, 2 * 2)
    checkpoint.save(tmp_path / "src.npz", params)
    write_torch(tmp_path / "x.pth", checkpoint.to_torch({"params": params}, CONFIG))
    assert_equal_trees(fine_tuned(tmp_path / "x.pth"), fine_tuned(tmp_path / "src.npz"))


def test_a_cast_is_said_aloud(tmp_path, caplog):
    params = params_of(3, 4 * 4, ml_dtypes.bfloat16)
    checkpoint.save(tmp_path / "src.npz", params)
    got = flatten(fine_tuned(tmp_path / "src.npz"))
    assert {x.dtype.name for x in got.values()} == {"float32"}
    np.testing.assert_array_equal(got["cls"], flatten(params)["cls"].astype(np.float32))
    assert "bfloat16 become float32" in caplog.text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.pretrained=.*nowhere"):
        fine_tuned(tmp_path / "nowhere")


def test_another_model_is_refused(tmp_path):
    params = flatten(params_of(3, 4))
    other = {n.replace("encoderblock_0", "encoderblock_7"): x for n, x in params.items()}
    checkpoint.save(tmp_path / "src.npz", unflatten(other))
    with pytest.raises(UserError, match="tensors do not fit"):
        fine_tuned(tmp_path / "src.npz")
