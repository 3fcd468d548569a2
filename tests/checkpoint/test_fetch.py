"""Downloads from a server in this process: what is kept, what is checked, what the message says."""

import hashlib
import http.server
import importlib.util
import io
import logging
import pathlib
import shlex
import socket
import sys
import threading

import fsspec
import numpy as np
import pytest
from recipes import GOLDEN
from shapes import param_shapes

from vit_jax import checkpoint, cli, inference
from vit_jax.checkpoint.files import fetch as fetching
from vit_jax.checkpoint.files.fetch import fetch
from vit_jax.configs import augreg, common
from vit_jax.configs.models import MODEL_CONFIGS
from vit_jax.errors import UserError
from vit_jax.families import published as catalogue
from vit_jax.stores import is_address
from vit_jax.train.pretrained import find_pretrained
from vit_jax.tree import arrays, unflatten

BODY = bytes(range(256)) * 5000  # more than one chunk
IN21K = "vit_models/imagenet21k/ViT-B_16.npz"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        status, headers, body = self.server.pages.get(self.path, (404, {}, b"no"))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.asked, httpd.pages = [], {}
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "below"
    monkeypatch.setenv("VIT_JAX_CACHE", str(folder))
    return folder


@pytest.fixture
def bucket(server, monkeypatch):
    """The server in the place of Google's."""
    monkeypatch.setattr(catalogue, "GCS", server.url)
    # Where gcsfs is installed, it would ask Google itself for what the server refuses.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return server


def refusal(location):
    with pytest.raises(UserError) as e:
        fetch(location)
    return str(e.value)


# --- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a/ViT-B_16.npz", "/a/b.npz", "C:/a.npz", "~/x", "gs", "a:b"])
def test_a_path_is_returned_as_it_is(path, cache):
    assert fetch(path) == fetch(pathlib.Path(path)) == pathlib.Path(path)
    assert not is_address(path)
    assert not cache.exists()


@pytest.mark.parametrize("address", ["gs://b/x.npz", "https://h/x", "S3://b/x", "hf://a/b/c"])
def test_an_address_is_not_a_path(address):
    assert is_address(address)
    assert is_address(pathlib.PurePosixPath(address))  # which drops a slash


# --- what is kept --------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(server, cache):
    server.pages["/a/x.npz"] = (200, {}, BODY)
    path = fetch(f"{server.url}a/x.npz")
    assert path.read_bytes() == BODY
    assert path.name.endswith("-x.npz")
    digest = hashlib.sha256(BODY).hexdigest()
    (checksum,) = (p for p in cache.iterdir() if p != path)
    assert checksum.name == f"{path.name}.sha256"
    assert checksum.read_text() == f"{digest}  {path.name}\n"  # as sha256sum writes and checks it
    assert fetch(f"{server.url}a/x.npz") == path
    assert server.asked == ["/a/x.npz"]


def test_equal_names_at_two_addresses_are_two_files(server, cache):
    server.pages |= {"/sam/x.npz": (200, {}, b"sam"), "/gsam/x.npz": (200, {}, b"gsam")}
    files = [fetch(f"{server.url}{folder}/x.npz") for folder in ("sam", "gsam")]
    assert [file.read_bytes() for file in files] == [b"sam", b"gsam"]


def test_the_folder_is_the_arguments_then_the_environments(server, cache, tmp_path):
    server.pages["/x"] = (200, {}, b"x")
    assert fetch(f"{server.url}x", tmp_path / "mine").parent == tmp_path / "mine"
    assert fetch(f"{server.url}x").parent == cache


def test_the_folder_is_in_the_home_folder_by_default(server, tmp_path, monkeypatch):
    monkeypatch.delenv("VIT_JAX_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    server.pages["/x"] = (200, {}, b"x")
    assert fetch(f"{server.url}x").parent == tmp_path / ".cache" / "vit_jax"


def test_gs_is_asked_for_by_https_and_is_the_same_file(bucket, cache):
    at = "/vit_models/imagenet21k%2Bimagenet2012/ViT-B_16.npz"
    bucket.pages[at] = (200, {}, BODY)
    gs = "gs://vit_models/imagenet21k+imagenet2012/ViT-B_16.npz"
    path = fetch(gs)
    assert path.read_bytes() == BODY
    same = [
        fetch(pathlib.PurePosixPath(gs)),
        fetch(catalogue.gcs_url(gs)),
        fetch(gs.title()[:2] + gs[2:]),
    ]
    assert same == [path] * 3
    assert bucket.asked == [at]


def test_redirects_are_followed(server, cache):
    server.pages["/resolve/x"] = (302, {"Location": f"{server.url}cdn/x?token=1"}, b"")
    server.pages["/cdn/x?token=1"] = (200, {}, BODY)
    assert fetch(f"{server.url}resolve/x").read_bytes() == BODY


def test_a_size_need_not_be_known(server, cache):
    server.pages["/x"] = (200, {"Content-Length": None}, BODY)
    assert fetch(f"{server.url}x").read_bytes() == BODY


@pytest.mark.parametrize("damage", ["changed", "shortened", "checksum gone", "checksum garbled"])
def test_a_damaged_copy_is_fetched_anew(server, cache, damage, caplog):
    server.pages["/x"] = (200, {}, BODY)
    path = fetch(f"{server.url}x")
    checksum = path.with_name(f"{path.name}.sha256")
    match damage:
        case "changed":
            path.write_bytes(b"!" + BODY[1:])
        case "shortened":
            path.write_bytes(BODY[:-1])
        case "checksum gone":
            checksum.unlink()
        case "checksum garbled":
            checksum.write_bytes(b"\xff\xff")
    with caplog.at_level(logging.WARNING):
        assert fetch(f"{server.url}x").read_bytes() == BODY
    assert len(server.asked) == 2
    assert ("not what was downloaded" in caplog.text) == (damage in ("changed", "shortened"))
    fetch(f"{server.url}x")
    assert len(server.asked) == 2


# --- what goes wrong -----------------------------------------------------------------------------


def test_forbidden_names_who_else_holds_the_weights(bucket, cache):
    bucket.pages[f"/{IN21K}"] = (403, {}, b"<Error/>")
    message = refusal(f"gs://{IN21K}")
    assert message.startswith(f"cannot fetch gs://{IN21K}: the server answered 403 (Forbidden). ")
    assert "timm's 'vit_base_patch16_224.orig_in21k'" in message
    assert "Hugging Face's 'google/vit-base-patch16-224-in21k'" in message
    assert shlex.split(message.split("`")[1]) == [
        *("vit-jax", "convert"),
        "https://huggingface.co/google/vit-base-patch16-224-in21k/resolve/main/model.safetensors",
        *("ViT-B_16.npz", "--to", "official", "--model", "ViT-B_16"),
    ]
    assert list(cache.iterdir()) == []


def test_the_https_form_is_advised_alike(bucket, cache):
    assert "'vit_base_patch16_224.orig_in21k'" in refusal(f"{bucket.url}{IN21K}")


def test_without_a_copy_other_weights_of_the_model_are_named(bucket, cache):
    message = refusal("gs://vit_models/sam/ViT-L_32.npz")
    assert "the server answered 404 (Not Found). No copy of these weights is known" in message
    assert "'vit_large_patch32_384.orig_in21k_ft_in1k'" in message


def test_a_file_that_nobody_knows(server, cache):
    address = f"{server.url}x.npz"
    assert refusal(address) == f"cannot fetch {address}: the server answered 404 (Not Found)."


def test_no_network(cache, monkeypatch):
    with socket.socket() as s:  # bound, but nobody listens
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        monkeypatch.setattr(catalogue, "GCS", f"http://127.0.0.1:{port}/")
        message = refusal(f"gs://{IN21K}")
    assert f"127.0.0.1:{port} cannot be reached" in message
    assert "refused" in message
    assert "'vit_base_patch16_224.orig_in21k'" in message


def test_an_address_that_is_none(cache):
    assert refusal("http://127.0.0.1:port/x").startswith("cannot fetch http://127.0.0.1:port/x: ")


def test_a_body_that_ends_early(server, cache):
    server.pages["/x"] = (200, {"Content-Length": str(len(BODY) + 1)}, BODY)
    message = refusal(f"{server.url}x")
    assert f"broke off after {len(BODY)} of {len(BODY) + 1} bytes" in message
    assert list(cache.iterdir()) == []


def test_a_connection_that_breaks_off(server, cache):
    chunked = {"Transfer-Encoding": "chunked", "Content-Length": None}
    server.pages["/x"] = (200, chunked, b"ffff\r\nonly this")
    assert "the connection broke off" in refusal(f"{server.url}x")
    assert list(cache.iterdir()) == []


def test_an_interruption_leaves_nothing_and_the_old_copy_whole(server, cache, monkeypatch):
    server.pages["/x"] = (200, {}, BODY)
    path = fetch(f"{server.url}x")
    path.with_name(f"{path.name}.sha256").unlink()

    def interrupted(stream):
        yield b"other bytes"
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "_chunks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}x")
    assert list(cache.iterdir()) == [path]
    assert path.read_bytes() == BODY


def test_a_folder_that_cannot_be(server, tmp_path):
    (tmp_path / "file").write_text("")
    server.pages["/x"] = (200, {}, b"x")
    with pytest.raises(UserError, match=r"cannot (write to|read the cached)"):
        fetch(f"{server.url}x", tmp_path / "file" / "cache")


def test_a_full_disk_is_not_the_networks_fault(server, cache, monkeypatch):
    server.pages["/x"] = (200, {}, BODY)

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda name, mode="r", *a, **k: Full(name, mode))
    message = refusal(f"{server.url}x")
    monkeypatch.undo()
    assert message.startswith("cannot write ")
    assert "No space left" in message


# --- other file systems --------------------------------------------------------------------------


def test_fsspec_reads_the_others(cache):
    fsspec.filesystem("memory").pipe("/fetch/x.npz", BODY)
    path = fetch("memory://fetch/x.npz")
    assert path.read_bytes() == BODY
    fsspec.filesystem("memory").rm("/fetch/x.npz")
    assert fetch("memory://fetch/x.npz") == path
    assert "memory://fetch/none" in refusal("memory://fetch/none")


def test_an_unknown_file_system(cache):
    assert "nothing reads addresses of nope://" in refusal("nope://a/b")


def test_a_private_bucket_is_read_by_gcsfs(bucket, cache, monkeypatch):
    bucket.pages["/mine/x.npz"] = (401, {}, b"")
    assert "401" in refusal("gs://mine/x.npz")
    private = {"gs://mine/x.npz": (io.BytesIO(BODY), len(BODY))}
    monkeypatch.setattr(fetching, "_open_fsspec", private.__getitem__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "gcsfs")
    assert fetch("gs://mine/x.npz").read_bytes() == BODY


# --- what is shown -------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_only(server, cache, monkeypatch, capsys):
    server.pages |= {f"/{name}": (200, {}, BODY) for name in ("a.npz", "b.npz")}
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    fetch(f"{server.url}a.npz")
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    fetch(f"{server.url}b.npz")
    assert "a.npz" in terminal.getvalue()
    assert "1.3/1.3 MB" in terminal.getvalue()
    assert (pipe.getvalue(), capsys.readouterr().out) == ("", "")


# --- fine-tuning ---------------------------------------------------------------------------------


def _recipe(argument, pretrained_dir):
    config = augreg.get_config(argument)
    config.pretrained_dir = pretrained_dir
    return common.with_defaults(config)


def test_fine_tuning_starts_from_a_bucket(bucket, cache):
    name = catalogue.recommended("R_Ti_16")
    bucket.pages["/vit_models/augreg/index.csv"] = (
        *(200, {}),
        f"filename,ds,final_val\n{name},i21k,0.4\n".encode(),
    )
    bucket.pages[f"/vit_models/augreg/{name}.npz"] = (200, {}, BODY)
    found = find_pretrained(_recipe("R_Ti_16", "gs://vit_models/augreg/"))
    assert found is not None
    assert found.read_bytes() == BODY


def test_fine_tuning_from_a_bucket_that_refuses(bucket, cache):
    with pytest.raises(UserError, match=r"404 .*authors recommend 'R_Ti_16-i21k-300ep"):
        find_pretrained(_recipe("R_Ti_16", "gs://vit_models/augreg"))
    with pytest.raises(UserError, match=r"'vit_tiny_r_s16_p8_224\.augreg_in21k'"):
        find_pretrained(_recipe(catalogue.recommended("R_Ti_16"), "gs://vit_models/augreg"))


# --- wherever a file is read ---------------------------------------------------------------------


def test_checkpoints_are_read_from_their_address(bucket, cache, tmp_path):
    file = GOLDEN / "ckpt_testing_rep_linen.npz"
    bucket.pages["/vit_models/own/testing.npz"] = (200, {}, file.read_bytes())
    address = "gs://vit_models/own/testing.npz"
    from_address, from_file = (arrays(checkpoint.load(x)) for x in (address, file))
    assert from_address.keys() == from_file.keys()
    for name, x in from_file.items():
        np.testing.assert_array_equal(from_address[name], x)
    assert checkpoint.identify(address).num_params == checkpoint.identify(file).num_params
    result = checkpoint.convert(address, tmp_path / "out.npz", to="official")
    assert result.src == address
    assert len(bucket.asked) == 1


def test_weights_for_inference_are_read_from_their_address(bucket, cache, tmp_path):
    shapes = param_shapes(MODEL_CONFIGS["testing"], num_classes=3, num_patches=4)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    checkpoint.save(tmp_path / "x.npz", unflatten(zeros))
    bucket.pages["/mine/x.npz"] = (200, {}, (tmp_path / "x.npz").read_bytes())
    for address in ("gs://mine/x.npz", pathlib.PurePosixPath("gs://mine/x.npz")):
        loaded = inference.load_weights(address, "testing")
        assert arrays(loaded.params).keys() == zeros.keys()
    assert len(bucket.asked) == 1


def test_the_command_line_says_what_the_server_said(bucket, cache, tmp_path, capsys):
    bucket.pages[f"/{IN21K}"] = (403, {}, b"")
    target = tmp_path / "x.safetensors"
    assert cli.main(["convert", f"gs://{IN21K}", str(target), "--to", "timm"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"vit-jax: error: cannot fetch gs://{IN21K}: the server answered 403")
    assert (out, target.exists()) == ("", False)
