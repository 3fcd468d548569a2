"""Processes that embed together are killed again and again: each example is written once."""

import os
import random
import signal
import time

import embedding
import numpy as np
import processes
import pyarrow.parquet as pq
import pytest

import vit_jax
from vit_jax.evaluate.embeddings.folder import Folder

LIMIT = 300  # seconds


def start(model, images, out, *options):
    """The command in two processes of one device each."""
    words = ["-m", "vit_jax.cli", "embed", model, images, f"--out={out}", *options]
    return [
        processes.start(
            [*words, f"--coordinator={address}", f"--num_processes={count}", f"--process_id={i}"]
        )
        for address, count, i in processes.together(2)
    ]


def killed(pair, out, shards, pause=0.0):
    """Kills both processes, when so many shards are finished, and the second after a pause."""
    folder, began = Folder(out), time.monotonic()
    while len(folder.finished()) < shards and all(p.poll() is None for p in pair):
        assert time.monotonic() - began < LIMIT
        time.sleep(0.001)
    for process in pair:
        os.killpg(process.pid, signal.SIGKILL)
        time.sleep(pause)
    return [status for status, _, _ in processes.finish(*pair)]


def check(out, count, missing=()):
    """Each example is there once, and no file is half-written; all of them as one table."""
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]
    table = pq.read_table(out).sort_by("index")
    assert table["index"].to_pylist() == [i for i in range(count) if i not in missing]
    return table


def test_two_processes_are_killed_and_go_on(tmp_path):
    count, hangs = 120, 50
    model = embedding.write_model(tmp_path / "tiny.npz")
    paths = embedding.write_images(tmp_path / "images", count)
    listed, out = tmp_path / "paths.txt", tmp_path / "out"
    listed.write_text("\n".join(paths))
    # Who reads this waits for ever, so that the kill comes before the end however slow it is.
    os.unlink(paths[hangs])
    os.mkfifo(paths[hangs])
    command = (model, listed, out, "--batch=2", "--shard-size=4")
    assert killed(start(*command), out, 3) == [-signal.SIGKILL] * 2
    before = Folder(out).finished()
    assert len(before) >= 3
    assert hangs // 4 not in before
    # As if the kill had come in the middle of a shard, which is in a file of another name.
    (out / f".shard-{hangs // 4:06}.parquet.1.tmp").write_bytes(b"half")
    os.unlink(paths[hangs])
    damaged = hangs
    with open(paths[damaged], "wb") as file:
        file.write(b"no image")
    processes.succeed(*start(*command))
    table = check(out, count, [damaged])
    features = np.stack(table["features"].to_numpy())
    good = [path for i, path in enumerate(paths) if i != damaged]
    assert table["key"].to_pylist() == good
    expected = vit_jax.load(model).features(good)
    np.testing.assert_allclose(features, expected, atol=1e-5 * expected.std())
    entries = [Folder(out).entry(k) for k in range(count // 4)]
    assert [x[0] for entry in entries for x in entry.left_out] == [damaged]


@pytest.mark.slow
def test_ten_thousand_images_and_five_kills(tmp_path):
    count, size = 10_000, 100
    model = embedding.write_model(tmp_path / "tiny.npz")
    paths = embedding.write_images(tmp_path / "images", count)
    out, chance = tmp_path / "out", random.Random(0)
    command = (model, tmp_path / "images", out, "--batch=8", f"--shard-size={size}")
    for number in range(5):
        shards = int(count / size * (number + chance.random()) / 6)
        pair = chance.sample(start(*command), 2)
        assert killed(pair, out, shards, chance.random() / 2) == [-signal.SIGKILL] * 2
        assert len(Folder(out).finished()) < count / size
    processes.succeed(*start(*command))
    table = check(out, count)
    assert table["key"].to_pylist() == paths
    some = chance.sample(range(count), 64)
    expected = vit_jax.load(model).features([paths[i] for i in some])
    features = np.stack(table["features"].to_numpy())[some]
    np.testing.assert_allclose(features, expected, atol=1e-5 * expected.std())
