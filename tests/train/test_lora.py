"""LoRA: adapters are the formula, the base stays, and a run with them is a run like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from vit_jax import checkpoint, cli, train
from vit_jax.checkpoint.files.formats import open_archive
from vit_jax.checkpoint.stacked import stack_blocks
from vit_jax.errors import UserError
from vit_jax.train import checkpointing, lora
from vit_jax.tree import flatten, unflatten

HEADS = r"(?:.*/)?(?:query|out)/kernel"
SHAPES = {
    f"Transformer/encoderblock_{i}/{name}": shape
    for i in range(2)
    for name, shape in {
        "query/kernel": (6, 2, 3),
        "query/bias": (2, 3),
        "out/kernel": (2, 3, 6),
        "fc/kernel": (6, 5),
    }.items()
} | {"embedding/kernel": (2, 2, 3, 6), "embedding/bias": (6,)}
RULES = ((HEADS, True), (r".*/fc/kernel|embedding/kernel", True), (r".*", False))


def params() -> dict:
    rng = np.random.default_rng(0)
    return unflatten({name: jnp.asarray(rng.normal(size=s)) for name, s in SHAPES.items()})


def filled(tree: dict) -> dict:
    """With random numbers in place of the zeros that every B begins with."""
    rng = np.random.default_rng(1)
    flat = flatten(tree)
    return unflatten(
        {
            n: jnp.asarray(rng.normal(size=x.shape)) if n in lora.only(tree) else x
            for n, x in flat.items()
        }
    )


def test_merging_is_the_formula_and_begins_as_the_base():
    with jax.enable_x64(True):
        base = params()
        fresh = lora.adapted(base, jax.random.key(0), rank=2, targets=RULES)
        jax.tree.map(np.testing.assert_array_equal, lora.merged(fresh, 4.0), base)
        adapters = filled(fresh)
        got, flat = flatten(lora.merged(adapters, 4.0)), flatten(adapters)
        x = np.random.default_rng(2).normal(size=(3, 6))
        block = "Transformer/encoderblock_1/"
        for module, cut in (("query", 1), ("out", 2), ("fc", 1)):
            name = f"{block}{module}/kernel"
            axes = SHAPES[name]
            w = np.asarray(flat[name]).reshape(np.prod(axes[:cut]), -1)
            a, b = (flat[f"{block}{module}/lora_{k}"] for k in "ab")
            assert a.shape == (6, 2)
            want = x @ w + 4.0 * ((x @ a) @ b)
            np.testing.assert_allclose(x @ got[name].reshape(w.shape), want, rtol=0, atol=1e-12)
            assert np.abs(x @ w - want).max() > 0.1
        assert flat["embedding/lora_a"].shape == (12, 2)
        assert set(got) == set(SHAPES)


def test_stacked_blocks_are_merged_layer_by_layer():
    with jax.enable_x64(True):
        adapters = filled(lora.adapted(params(), jax.random.key(0), rank=2, targets=RULES))
        stacked = lora.adapted(stack_blocks(params()), jax.random.key(0), rank=2, targets=RULES)
        want = flatten(stack_blocks(lora.merged(adapters, 4.0)))
        got = flatten(lora.merged(stack_blocks(adapters), 4.0))
        shapes = {n: x.shape for n, x in flatten(stack_blocks(adapters)).items()}
        assert {n: x.shape for n, x in flatten(stacked).items()} == shapes
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ((("nothing", True), (".*", False)), "no parameter matches 'nothing'; there are 'Trans"),
        ((("embedding/bias", True), (".*", False)), r"'embedding/bias' \(6,\) is no kernel"),
        (((".*", False),), "adapts no kernel"),
    ],
    ids=str,
)
def test_bad_targets(targets, message):
    with pytest.raises(UserError, match=message):
        lora.adapted(params(), jax.random.key(0), rank=2, targets=targets)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora__rank": -1}, "lora.rank"),
        ({"lora__rank": 2, "ema__decay": 0.9}, "no moving average"),
        ({"lora__rank": 2, "freeze_rules": (("head/.*", True), (".*", False))}, "freeze_rules"),
    ],
    ids=str,
)
def test_bad_settings(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(tiny_run.config(tmp_path, **changes), tmp_path / "run")


def test_a_run_trains_adapters_and_the_head_alone_and_goes_on_exactly(tmp_path):
    """On two devices that split the parameters, interrupted, and on one, uninterrupted."""
    images = tiny_run.write_images(tmp_path / "images")
    base = tiny_run.config(images, total_steps=1)
    train.train_and_evaluate(base, tmp_path / "base")
    changes = {"lora__rank": 2, "pretrained": str(tmp_path / "base"), "dropout": False}
    runs = {}
    for name, steps, more in (
        ("whole", (10,), {}),
        ("parts", (5, 10), {}),
        ("split", (10,), {"mesh__fsdp": 2}),
    ):
        for total in steps:
            config = tiny_run.config(
                images, total_steps=total, decay_type="constant", **changes, **more
            )
            result = train.train_and_evaluate(
                config, tmp_path / name, allow_other_config=total != steps[0]
            )
        stored = flatten(checkpointing.load_params(tmp_path / name))
        raw = flatten(checkpointing.load_params(tmp_path / name, trained=True))
        runs[name] = stored, raw, flatten(jax.device_get(result))
    start = flatten(checkpointing.load_params(tmp_path / "base"))
    stored, raw, result = runs["whole"]
    adapters = lora.only(unflatten(raw))
    assert set(stored) == set(start) == set(raw) - set(adapters)
    moved = {name for name in start if (raw[name] != start[name]).any()}
    assert moved == {"head/kernel", "head/bias"}
    assert all(x.any() for x in adapters.values())
    changed = {name for name in start if (stored[name] != start[name]).any()} - moved
    assert changed == {n.replace("lora_a", "kernel") for n in adapters if n.endswith("a")}
    want = flatten(lora.merged(unflatten(raw), 4.0))
    for name, x in stored.items():
        np.testing.assert_array_equal(result[name], x)
        np.testing.assert_allclose(x, want[name], rtol=1e-6, atol=1e-6)
    for name, x in raw.items():
        np.testing.assert_array_equal(runs["parts"][1][name], x)
        np.testing.assert_allclose(runs["split"][1][name], x, rtol=1e-4, atol=1e-5)

    file, model = tmp_path / "adapters.safetensors", tmp_path / "model.npz"
    assert cli.main(["convert", str(tmp_path / "whole"), str(file), "--to", "lora"]) == 0
    with open_archive(file) as archive:
        assert set(archive) == set(adapters) | moved
    merge = ["convert", str(file), str(model), "--to", "official", "--merge"]
    assert cli.main([*merge, str(tmp_path / "whole")]) == 2  # another base
    assert not model.exists()
    assert cli.main([*merge, str(tmp_path / "base")]) == 0
    adapters_first = checkpoint.identify(model).history[0]
    assert adapters_first["source"]["layout"] == "adapters"
    assert adapters_first["steps"] == [f"merged into {tmp_path / 'base'}"]
    got = flatten(checkpoint.load(model))
    for name, x in stored.items():
        np.testing.assert_allclose(got[name], x, rtol=1e-6, atol=1e-6)
    for wrong in (["--to", "lora"], ["--to", "official", "--merge", str(tmp_path / "base")]):
        no_adapters = str(tmp_path / "wrong.safetensors")
        assert cli.main(["convert", str(tmp_path / "base"), no_adapters, *wrong]) == 2
