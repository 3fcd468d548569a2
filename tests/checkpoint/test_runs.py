"""Directories of Orbax and files of Flax: runs of ours, of the original's, and trees alone."""

import json

import flax
import jax
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from checkpoint_helpers import SHAPES, assert_equal_trees, narrow, narrow_params
from flax.training import checkpoints as flax_checkpoints
from recipes import flatten, unflatten

from vit_jax import checkpoint
from vit_jax.checkpoint.stacked import stack_blocks
from vit_jax.errors import UserError

CONFIG = narrow(SHAPES["ViT-Ti_16"]["config"])
CONFIG["transformer"]["num_layers"] = 2


@pytest.fixture
def params():
    """One tensor in bfloat16, so that a cast would be seen."""
    params = narrow_params(CONFIG)
    params["head"]["kernel"] = params["head"]["kernel"].astype(ml_dtypes.bfloat16)
    return params


def originals_run(workdir, params, use_orbax, steps=(3, 12)):
    """What the original's loop leaves: a tuple of parameters, optimizer state and step."""
    before = flax.config.flax_use_orbax_checkpointing
    flax.config.update("flax_use_orbax_checkpointing", use_orbax)
    try:
        for step in steps:
            tree = params if step == steps[-1] else jax.tree.map(np.zeros_like, params)
            state = optax.sgd(0.1, momentum=0.9).init(tree)
            flax_checkpoints.save_checkpoint(workdir, (tree, state, step), step, keep=5)
    finally:
        flax.config.update("flax_use_orbax_checkpointing", before)


@pytest.mark.parametrize(("use_orbax", "format"), [(True, "orbax"), (False, "flax")])
def test_the_originals_runs(tmp_path, params, use_orbax, format):
    originals_run(tmp_path, params, use_orbax)
    for path in (tmp_path, tmp_path / "checkpoint_12"):
        found = checkpoint.identify(path)
        assert (found.format, found.layout, found.num_classes) == (format, "linen", 3)
        # Parameters only; the others are named.
        assert "1/0/trace/head/kernel" in found.skipped
        assert "2" in found.skipped
        assert_equal_trees(checkpoint.load(path), params)
    assert not flatten(checkpoint.load(tmp_path / "checkpoint_3"))["cls"].any()


def test_the_originals_older_runs_hold_an_optimizer_with_its_target(tmp_path, params):
    state = ({"target": params, "state": {"step": 3, "param_states": params}}, 3)
    (tmp_path / "checkpoint_3").write_bytes(flax.serialization.to_bytes(state))
    assert_equal_trees(checkpoint.load(tmp_path), params)


def test_arrays_that_flax_cut_into_pieces(tmp_path, params, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 100)
    (tmp_path / "x").write_bytes(flax.serialization.to_bytes(params))
    assert_equal_trees(checkpoint.load(tmp_path / "x"), params)


@pytest.mark.parametrize("options", [{}, {"use_ocdbt": False}, {"use_zarr3": True}])
@pytest.mark.parametrize("tree", ["bare", "params", "stacked"])
def test_trees_of_orbax(tmp_path, params, tree, options):
    stored = {"bare": params, "params": {"params": params}, "stacked": stack_blocks(params)}[tree]
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(tmp_path / "x", stored)
    assert_equal_trees(checkpoint.load(tmp_path / "x"), params)


def test_trees_of_orbax_before_2024(tmp_path, params):
    """A msgpack file of names stood in the place of `_METADATA`."""
    state = {"0": params, "1": {"trace": params}, "2": np.int64(3)}
    writer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False))
    writer.save(tmp_path / "checkpoint_3", state)
    (tmp_path / "checkpoint_3" / "_METADATA").unlink()
    names = {n: f"PLACEHOLDER://{n.replace('/', '.')}" for n in flatten(state)}
    aggregate = flax.serialization.msgpack_serialize(unflatten(names))
    (tmp_path / "checkpoint_3" / "checkpoint").write_bytes(aggregate)
    assert_equal_trees(checkpoint.load(tmp_path), params)
    assert "1/trace/cls" in checkpoint.identify(tmp_path).skipped


def test_a_manager_with_one_unnamed_item(tmp_path, params):
    with ocp.CheckpointManager(tmp_path / "x") as manager:
        manager.save(5, args=ocp.args.StandardSave({"params": params, "step": 5}))
    assert_equal_trees(checkpoint.load(tmp_path / "x"), params)
    assert checkpoint.identify(tmp_path / "x").skipped == ("step",)


def test_orbax_reads_what_we_write(tmp_path, params):
    checkpoint.save(tmp_path / "src.npz", params)
    done = checkpoint.convert(tmp_path / "src.npz", tmp_path / "x", to="orbax")
    for reader in (ocp.PyTreeCheckpointer(), ocp.StandardCheckpointer()):
        assert_equal_trees(reader.restore(tmp_path / "x"), params)
    (record,) = json.loads(
        json.loads((tmp_path / "x" / "vit_jax.json").read_text())["vit_jax_conversion"]
    )
    assert record["source"] == {
        "file": "src.npz", "sha256": done.source_sha256, "format": "npz", "layout": "released",
    }  # fmt: skip
    # A directory's hash is that of its files: the same until one of them changes.
    first = checkpoint.convert(tmp_path / "x", tmp_path / "y.npz", to="official").source_sha256
    again = checkpoint.convert(tmp_path / "x", tmp_path / "y.npz", to="official").source_sha256
    (tmp_path / "x" / "vit_jax.json").write_text("{}")
    other = checkpoint.convert(tmp_path / "x", tmp_path / "y.npz", to="official").source_sha256
    assert first == again != other


def test_only_a_directory_of_orbax_is_replaced(tmp_path, params):
    checkpoint.save(tmp_path / "src.npz", params)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("years of work")
    for dst in ("x", "file"):
        with pytest.raises(UserError, match="left alone"):
            checkpoint.convert(tmp_path / "src.npz", tmp_path / dst, to="orbax")
    checkpoint.convert(tmp_path / "src.npz", tmp_path / "y", to="orbax")
    checkpoint.convert(tmp_path / "src.npz", tmp_path / "y", to="orbax", num_classes=7)
    assert checkpoint.identify(tmp_path / "y").num_classes == 7
    assert {p.name for p in tmp_path.iterdir()} == {"src.npz", "x", "file", "y"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a: full [")])
def test_a_full_disk_leaves_the_old_directory(tmp_path, params, monkeypatch, error):
    checkpoint.save(tmp_path / "src.npz", params)
    checkpoint.convert(tmp_path / "src.npz", tmp_path / "x", to="orbax")

    def full(self, directory, *args, **kwargs):
        directory.mkdir()
        (directory / "half").touch()
        raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointer, "save", full)
    with pytest.raises(UserError, match="cannot write"):
        checkpoint.convert(tmp_path / "src.npz", tmp_path / "x", to="orbax", num_classes=7)
    assert checkpoint.identify(tmp_path / "x").num_classes == 3
    assert {p.name for p in tmp_path.iterdir()} == {"src.npz", "x"}


def test_directories_without_a_checkpoint(tmp_path, params):
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    (tmp_path / "checkpoint_3").write_bytes(b"\x81\xa1x\xc1")
    with pytest.raises(UserError, match="checkpoint_3"):
        checkpoint.load(tmp_path)
    checkpoint.convert(_saved(tmp_path, params), tmp_path / "x", to="orbax")
    described = tmp_path / "x" / "_METADATA"
    fields = json.loads(described.read_text())
    described.write_text(json.dumps(fields | {"tree_metadata": {}}))
    with pytest.raises(UserError, match="no readable orbax file"):
        checkpoint.load(tmp_path / "x")


def test_a_directory_that_claims_too_much_is_refused(tmp_path, params, monkeypatch):
    monkeypatch.setattr("vit_jax.checkpoint.files.orbax._MAX_UNPACKED", 0)
    monkeypatch.setattr("vit_jax.checkpoint.files.orbax._MAX_RATIO", 0.01)
    checkpoint.convert(_saved(tmp_path, params), tmp_path / "x", to="orbax")
    with pytest.raises(UserError, match="claim to unpack"):
        checkpoint.load(tmp_path / "x")


def _saved(folder, params):
    checkpoint.save(folder / "src.npz", params)
    return folder / "src.npz"
