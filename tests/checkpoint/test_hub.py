"""`hf://org/name` from a server that speaks as the hub does: what is chosen, kept and said."""

import json
import pathlib
import re

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
from hub_server import COMMITS, serving, use
from safetensors.numpy import save_file

from vit_jax.checkpoint.files import hub as hub_files
from vit_jax.checkpoint.files import repository
from vit_jax.checkpoint.files.fetch import fetch
from vit_jax.errors import UserError

CARD = "---\ntags:\n- vision\nlicense: apache-2.0\nlibrary_name: timm\n---\n# A model\n"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving() as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        yield server


def written(folder: pathlib.Path, *files: str, size: int = 8) -> pathlib.Path:
    """A folder of such files; of weights are a few numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({"x": np.arange(size, dtype=np.float32)}, path)
        else:
            path.write_text(CARD if name == "README.md" else json.dumps({"file": name}))
    return folder


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://a/b", ("a/b", "main", "")),
        ("hf:/a/b/", ("a/b", "main", "")),  # as pathlib writes it
        ("HF://a/b@v2", ("a/b", "v2", "")),
        ("hf://a/b/x/y.npz", ("a/b", "main", "x/y.npz")),
        ("hf://a/b@refs/pr/3/y.npz", ("a/b", "refs/pr/3", "y.npz")),
        ("https://huggingface.co/a/b/resolve/main/x/y.npz", ("a/b", "main", "x/y.npz")),
        ("hf://a/b@refs%2Fpr%2F3/y.npz", ("a/b", "refs/pr/3", "y.npz")),
    ],
)
def test_an_address_has_a_repository_a_revision_and_a_file(text, parts):
    found = hub_files.parse(text)
    assert found is not None
    assert (found.repo, found.revision, found.file) == parts
    assert hub_files.parse(str(found)) == found


def test_other_addresses_are_not_of_models():
    for text in ("gs://a/b", "a/b", "hf://datasets/a/b/x.npz"):
        assert hub_files.parse(text) is None
    for text in ("hf://a", "hf://a/@v2", "hf://a/b@/x"):
        with pytest.raises(UserError, match="hf://ORGANISATION/NAME"):
            hub_files.parse(text)


# --- which file ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["config.json", "pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["config.json", "pytorch_model.bin", "open_clip_model.safetensors"], "pytorch_model.bin"),
        (
            ["open_clip_config.json", "open_clip_pytorch_model.bin", "open_clip_model.safetensors"],
            "open_clip_model.safetensors",
        ),
        (["config.json", "model.safetensors.index.json"], "model.safetensors.index.json"),
        (["siglip2_b16_224.npz", "README.md", "other.bin"], "siglip2_b16_224.npz"),
        (["weights.pth"], "weights.pth"),
    ],
)
def test_the_safe_file_that_is_described_is_chosen(files, chosen):
    assert repository.chosen(files, "hf://a/b") == chosen


def test_several_or_no_weights_are_said():
    with pytest.raises(UserError, match=r"name one, such as hf://a/b/x\.npz"):
        repository.chosen(["x.npz", "y.npz"], "hf://a/b")
    with pytest.raises(UserError, match=r"no weights in a format that is read.*tf_model.h5"):
        repository.chosen(["tf_model.h5"], "hf://a/b")


# --- what is kept --------------------------------------------------------------------------------


def test_what_is_needed_comes_once_and_nothing_else(hub, tmp_path):
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "README.md", "x/y.txt"]
    address = hub.add("org/name", written(tmp_path / "repo", *files))
    path = fetch(address)
    assert path.name == "model.safetensors"
    assert (path.parent / "config.json").exists()
    beside = sorted(f.name for f in path.parent.iterdir())
    assert beside == ["README.md", "config.json", "model.safetensors"]
    assert hub_files.origin(path) == f"hf://org/name@{COMMITS['main']}/model.safetensors"
    hub.asked.clear()
    assert fetch(address) == path
    assert not [ask for ask in hub.asked if ask.startswith("GET /org")]
    hub.asked.clear()
    assert fetch(f"{address}/x/y.txt").read_text() == '{"file": "x/y.txt"}'
    assert [ask for ask in hub.asked if ask.startswith("GET /org")] == [
        "GET /org/name/resolve/main/x/y.txt"
    ]


def test_shards_come_with_their_index(hub, tmp_path):
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    folder = written(tmp_path / "repo", "config.json", *parts)
    for i, name in enumerate(parts):
        save_file({f"x{i}": np.full(3, i, np.float32)}, folder / name)
    index = {"weight_map": {f"x{i}": name for i, name in enumerate(parts)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    path = fetch(hub.add("org/name", folder))
    assert path.name == "model.safetensors.index.json"
    assert {f.name for f in path.parent.iterdir()} == {"config.json", path.name, *parts}
    (folder / "model.safetensors.index.json").write_text("{}")
    hub.repositories["org/name"]["v2"] = folder
    with pytest.raises(UserError, match=r"index.json is damaged"):
        fetch("hf://org/name@v2")


def test_a_revision_is_another_folder(hub, tmp_path):
    hub.add("org/name", written(tmp_path / "one", "x.safetensors"))
    hub.add("org/name", written(tmp_path / "two", "x.safetensors", size=9), "v2")
    main, other = fetch("hf://org/name"), fetch("hf://org/name@v2")
    assert main.read_bytes() != other.read_bytes()
    assert fetch(f"hf://org/name@{COMMITS['v2']}") == other


@pytest.mark.parametrize("reason", ["offline", "down", "gone"])
def test_what_is_in_the_cache_serves_without_the_hub(hub, tmp_path, monkeypatch, reason):
    address = hub.add("org/name", written(tmp_path / "repo", "config.json", "model.safetensors"))
    path = fetch(address)
    if reason == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    elif reason == "down":
        hub.down = True
    else:
        use("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert fetch(address) == path
    if reason != "offline":
        with pytest.raises(UserError, match=r"cannot be reached .*, and it is not in the cache"):
            fetch("hf://org/other")
    else:
        with pytest.raises(UserError, match="not in the cache, and HF_HUB_OFFLINE is set"):
            fetch("hf://org/other")


# --- what is said --------------------------------------------------------------------------------


def test_each_refusal_says_what_to_do(hub, tmp_path):
    files = ("config.json", "model.safetensors", "a/x.npz")
    hub.add("org/name", written(tmp_path / "repo", *files))
    hub.add("org/gated", tmp_path / "repo")
    hub.gated.add("org/gated")
    for address, message in (
        ("hf://org/gone", "there is no such repository, or it is private.*HF_TOKEN"),
        ("hf://org/gated", f"gated. Accept its conditions at {hub.url}/org/gated, then .*HF_TOKEN"),
        ("hf://org/name@v9", "no revision 'v9'"),
        ("hf://org/name/y.npz", "no file 'y.npz'; it has a/x.npz, config.json, model.safetensors"),
        ("hf://org/name/a", "'a' is a folder; name a file of it, such as 'a/x.npz'"),
        ("hf://org/na--me", "no name of a repository"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            fetch(address)
        assert "\n" not in str(caught.value)
        assert address in str(caught.value)


def test_a_file_that_comes_incomplete_or_changed_is_not_kept(hub, tmp_path):
    folder = written(tmp_path / "repo", "config.json", "model.safetensors", size=30_000)
    address = hub.add("org/name", folder)
    hub.cut.add("model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors came incomplete"):
        fetch(address)
    hub.cut.clear()
    hub.changed.add("model.safetensors")
    with pytest.raises(UserError, match="its hash is another than the hub's"):
        fetch(address)
    hub.changed.clear()
    kept = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink()}
    assert kept == {"config.json"}
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    path = fetch(address)
    assert path.read_bytes() == (folder / "model.safetensors").read_bytes()
    # A cache that is damaged later is mended where the hub can be asked.
    path.resolve().write_bytes(b"?")
    assert fetch(address).read_bytes() == (folder / "model.safetensors").read_bytes()
    (path.parent / "config.json").resolve().write_bytes(b"?")  # which git names by another hash
    fetch(address)
    assert json.loads((path.parent / "config.json").read_text()) == {"file": "config.json"}


def test_without_the_package_the_message_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=re.escape('pip install "vit-jax[hub]"')):
        fetch("hf://org/name")
