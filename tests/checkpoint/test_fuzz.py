"""Thousands of damaged files through every reader: a UserError or numbers, and nothing else.

A seed names a mutation, so that a failure can be repeated: `mutated(data, seed)`.
"""

import json
import os
import shutil

import flax.serialization
import numpy as np
import pytest
from checkpoint_helpers import SHAPES, narrow, narrow_params
from recipes import flatten

from vit_jax import checkpoint
from vit_jax.checkpoint.files.formats import (
    open_archive,
    write_orbax,
    write_safetensors,
    write_torch,
)
from vit_jax.errors import UserError

MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "300"))  # of each kind of file
INTERESTING = [0, 1, 2, 0x7F, 0x80, 0xFF]
CONFIG = narrow(SHAPES["ViT-Ti_16"]["config"])
CONFIG["transformer"]["num_layers"] = 1


def make(folder, kind):
    """A small good file of this kind; what is damaged, and what is opened."""
    params = narrow_params(CONFIG, num_classes=2)
    src = folder / "src.npz"
    checkpoint.save(src, params, metadata={"vit_jax": "{}"})
    if kind == "compressed npz":
        np.savez_compressed(folder / "x", **flatten(params))
        return folder / "x.npz", folder / "x.npz"
    if kind == "torch":
        write_torch(folder / "x", checkpoint.to_torch({"params": params}, CONFIG))
        return folder / "x", folder / "x"
    if kind == "flax":
        state = (params, {"trace": params}, np.int32(3))
        (folder / "x").write_bytes(flax.serialization.to_bytes(state))
        return folder / "x", folder / "x"
    if kind.startswith("orbax"):
        write_orbax(folder / "x", {f"params/{n}": x for n, x in flatten(params).items()})
        return folder / "x" / kind.removeprefix("orbax "), folder / "x"
    if kind.startswith("hf"):
        checkpoint.convert(src, folder / "x", to="hf")
        return folder / "x" / kind.removeprefix("hf "), folder / "x"
    checkpoint.convert(src, folder / "x", to=kind)
    return folder / "x", folder / "x"


def mutated(data: bytes, seed: int) -> bytes:
    """One to four random edits; half of them near the start or the end, where headers lie."""
    rng = np.random.default_rng(seed)
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        span = rng.choice([min(len(data), 400), len(data)])
        at = int(rng.integers(span))
        at = len(data) - 1 - at if rng.random() < 0.5 else at
        match rng.integers(7):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at] = int(rng.choice(INTERESTING))
            case 2:  # a length or an offset that is absurd
                data[at : at + 8] = bytes([int(rng.choice(INTERESTING))]) * int(
                    rng.choice([2, 4, 8])
                )
            case 3:
                del data[at : at + int(rng.integers(1, 64))]
            case 4:
                data[at:at] = rng.bytes(int(rng.integers(1, 64)))
            case 5:  # something that was elsewhere
                other = int(rng.integers(len(data)))
                data[at : at + 32] = data[other : other + 32]
            case 6:
                del data[at:]
    return bytes(data)


KINDS = ["official", "compressed npz", "big_vision", "timm", "torch", "hf model.safetensors",
         "hf config.json", "hf preprocessor_config.json", "flax"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(tmp_path, kind):
    damaged, opened = make(tmp_path, kind)
    good = damaged.read_bytes()
    reader = checkpoint.load(opened, CONFIG)
    assert flatten(reader)["head/bias"].shape == (2,)
    dst = tmp_path / "dst.npz"
    refused = 0
    for seed in range(MUTATIONS):
        damaged.write_bytes(mutated(good, seed))
        dst.write_bytes(b"old")
        before = sorted(os.listdir(tmp_path))
        try:
            found = checkpoint.identify(opened)
            assert found.num_params >= 0
            params = checkpoint.load(opened, CONFIG)
            assert all(isinstance(x, np.ndarray) for x in flatten(params).values())
            checkpoint.convert(opened, dst, to="official", model=CONFIG)
        except UserError:
            refused += 1
            assert dst.read_bytes() == b"old", seed
        except BaseException as e:
            raise AssertionError(f"seed {seed}: {e!r}") from e
        assert sorted(os.listdir(tmp_path)) == before, seed
    assert refused > (0 if kind == "hf preprocessor_config.json" else MUTATIONS // 4)


def orbax_files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# A thread of Orbax's that outlives its failed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_orbax_directories(tmp_path):
    """Each file of the directory in turn: damaged, cut short, or gone."""
    _, opened = make(tmp_path, "orbax")
    good = tmp_path / "good"
    shutil.copytree(opened, good)
    want = {n: x.shape for n, x in flatten(checkpoint.load(good)).items()}
    files, refused = orbax_files(good), 0
    for seed in range(MUTATIONS // 2):
        shutil.rmtree(opened)
        shutil.copytree(good, opened)
        damaged = opened / files[seed % len(files)]
        if seed // len(files) == 0:
            damaged.unlink()
        else:
            damaged.write_bytes(mutated(damaged.read_bytes(), seed))
        try:
            checkpoint.identify(opened)
            got = checkpoint.load(opened, CONFIG)
            checkpoint.convert(opened, tmp_path / "dst.npz", to="official", model=CONFIG)
        except UserError:
            refused += 1
            continue
        except BaseException as e:
            raise AssertionError(f"seed {seed}: {e!r} for {damaged}") from e
        # Orbax keeps no checksum of the numbers; names and shapes must be the model's all the same.
        assert {n: x.shape for n, x in flatten(got).items()} == want, seed
    assert refused > MUTATIONS // 10


ODD = [None, True, -1, 0, 3, 10**30, 1.5, float("nan"), "", "text", [], [1, 2], [[]], {}, {"a": 1}]


def altered(fields, rng):
    """JSON with one value, at any depth, replaced by something odd or taken out."""
    fields = json.loads(json.dumps(fields))
    node = fields
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
            node = node[key]
            continue
        if rng.random() < 0.2:
            del node[key]
        else:
            node[key] = ODD[int(rng.integers(len(ODD)))]
        return fields


def altered_metadata(path, key):
    with open_archive(path) as archive:
        tensors, metadata = dict(archive), archive.metadata
    fields = json.loads(metadata[key])

    def write(rng):
        text = json.dumps(altered(fields, rng))
        write_safetensors(path, tensors, metadata | {key: text})

    return write


def altered_json(path):
    fields = json.loads(path.read_text())
    return lambda rng: path.write_text(json.dumps(altered(fields, rng)))


@pytest.mark.parametrize(
    "what",
    ["hf config.json", "hf preprocessor_config.json", "timm", "vit_jax", "vit_jax_conversion"],
)
def test_odd_values_in_json(tmp_path, what):
    damaged, opened = make(tmp_path, what if what.startswith("hf") else "timm")
    alter = altered_json(damaged) if what.startswith("hf") else altered_metadata(damaged, what)
    for seed in range(MUTATIONS // 2):
        alter(np.random.default_rng(seed))
        to = ("official", "timm", "hf")[seed % 3]
        try:
            json.dumps(checkpoint.identify(opened).to_dict())
            checkpoint.convert(opened, tmp_path / f"to_{to}", to=to)
            checkpoint.load(tmp_path / f"to_{to}")
        except UserError:
            continue
        except BaseException as e:
            raise AssertionError(f"seed {seed}: {e!r} for {what}") from e


def test_enough_of_them():
    assert MUTATIONS * len(KINDS) >= 2000
