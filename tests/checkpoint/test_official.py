import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from checkpoint_helpers import SHAPES, assert_equal_trees, narrow, narrow_params
from recipes import GOLDEN, flatten, golden_json, random_params, unflatten

from vit_jax import checkpoint
from vit_jax.checkpoint.files.formats import open_archive
from vit_jax.checkpoint.stacked import stack_blocks, unstack_blocks
from vit_jax.errors import UserError

CKPT = golden_json("ckpt.json")["testing_rep"]
LINEN = GOLDEN / "ckpt_testing_rep_linen.npz"
PRELINEN = GOLDEN / "ckpt_testing_rep_prelinen.npz"
POSEMB = "Transformer/posembed_input/pos_embedding"


def golden_tree():
    with np.load(LINEN) as z:
        return unflatten(dict(z))


def test_import_is_light():
    code = (
        "import sys, vit_jax.checkpoint, vit_jax.checkpoint.stacked\n"
        "print([m for m in ('jax', 'flax', 'torch', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", [LINEN, PRELINEN])
def test_both_golden_layouts_load_the_same(path):
    assert_equal_trees(checkpoint.load(path), golden_tree())


def test_save_writes_the_released_file(tmp_path):
    path = tmp_path / "out.npz"
    checkpoint.save(path, golden_tree())
    with np.load(path) as got, np.load(PRELINEN) as want:
        assert set(got) == set(want)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
    assert_equal_trees(checkpoint.load(path), golden_tree())


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_save_and_load_every_model(tmp_path, name, stacked):
    params = narrow_params(narrow(SHAPES[name]["config"]))
    checkpoint.save(tmp_path / "x.npz", stack_blocks(params) if stacked else params)
    assert_equal_trees(checkpoint.load(tmp_path / "x.npz"), params)


def test_hybrids_are_written_with_four_dimensional_group_norm(tmp_path):
    params = narrow_params(narrow(SHAPES["R26+ViT-S_32"]["config"]))
    checkpoint.save(tmp_path / "x.npz", params)
    with np.load(tmp_path / "x.npz") as z:
        for name in ("gn_root/scale", "block1/unit1/gn2/bias", "block2/unit1/gn_proj/scale"):
            assert z[name].shape == (1, 1, 1, flatten(params)[name].size)


def test_bytes_do_not_depend_on_the_day(tmp_path):
    for name in ("a.npz", "b.npz"):
        checkpoint.save(tmp_path / name, golden_tree())
        os.utime(tmp_path / name, (0, 0))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_bfloat16_is_stored_as_raw_bytes_and_comes_back(tmp_path):
    tree = unflatten({n: x.astype(ml_dtypes.bfloat16) for n, x in flatten(golden_tree()).items()})
    checkpoint.save(tmp_path / "x.npz", tree)
    with np.load(tmp_path / "x.npz") as z:
        assert all(z[n].dtype == np.dtype("V2") for n in z)
    assert_equal_trees(checkpoint.load(tmp_path / "x.npz"), tree)


@pytest.mark.parametrize("prefix", ["params/", "opt/target/"])
def test_prefixes(tmp_path, prefix):
    flat = flatten(golden_tree())
    other = {"opt/state/mu/cls": np.zeros(3), "step": np.int64(7)}
    np.savez(tmp_path / "x.npz", **{prefix + n: x for n, x in flat.items()}, **other)
    assert_equal_trees(checkpoint.load(tmp_path / "x.npz"), golden_tree())


def test_compressed_and_fortran_files_load(tmp_path):
    flat = {n: np.asfortranarray(x) for n, x in flatten(golden_tree()).items()}
    np.savez_compressed(tmp_path / "x.npz", **flat)
    assert_equal_trees(checkpoint.load(tmp_path / "x.npz"), golden_tree())


def test_two_spellings_of_one_tensor_are_refused(tmp_path):
    with np.load(LINEN) as a, np.load(PRELINEN) as b:
        np.savez(tmp_path / "x.npz", **(dict(a) | dict(b)))
    with pytest.raises(UserError, match="mixes two spellings"):
        checkpoint.load(tmp_path / "x.npz")


def golden_init(image: int, representation: int | None):
    """What `loaded_*` was adapted to: five classes, the head from seed 7."""
    with np.load(GOLDEN / f"loaded_testing_rep_{image}_rep{representation}.npz") as z:
        loaded = {n.removeprefix("param:"): z[n] for n in z if n.startswith("param:")}
    shapes = {n: x.shape for n, x in loaded.items()}
    return random_params(shapes, scale=CKPT["scale"], seed=7), unflatten(loaded)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("path", [LINEN, PRELINEN])
@pytest.mark.parametrize(("image", "representation"), [(64, 12), (64, None), (96, None)])
def test_load_pretrained_equals_the_original(path, image, representation, stacked):
    init, want = golden_init(image, representation)
    got = checkpoint.load_pretrained(
        pretrained_path=path,
        init_params=stack_blocks(init) if stacked else init,
        model_config=CKPT["config"] | {"representation_size": representation},
    )
    if stacked:
        assert "encoderblock" in got["Transformer"]
        got = unstack_blocks(got)
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for name in want:
        if name == POSEMB and image == 96:
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-6)
        else:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def pretrained(init, **kwargs):
    config = CKPT["config"] | {"representation_size": None}
    return checkpoint.load_pretrained(
        pretrained_path=LINEN, init_params=init, model_config=config, **kwargs
    )


def test_load_pretrained_to_a_grid_that_is_not_square():
    init, _ = golden_init(64, None)
    init["Transformer"]["posembed_input"]["pos_embedding"] = np.zeros((1, 1 + 4 * 16, 16), "f4")
    source = flatten(golden_tree())[POSEMB]
    got = flatten(pretrained(init, new_grid=(4, 16)))[POSEMB]
    want = checkpoint.resize_posembed(source, (8, 8), (4, 16), 1)
    np.testing.assert_array_equal(got, want)
    init["Transformer"]["posembed_input"]["pos_embedding"] = np.zeros((1, 1 + 3 * 5, 16), "f4")
    with pytest.raises(UserError, match="form no square"):
        pretrained(init)


def test_load_pretrained_lists_both_sides():
    init = flatten(golden_init(64, None)[0])
    init = {n.replace("encoderblock_0", "encoderblock_1"): x for n, x in init.items()}
    with pytest.raises(UserError) as e:
        pretrained(unflatten(init))
    message = str(e.value)
    assert "Transformer/encoderblock_1/LayerNorm_0/bias" in message.split("extra in the")[0]
    assert "Transformer/encoderblock_0/LayerNorm_0/bias" in message.split("extra in the")[1]


def test_load_pretrained_names_the_tensor_of_wrong_shape():
    init = golden_init(64, None)[0]
    init["embedding"]["kernel"] = np.zeros((16, 16, 3, 16), "f4")
    with pytest.raises(UserError, match=r"'embedding/kernel': expected shape \(16, 16, 3, 16\)"):
        pretrained(init)


def test_inspect_params_puts_back_layers_without_weights():
    params, expected = {"a": {"w": 1}}, {"a": {"w": 2}, "empty": {}}
    assert checkpoint.inspect_params(params=params, expected=expected) == {
        "a": {"w": 1},
        "empty": {},
    }
    wrong = {"a": {"w": 1}, "extra": 3}
    with pytest.raises(UserError, match="extra"):
        checkpoint.inspect_params(params=wrong, expected=expected)
    got = checkpoint.inspect_params(
        params=wrong, expected={"b": 1}, fail_if_extra=False, fail_if_missing=False
    )
    assert got == wrong


def test_recover_tree():
    tree = checkpoint.recover_tree(["a/b", "a/c/d", "e"], [1, 2, 3])
    assert tree == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    for keys in (["a", "a/b"], ["a/b", "a"], ["a", "a"]):
        with pytest.raises(UserError):
            checkpoint.recover_tree(keys, [1, 2])


@pytest.mark.parametrize("name", ["ViT-B_16", "Mixer-B_32"])
def test_stacking(name):
    params = narrow_params(narrow(SHAPES[name]["config"]))
    stacked = flatten(stack_blocks(params))
    assert not any("_11/" in n for n in stacked)
    block = "encoderblock" if name.startswith("ViT") else "MixerBlock"
    norm = next(x for n, x in stacked.items() if f"{block}/LayerNorm_0/scale" in n)
    assert norm.shape[0] == 12
    # Layer 10 comes after layer 9, not after layer 1.
    np.testing.assert_array_equal(
        norm[10], next(x for n, x in flatten(params).items() if f"{block}_10/LayerNorm_0/sc" in n)
    )
    assert_equal_trees(unstack_blocks(unflatten(stacked)), params)


def test_stacking_keeps_jax_arrays_on_their_device():
    import jax.numpy as jnp

    params = {"Transformer": {f"encoderblock_{i}": {"w": jnp.ones(2)} for i in range(3)}}
    stacked = stack_blocks(params)["Transformer"]["encoderblock"]["w"]
    assert isinstance(stacked, type(jnp.ones(1)))
    assert stacked.shape == (3, 2)


def test_blocks_that_do_not_stack():
    params = narrow_params(narrow(SHAPES["ViT-B_16"]["config"]))
    gap = dict(
        params, Transformer={k: v for k, v in params["Transformer"].items() if k[-2:] != "_3"}
    )
    with pytest.raises(UserError, match="cannot stack"):
        stack_blocks(gap)
    uneven = {"encoderblock": {"a": np.ones((3, 2)), "b": np.ones((2, 2))}}
    with pytest.raises(UserError, match="stacks 2 layers"):
        unstack_blocks(uneven)


def test_original_loads_what_we_save(tmp_path):
    """Flax's own pre-linen conversion, which the original's `load` calls."""
    from flax.training.checkpoints import convert_pre_linen

    for name in ("ViT-B_16", "R26+ViT-S_32", "Mixer-B_32"):
        params = narrow_params(narrow(SHAPES[name]["config"]))
        checkpoint.save(tmp_path / "x.npz", params)
        with np.load(tmp_path / "x.npz", allow_pickle=False) as z:
            theirs = flatten(convert_pre_linen(checkpoint.recover_tree(z.keys(), z.values())))
        ours = flatten(params)
        assert theirs.keys() == ours.keys(), json.dumps(sorted(theirs.keys() ^ ours.keys()))
        for key in ours:
            np.testing.assert_array_equal(np.squeeze(theirs[key]), np.squeeze(ours[key]))


def test_metadata_stays_out_of_the_parameters(tmp_path):
    checkpoint.save(tmp_path / "x.npz", golden_tree(), metadata={"note": "a\nb"})
    assert_equal_trees(checkpoint.load(tmp_path / "x.npz"), golden_tree())
    with open_archive(tmp_path / "x.npz") as archive:
        assert archive.metadata == {"note": "a\nb"}
    with pytest.raises(UserError, match="metadata"):
        checkpoint.save(tmp_path / "x.npz", golden_tree(), metadata={"note": "a" * 70_000})
