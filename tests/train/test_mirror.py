"""A run's folder and lock in object stores: what is copied, in which order, what a kill leaves."""

import json
import os
import pathlib
import threading

import object_stores
import pytest

from vit_jax import stores
from vit_jax.errors import UserError
from vit_jax.train import mirror as module
from vit_jax.train import run_lock as notes
from vit_jax.train.lease import lease
from vit_jax.train.mirror import Mirror

MARK = "_CHECKPOINT_METADATA"


@pytest.fixture(scope="module", params=[object_stores.memory, object_stores.s3, object_stores.gcs])
def store(request):
    with request.param() as (root, _):
        yield root


@pytest.fixture
def run(store, request, monkeypatch):
    """The address of a run that nobody has begun."""
    monkeypatch.setattr(module, "EVERY", 600.0)  # nothing is copied but what the test has copied
    return f"{store}/{abs(hash(request.node.name))}/run"


def files(address: str) -> set[str]:
    return set(stores.files_below(stores.path(address)))


def write(folder: os.PathLike, name: str, text: str) -> None:
    path = pathlib.Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def checkpoint(folder: os.PathLike, step: int, text: str = "x") -> set[str]:
    names = {f"checkpoint_{step}/{n}" for n in (MARK, "params/d/1", "rest/d/1", "metrics/metrics")}
    for name in names:
        write(folder, name, text)
    return names


def kill(mirror: Mirror) -> None:
    """What SIGKILL does: nothing more is copied."""
    mirror._ended.set()
    mirror._thread.join()


def test_a_run_is_copied_and_fetched_as_far_as_it_needs(run):
    with Mirror(run) as mirror:
        assert str(mirror) == run
        write(mirror, "metrics.jsonl", "1\n")
        write(mirror, "plugins/profile/now/host.pb", "trace")
        write(mirror, "events.out.tfevents.1", "event")
        write(mirror, ".run.json.tmp", "half")
        first, second = checkpoint(mirror, 1), checkpoint(mirror, 2)
        write(mirror, "checkpoint_3.orbax-checkpoint-tmp/params/d/1", "half")
        mirror.push()
        written = {"metrics.jsonl", "plugins/profile/now/host.pb", "events.out.tfevents.1"}
        assert files(run) == written | first | second
        # The arrays of old checkpoints are in the store alone.
        assert not (pathlib.Path(mirror) / "checkpoint_1/params").exists()
        assert (pathlib.Path(mirror) / "checkpoint_2/params").exists()
        write(mirror, "metrics.jsonl", "1\n2\n")
    assert not pathlib.Path(mirror).exists()
    assert stores.read_bytes(f"{run}/metrics.jsonl") == b"1\n2\n"

    with Mirror(run) as mirror:
        folder = pathlib.Path(mirror)
        there = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
        assert there == {"metrics.jsonl"} | {
            f"checkpoint_{step}/{name}" for step in (1, 2) for name in (MARK, "metrics/metrics")
        }
        # A checkpoint gets the figures of an evaluation that is made when the run goes on.
        write(folder, "checkpoint_2/metrics/metrics", "better")
        mirror.push()
        assert stores.read_bytes(f"{run}/checkpoint_2/metrics/metrics") == b"better"
        mirror.fill(1)
        assert (folder / "checkpoint_1/rest/d/1").read_text() == "x"
        # Orbax removes what is not kept, and a run that goes back a step writes that one anew.
        module.shutil.rmtree(folder / "checkpoint_1")
        module.shutil.rmtree(folder / "checkpoint_2")
        checkpoint(folder, 2, text="another")
    assert not any(name.startswith("checkpoint_1") for name in files(run))
    assert stores.read_bytes(f"{run}/checkpoint_2/params/d/1") == b"another"


def test_what_a_kill_leaves_is_whole(run, monkeypatch):
    uploaded = stores.upload

    class Killed(BaseException):
        pass

    def upload(local, targets):
        if any(t.name == MARK for t in targets):
            raise Killed
        uploaded(local, targets)

    with Mirror(run) as mirror:
        checkpoint(mirror, 1)
    mirror = Mirror(run).__enter__()
    write(mirror, "metrics.jsonl", "1\n2\n")
    checkpoint(mirror, 2)
    with monkeypatch.context() as patch:
        patch.setattr(stores, "upload", upload)
        with pytest.raises(Killed):
            mirror.push()
    kill(mirror)
    assert f"checkpoint_2/{MARK}" not in files(run)
    assert "checkpoint_2/params/d/1" in files(run)
    # The figures up to a checkpoint are there before it is.
    assert stores.read_bytes(f"{run}/metrics.jsonl") == b"1\n2\n"
    with Mirror(run, writes_checkpoints=False) as reader:  # which removes nothing
        assert not (pathlib.Path(reader) / "checkpoint_2").exists()
    with Mirror(run) as mirror:
        assert not any(name.startswith("checkpoint_2") for name in files(run))
        assert (pathlib.Path(mirror) / "checkpoint_1").exists()


def test_a_store_that_fails_is_one_message_and_is_tried_again(run, monkeypatch):
    with Mirror(run) as mirror:
        checkpoint(mirror, 7)
        mirror.push()
        checkpoint(mirror, 8)
        with monkeypatch.context() as patch:
            patch.setattr(type(mirror._root.fs), "put_file", refused)
            patch.setattr(type(mirror._root.fs), "_put_file", refused_later, raising=False)
            with pytest.raises(UserError) as error:
                mirror.push()
        assert str(error.value) == (
            f"cannot write to --workdir={run}: no more room. The checkpoint of step 7 is whole "
            "there; once this is mended, the same command goes on"
        )
    assert f"checkpoint_8/{MARK}" in files(run)


def refused(*args, **options):
    raise RuntimeError("no more room.\nand much more")


async def refused_later(*args, **options):
    refused()


# --- the lock ------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(notes, "BEAT", 0.1)
    monkeypatch.setattr(notes, "WATCH", 0.8)
    monkeypatch.setattr(notes, "SETTLE", 0.1)


def left_by(run: str, **fields) -> None:
    note = {"host": "elsewhere", "process": 7, "begun": "2026-01-02 03:04:05"} | fields
    stores.path(f"{run}/run.lock").write_bytes(json.dumps(note).encode())


def test_one_run_at_an_address(run, quick, capsys):
    with lease(run) as require_mine:
        require_mine()
        message = f"is in use by the run of process {os.getpid()} on"
        with pytest.raises(UserError, match=message), lease(run):
            pass
    assert files(run) == set()
    capsys.readouterr()
    with lease(run):  # after an end in order nothing is said
        pass
    assert "was left by" not in capsys.readouterr().err


def test_a_dead_run_is_taken_over_and_says_so_if_it_lives(run, quick, capsys):
    left_by(run)
    with lease(run) as require_mine:
        err = capsys.readouterr().err
        assert "process 7 on elsewhere, begun at 2026-01-02 03:04:05" in err
        assert "has ended: this run takes over" in err
        left_by(run, process=8)  # as if this one had been suspended and taken for dead
        with pytest.raises(UserError, match="is in use by the run of process 8 on elsewhere"):
            require_mine()
        mirror = Mirror(run, True, require_mine).__enter__()
        write(mirror, "metrics.jsonl", "1\n")
        with pytest.raises(UserError, match="process 8"):
            mirror.__exit__(None, None, None)
    assert files(run) == {"run.lock"}  # which is the other's


def test_the_note_may_be_renewed_while_it_is_read(run, monkeypatch):
    with lease(run) as require_mine:
        path = stores.path(f"{run}/run.lock")
        system, content = type(path.fs), json.loads(stores.read_bytes(f"{run}/run.lock"))
        opens, beats = system.open, []

        def renewing(self, *args, **options):
            opened = opens(self, *args, **options)
            beats.append(len(beats) + 1)
            self.pipe_file(path.path, json.dumps(content | {"beat": beats[-1]}).encode())
            return opened

        monkeypatch.setattr(system, "open", renewing)
        require_mine()


def test_of_two_that_start_at_once_one_goes_on(store, run, quick):
    if store.startswith("gs:"):
        pytest.skip("this emulator knows no conditions; Google's own store does")
    held, refused, both = [], [], threading.Barrier(2)

    def start():
        both.wait()
        try:
            with lease(run):
                held.append(run)
                ended.wait()
        except UserError as error:
            refused.append(str(error))
            ended.set()

    ended = threading.Event()
    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert (len(held), len(refused)) == (1, 1)
