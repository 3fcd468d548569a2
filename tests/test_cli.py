"""The command line from the outside: what it prints, its exit status, what it leaves behind."""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import re
import struct
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from shapes import param_shapes

from vit_jax import checkpoint, cli, commands, inference, main
from vit_jax.checkpoint.source import open_source
from vit_jax.configs.models import MODEL_CONFIGS
from vit_jax.errors import Diverged, Preempted, Status, UserError
from vit_jax.families.registry import registered
from vit_jax.parity.subject import random_params
from vit_jax.tree import arrays, unflatten

ROOT = pathlib.Path(__file__).parents[1]
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
CLASSES = list(COLOURS)


@pytest.fixture
def vit_jax(capsys):
    """Runs a command line in this process: (status, stdout, stderr)."""

    def run(*argv):
        capsys.readouterr()  # what fixtures printed
        status = cli.main([str(a) for a in argv])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def refused(vit_jax):
    """Runs a command line that must fail for bad input, and returns the message."""

    def run(*argv):
        status, out, err = vit_jax(*argv)
        assert (status, out) == (2, "")
        assert err.startswith("vit-jax: error: ")
        assert "Traceback" not in err
        return err

    return run


def _paint(path, colour, rng):
    noisy = np.clip(rng.normal(colour, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy).save(path)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder of coloured noise: 24 images to train on, 9 to test, one of them mislabelled."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for n, (name, colour) in enumerate(COLOURS.items()):
        for i in range(8):
            _paint(folder / "train" / name / f"{i}.png", colour, rng)
        for i in range(2 + n):
            _paint(folder / "test" / name / f"{i}.png", colour, rng)
    _paint(folder / "test" / "red" / "3.png", COLOURS["blue"], rng)
    return folder


@pytest.fixture(scope="module")
def workdir(colours, tmp_path_factory):
    """A real run of a few steps."""
    workdir = tmp_path_factory.mktemp("runs") / "colours"
    options = {"dataset": colours, "pp.augment": "none", "batch": 8, "batch_eval": 4}
    options |= {"model.transformer.num_layers": 1}
    options |= {"total_steps": 8, "warmup_steps": 2, "eval_every": 8, "checkpoint_every": 8}
    overrides = [f"--config.{name}={value}" for name, value in options.items()]
    config = f"--config={ROOT / 'configs' / 'digits.py'}"
    assert cli.main(["train", config, "--workdir", str(workdir), *overrides]) == 0
    return workdir


@pytest.fixture(scope="module")
def npz(workdir):
    path = workdir.parent / "colours.npz"
    assert cli.main(["convert", str(workdir), str(path), "--to", "official"]) == 0
    return path


@pytest.fixture(scope="module")
def safetensors(workdir):
    path = workdir.parent / "colours.safetensors"
    assert cli.main(["convert", str(workdir), str(path), "--to", "timm"]) == 0
    return path


# --- the frame -----------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_no_framework(option):
    code = (
        "import sys; from vit_jax import cli; status = cli.main(sys.argv[1:]);"
        "heavy = {'jax', 'flax', 'torch', 'tensorflow_datasets', 'numpy', 'rich'};"
        "sys.exit(status or ', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "vit-jax" in done.stdout


def test_the_installed_script_reports_bad_input_on_stderr():
    script = pathlib.Path(sys.executable).with_name("vit-jax")
    done = subprocess.run([script, "modles"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "vit-jax: error: unknown command 'modles'. Did you mean 'models'? "
        "`vit-jax --help` lists them all.\n"
    )


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(vit_jax, command):
    status, out, err = vit_jax(command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: vit-jax {command} ")
    summary = vit_jax("--help")[1]
    assert re.search(rf"\n    {command}\s", summary)  # argparse puts a long name on its own line


def test_no_command_prints_the_help(vit_jax):
    status, out, err = vit_jax()
    assert (status, out[:14]) == (2, "usage: vit-jax")
    assert ", ".join(cli.COMMANDS) in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["models", "--jsn"], "unknown argument '--jsn'. Did you mean '--json'?"),
        (["models", "a", "b"], "unknown argument 'b'"),
        (["train", "--confg=x"], "--workdir; '--confg=x' is unknown. Did you mean '--config'?"),
        (["predict"], "required: MODEL"),
        (["eval", "x"], "--dataset=NAME_OR_PATH says what to evaluate on; it is missing"),
        (["eval", "x", "--dataset=y", "--batch=z"], "--batch: invalid int value: 'z'"),
        (["eval", "x", "--dataset=y", "--batch=0"], "--batch must be at least 1; got 0"),
        (["predict", "x", "y", "--top=0"], "--top must be at least 1; got 0"),
        (["train", "--workdir=x"], "required: --config"),
        (
            ["convert", "a", "b", "--to=onnx"],
            "unknown format 'onnx'; known: official, big_vision, orbax, timm, hf, open_clip, tlt,",
        ),
    ],
)
def test_bad_arguments(refused, argv, message):
    assert message in refused(*argv)


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("go on by this"), 130, "interrupted: go on by this"),
        (Preempted(7), 143, "stopped by SIGTERM after step 7, which is saved; the same command"),
        (Diverged("the loss is high"), 3, "the loss is high"),
        (UserError("no such thing"), 2, "error: no such thing"),
    ],
    ids=str,
)
def test_each_ending_has_its_status(vit_jax, monkeypatch, end, status, message):
    def fail(pattern):
        raise end

    monkeypatch.setattr("vit_jax.commands.models.matching", fail)
    got, out, err = vit_jax("models")
    assert (got, out) == (status, "")
    assert err.startswith(f"vit-jax: {message}")
    assert err.count("\n") == 1


def test_the_table_of_statuses_is_that_of_the_code():
    text = (ROOT / "docs" / "distributed.md").read_text()
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)] == sorted(Status)


def test_a_failing_system_call_is_the_users_a_bug_is_ours(vit_jax, refused, monkeypatch):
    def fail(error):
        def matching(pattern):
            raise error

        monkeypatch.setattr("vit_jax.commands.models.matching", matching)

    fail(PermissionError(13, "Permission denied", "/there"))
    assert refused("models") == "vit-jax: error: /there: Permission denied\n"
    fail(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        vit_jax("models")


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_error(json_option):
    command = [sys.executable, "-m", "vit_jax.cli", "models", *json_option]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


# --- models --------------------------------------------------------------------------------------


def test_models_lists_every_model(vit_jax):
    status, out, err = vit_jax("models")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[3:-1]] == list(registered())


def test_models_shows_name_timm_name_parameters_size_and_cost(vit_jax):
    _, out, _ = vit_jax("models", "ViT-L_16")
    header, _, row = out.splitlines()[1:4]
    assert header.split() == ["name", "timm", "name", "Mparams", "image", "GFLOPs"]
    assert row.split() == ["ViT-L_16", "vit_large_patch16_224", "304.33", "224", "61.55"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("mixer-l", ["Mixer-L_16"]),  # in any case
        ("mixer_l", ["Mixer-L_16", "mixer_l16_224"]),  # timm's name counts too
        ("vit-?_32", ["ViT-S_32", "ViT-B_32", "ViT-L_32"]),
        (
            "vit_*patch16_384",
            [f"vit_{size}_patch16_384" for size in ("tiny", "small", "base", "large")],
        ),
    ],
)
def test_models_patterns(vit_jax, pattern, names):
    _, out, _ = vit_jax("models", pattern, "--json")
    assert [row["name"] for row in json.loads(out)] == names


def test_models_json(vit_jax):
    _, out, _ = vit_jax("models", "vit_tiny_patch16_384", "--json")
    assert json.loads(out) == [
        {
            "name": "vit_tiny_patch16_384",
            "timm_name": "vit_tiny_patch16_384",
            "params": 5790376,
            "image_size": 384,
            "macs": 4682219520,
        }
    ]


def test_models_without_a_match(refused):
    assert "no model matches 'ViT-B_15'. Did you mean 'ViT-B_16'" in refused("models", "ViT-B_15")


# --- train ---------------------------------------------------------------------------------------


def test_train_is_the_entry_point_of_the_original(vit_jax, monkeypatch):
    given = []
    monkeypatch.setattr(main, "run", given.extend)
    argv = ["--config.batch=3", "--config", "c.py:x", "--workdir", "w", "--config.pp.crop", "8"]
    assert vit_jax("train", *argv)[0] == 0
    assert given == [
        "--config=c.py:x", "--workdir=w", "--config.batch=3", "--config.pp.crop", "8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("nope.py", [], "no file 'nope.py'"),
        ("configs/vit.py:b17,cifar10", [], "'b17'. Did you mean 'b16'"),
        ("configs/vit.py:b16,cifar11", [], "'cifar11'. Did you mean 'cifar10'"),
        ("configs/digits.py", ["--config.btch=3"], 'Did you mean "batch"'),
        ("configs/digits.py", ["--config.batch=many"], "--config.batch=many"),
        ("configs/digits.py", ["--config.dataset=digitz"], "unknown dataset 'digitz'"),
        ("configs/digits.py", ["--wrkdir=x"], "Did you mean: workdir"),
    ],
)
def test_train_refuses(refused, monkeypatch, tmp_path, config, options, message):
    monkeypatch.chdir(ROOT)
    workdir = tmp_path / "run"
    assert message in refused("train", f"--config={config}", f"--workdir={workdir}", *options)


def test_train_refuses_a_workdir_that_cannot_be_written(refused, colours, tmp_path):
    (tmp_path / "file").touch()
    config = f"--config={ROOT / 'configs' / 'digits.py'}"
    workdir = f"--workdir={tmp_path / 'file' / 'run'}"
    error = refused("train", config, workdir, f"--config.dataset={colours}")
    assert str(tmp_path / "file" / "run") in error


# --- predict -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["workdir", "npz", "safetensors"])
def test_predict_names_the_class_whatever_the_source(vit_jax, colours, source, request):
    images = [str(colours / "test" / name / "0.png") for name in reversed(CLASSES)]
    status, out, err = vit_jax("predict", request.getfixturevalue(source), *images, "--json")
    assert (status, err) == (0, "")
    predictions = json.loads(out)
    assert [p["image"] for p in predictions] == images
    for prediction, truth in zip(predictions, reversed(CLASSES), strict=True):
        rows = prediction["predictions"]
        assert [row["rank"] for row in rows] == [1, 2, 3]  # five asked for, three there are
        assert rows[0]["name"] == truth
        assert all(row["name"] == CLASSES[row["class"]] for row in rows)
        assert sum(row["probability"] for row in rows) == pytest.approx(1)


def test_predict_prints_a_table_for_each_image(vit_jax, workdir, tmp_path):
    image = tmp_path / "[bold]x.png"  # no markup
    _paint(image, COLOURS["green"], np.random.default_rng(1))
    status, out, _ = vit_jax("predict", workdir, image, "--top=1", "--format=text")
    title, _, header, _, row = out.splitlines()[:5]
    assert status == 0
    assert title == str(image)
    assert header.split() == ["rank", "class", "probability"]
    assert row.split()[:2] == ["1", "green"]
    assert row.split()[2].endswith("%")


def test_predictions_do_not_depend_on_their_number(workdir, colours):
    loaded = inference.load_model(workdir)
    image = loaded.read_image(colours / "test" / "red" / "0.png")
    one = loaded.probabilities(image[None])
    many = loaded.probabilities(np.broadcast_to(image, (33, *image.shape)))
    assert many.shape == (33, 3)
    np.testing.assert_allclose(many, np.broadcast_to(one, many.shape), atol=1e-6)


def _damaged(folder, good):
    """A file that was cut off, one that is no image, and an empty one."""
    corrupt, text, empty = folder / "corrupt.jpg", folder / "text.jpg", folder / "empty.png"
    Image.open(good).resize((200, 200)).save(corrupt)
    corrupt.write_bytes(corrupt.read_bytes()[:-500])
    text.write_text("no image")
    empty.touch()
    return corrupt, text, empty


def test_predict_refuses_what_names_no_image_before_it_reads_the_model(refused, colours, tmp_path):
    good = colours / "test" / "red" / "0.png"
    assert "no image file 'missing.jpg'" in refused("predict", "no model", good, "missing.jpg")
    (tmp_path / "empty").mkdir()
    assert "no images in the folder" in refused("predict", "no model", good, tmp_path / "empty")
    (tmp_path / "list.txt").write_text("\n")
    assert "names no image" in refused("predict", "no model", tmp_path / "list.txt")


def test_predict_reports_skips_or_refuses_damaged_images(
    refused, vit_jax, workdir, colours, tmp_path
):
    good = colours / "test" / "red" / "0.png"
    damaged = _damaged(tmp_path, good)
    for image in damaged:
        status, out, err = vit_jax("predict", workdir, good, image, "--on-error=raise")
        assert status == 2
        assert str(image) in err
        assert str(image) in refused("predict", workdir, image)  # nothing to report beside it
    status, out, err = vit_jax("predict", workdir, damaged[0], good, *damaged[1:])
    lines = [line.split("\t") for line in out.splitlines()]
    assert status == 0
    assert [line[0] for line in lines] == [*map(str, (damaged[0], good, *damaged[1:]))]
    assert [line[1] for line in lines] == ["", "red", "", ""]
    assert "3 of 4 images could not be read and have no class" in err
    assert all(str(image) in err for image in damaged)
    status, out, err = vit_jax("predict", workdir, damaged[0], good, "--on-error=skip")
    assert (status, len(out.splitlines())) == (0, 1)
    assert "1 of 2 images could not be read and are left out" in err


def test_predict_takes_files_folders_lists_and_standard_input(
    vit_jax, workdir, colours, tmp_path, monkeypatch
):
    test = colours / "test"
    wanted = [str(p) for name in CLASSES for p in sorted((test / name).iterdir())]
    (tmp_path / "list.txt").write_text("\n".join(wanted) + "\n\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(wanted).encode())))
    for given in ([test], [tmp_path / "list.txt"], ["-"], wanted):
        status, out, err = vit_jax("predict", workdir, "--batch", 2, *given)
        lines = [line.split("\t") for line in out.splitlines()]
        assert (status, err) == (0, "")
        assert sorted(line[0] for line in lines) == sorted(wanted)
        right = [path.split("/")[-2] == label for path, label, _ in lines]
        assert sum(right) == len(wanted) - 1  # one lies in the wrong folder
    (tmp_path / "table.csv").write_text("\n".join(["path", *wanted]))
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for path in wanted:
            archive.add(path)
    for given, name in ((tmp_path / "table.csv", wanted[0]), (tmp_path / "shard.tar", "0")):
        status, out, err = vit_jax("predict", workdir, given)
        lines = [line.split("\t") for line in out.splitlines()]
        assert (status, err, len(lines)) == (0, "", len(wanted))
        assert lines[0][0].endswith(name)
        assert len({line[1] for line in lines}) == 3
    status, out, _ = vit_jax(
        "predict", workdir, f"--dataset={colours}", "--columns=Id=number,label,class_3", "--top=3",
        "--format=csv",
    )  # fmt: skip
    header, *lines = [line.split(",") for line in out.splitlines()]
    assert header == ["Id", "label", "class_3"]
    assert [int(line[0]) for line in lines] == [*range(1, len(wanted) + 1)]
    assert len({line[1] for line in lines}) == 3


def test_predict_writes_every_format_alike(vit_jax, workdir, colours, tmp_path):
    images = [str(colours / "test" / name / "0.png") for name in CLASSES]
    _, out, _ = vit_jax("predict", workdir, *images)
    lines = [line.split("\t") for line in out.splitlines()]
    for name in ("x.csv", "x.tsv", "x.jsonl", "x.parquet"):
        path = tmp_path / name
        assert vit_jax("predict", workdir, *images, f"--output={path}")[0::2] == (0, "")
        if name.endswith("parquet"):
            rows = pyarrow.parquet.read_table(path).to_pylist()
        elif name.endswith("jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
        else:
            header = ["path", "class", "probability"] if name.endswith("tsv") else None
            form = {"delimiter": "\t"} if name.endswith("tsv") else {}
            rows = [*csv.DictReader(path.open(), header, **form)]
        assert [[*row] for row in rows] == [["path", "class", "probability"]] * 3
        assert [[row["path"], row["class"]] for row in rows] == [line[:2] for line in lines]
        got = [float(row["probability"]) for row in rows]
        assert got == pytest.approx([float(line[2]) for line in lines], rel=1e-4)
    assert {p.name for p in tmp_path.iterdir()} == {"x.csv", "x.tsv", "x.jsonl", "x.parquet"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output=no/such/x.csv"], "there is no directory 'no/such'"),
        (["--output=x.xls"], "the suffix of 'x.xls' tells no format"),
        (["--format=cvs"], "Did you mean 'csv'"),
        (["--format=parquet"], "Parquet is no text"),
        (["--columns=clas"], "Did you mean 'class'"),
        (["--columns=class_2"], "needs --top 2, not 1"),
        (["--columns=path,path"], "names 'path' twice"),
        (["--batch=0"], "--batch must be at least 1; got 0"),
        (["--on-error=x"], "must be report, skip or raise"),
        (["--dataset=x"], "name the images"),
    ],
)
def test_predict_refuses_options_before_it_reads_the_model(refused, image, options, message):
    assert message in refused("predict", "no model", image, *options)


# --- what a model is read from -------------------------------------------------------------------


@pytest.fixture
def image(colours):
    return colours / "test" / "red" / "0.png"


def test_missing_and_unreadable_models(refused, image, tmp_path):
    (tmp_path / "empty.npz").touch()
    (tmp_path / "text.npz").write_text("no checkpoint")
    assert "no such file" in refused("predict", tmp_path / "no.npz", image)
    assert "holds no checkpoint" in refused("predict", tmp_path, image)
    for name in ("empty.npz", "text.npz"):
        assert name in refused("predict", tmp_path / name, image)
    assert str(image) in refused("predict", image, image)


def test_a_damaged_file(refused, npz, safetensors, image, tmp_path):
    for path in (npz, safetensors):
        damaged = tmp_path / path.name
        damaged.write_bytes(path.read_bytes()[:-1000])
        assert str(damaged) in refused("predict", damaged, image)


def test_the_wrong_model(refused, npz, safetensors, workdir, image):
    error = refused("predict", npz, image, "--model=ViT-B_17")
    assert "unknown model 'ViT-B_17'. Did you mean 'ViT-B_16'" in error
    assert "does not hold a ViT-B_16" in refused("predict", npz, image, "--model=ViT-B_16")
    assert "does not hold a Mixer-B_16" in refused("predict", npz, image, "--model=Mixer-B_16")
    assert "does not hold a ViT-B_16" in refused("predict", safetensors, image, "--model=ViT-B_16")
    assert "does not hold a ViT-B_16" in refused("predict", workdir, image, "--model=ViT-B_16")


def test_parameters_of_no_registered_model(refused, npz, image, tmp_path):
    foreign = tmp_path / "foreign.npz"
    checkpoint.save(foreign, checkpoint.load(npz))  # without the description that we write
    assert "of no registered model" in refused("predict", foreign, image)


def test_a_model_without_a_head(refused, npz, image, tmp_path):
    weights = inference.load_weights(npz)
    del weights.params["head"]
    inference.save_weights(tmp_path / "features.npz", weights, "official")
    assert "has no head" in refused("predict", tmp_path / "features.npz", image)


def test_a_scanned_model_in_bfloat16_predicts_like_the_plain_one(npz, image, tmp_path):
    weights = inference.load_weights(npz)
    # Random ones: of fresh parameters the blocks give next to nothing, and an error in them too.
    shapes = {name: x.shape for name, x in arrays(weights.params).items()}
    drawn = unflatten(random_params(shapes, seed=0))
    weights = dataclasses.replace(weights, variables={**weights.variables, "params": drawn})
    inference.save_weights(tmp_path / "plain.npz", weights, "official")
    plain = inference.load_model(tmp_path / "plain.npz")
    fields = weights.model.config
    config = {**fields, "transformer": {**fields["transformer"], "scan": True}}
    params = {name: x.astype("bfloat16") for name, x in arrays(weights.params).items()}
    other = dataclasses.replace(
        weights,
        model=dataclasses.replace(weights.model, config=config),
        variables={**weights.variables, "params": unflatten(params)},
    )
    inference.save_weights(tmp_path / "scanned.npz", other, "official")
    scanned = inference.load_model(tmp_path / "scanned.npz")
    assert "encoderblock" in scanned.variables["params"]["Transformer"]
    pixels = plain.read_image(image)[None]
    got, wanted = scanned.logits(pixels), plain.logits(pixels)
    error = np.abs(got - wanted).max() / wanted.std()
    assert 1e-5 < error < 0.06  # rounded to bfloat16, and by no more than that
    scanned.variables["params"]["Transformer"]["encoderblock"] = jax.tree.map(
        lambda x: x[..., ::-1], scanned.variables["params"]["Transformer"]["encoderblock"]
    )
    scanned = dataclasses.replace(scanned)  # whose variables are placed anew
    others = scanned.logits(pixels)  # the channels of its block in another order
    assert np.abs(others - wanted).max() / wanted.std() > 0.06
    assert scanned.logits(pixels).dtype == np.float32


def test_class_names_that_an_npz_cannot_hold_are_left_out(npz, tmp_path):
    long = [letter * 30_000 for letter in "abc"]
    weights = inference.load_weights(npz)
    weights = dataclasses.replace(
        weights, model=dataclasses.replace(weights.model, class_names=long)
    )
    for to, suffix, names in (("official", "npz", None), ("timm", "safetensors", long)):
        path = tmp_path / f"x.{suffix}"
        inference.save_weights(path, weights, to)
        assert inference.load_weights(path).model.class_names == names


def _sparse(path, config, num_classes, num_patches):
    """A file of zeros that takes no room on the disk, however large the model."""
    shapes = param_shapes(config, num_classes=num_classes, num_patches=num_patches)
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded)
    os.truncate(path, 8 + len(encoded) + end)
    return path


@pytest.mark.parametrize("name", [name for name in MODEL_CONFIGS if "LiT" not in name])
def test_every_model_is_recognised_by_its_parameters(name, tmp_path):
    config = MODEL_CONFIGS[name]
    with open_source(_sparse(tmp_path / "x", config, 7, 16 * 16)) as source:
        weights = source.facts.model()
    assert (weights.name, weights.class_names) == (name, None)
    # A ResNet shrinks the image before it is cut into patches, sixteen- or thirty-two-fold.
    resnets = {"R+ViT-Ti_16": 32, "R50+ViT-B_16": 16}
    pixels = resnets.get(name, 32 if name.startswith("R") else config.patches["size"][0])
    assert weights.preprocess.size == 16 * pixels


def test_a_pretrained_file_keeps_its_size_its_names_and_its_pre_logits(tmp_path):
    config = MODEL_CONFIGS["ViT-Ti_16"].copy_and_resolve_references()
    config.unlock().representation_size = 50
    with open_source(_sparse(tmp_path / "x", config, 21843, 24**2)) as source:
        weights = source.facts.model()
    assert weights.preprocess.size == 384
    assert weights.config["representation_size"] == 50
    assert weights.class_names is not None
    assert weights.class_names[0] == "organism, being"


# --- eval ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_eval_counts_every_example_once(vit_jax, workdir, colours, batch):
    argv = ("eval", workdir, "--dataset", colours, "--json", "--batch", batch)
    status, out, err = vit_jax(*argv)
    assert status == 0
    test = colours / "test"
    assert err == f"{test}: 9 images of 3 classes, matched by name: blue, green, red\n"
    result = json.loads(out)
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert result == {
        "dataset": str(colours),
        "split": None,
        "read": str(colours / "test"),
        "num_examples": 9,
        "top1": 8 / 9,
    }
    assert last["accuracy_test"] == pytest.approx(8 / 9)


def test_eval_prints_one_line(vit_jax, npz, colours):
    status, out, _ = vit_jax("eval", npz, "--dataset", colours, "--split", "train")
    assert status == 0
    assert out.startswith("top-1 ")
    assert out.endswith(f"% ({colours / 'train'}, 24 examples)\n")


class _Fixed:
    """Logits that rank the classes 0, 1, 2, … for every image."""

    weights = type("", (), {"num_classes": 7})

    def logits(self, images):
        return np.tile(-np.arange(7.0), (len(images), 1))


def test_eval_figures_by_hand():
    from vit_jax.commands.eval import evaluate

    def batch(labels, mask):
        image = np.zeros((len(labels), 2, 2, 3))
        return {"image": image, "label": np.eye(7)[labels], "mask": np.array(mask, np.float32)}

    # The last label would count as right, but is filling.
    batches = [batch([0, 1], [1, 1]), batch([4, 6, 0], [1, 1, 0])]
    assert evaluate(_Fixed(), batches) == {"num_examples": 4, "top1": 1 / 4, "top5": 3 / 4}


def test_eval_refuses_bad_data(refused, workdir, colours, tmp_path):
    (tmp_path / "empty" / "test").mkdir(parents=True)
    (tmp_path / "two" / "test" / "a").mkdir(parents=True)
    (tmp_path / "two" / "test" / "b").mkdir()
    for name in "ab":
        _paint(tmp_path / "two" / "test" / name / "0.png", (0, 0, 0), np.random.default_rng(0))
    assert "digitz" in refused("eval", workdir, "--dataset=digitz")
    assert "no images" in refused("eval", workdir, "--dataset", tmp_path / "empty")
    assert "small" in refused("eval", workdir, "--dataset", colours, "--split=small")
    error = refused("eval", workdir, "--dataset", tmp_path / "two")
    assert "has 2 of 2 classes that" in error
    assert "The model's 3 classes are" in error


def _images(colours) -> list[tuple[str, str]]:
    """Path and class of every test image."""
    return [(str(path), path.parent.name) for path in sorted((colours / "test").glob("*/*"))]


def _in_folders(root, images, names):
    import shutil

    for number, (path, name) in enumerate(images):
        place = root / "test" / names.get(name, name)
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"{number}.png")
    return root


def _in_a_table(root, images, names, mark=","):
    root.mkdir(exist_ok=True)
    rows = [("label", "image"), *((names.get(name, name), path) for path, name in images)]
    file = root / f"{len(list(root.iterdir()))}.csv"
    file.write_text("".join(f"{mark.join(row)}\n" for row in rows))
    return file


def test_eval_gives_one_accuracy_for_the_same_images(vit_jax, refused, workdir, colours, tmp_path):
    """In folders or tables, whatever the order of the classes."""
    images = _images(colours)
    german = {"blue": "azur", "green": "oliv", "red": "braun"}  # Sorted they are another order.
    datasets = [
        _in_folders(tmp_path / "same", images, {}),
        _in_a_table(tmp_path / "tables", images, {}),
        _in_a_table(tmp_path / "tables", images[::-1], {}, mark=";"),
    ]
    for dataset in datasets:
        out = vit_jax("eval", workdir, "--dataset", dataset, "--json")[1]
        assert json.loads(out)["top1"] == 8 / 9, dataset
    for dataset in (
        _in_folders(tmp_path / "german", images, german),
        _in_a_table(tmp_path / "tables", images, german),
    ):
        error = refused("eval", workdir, "--dataset", dataset)
        assert "azur = blue, braun = green, oliv = red" in error
        out = vit_jax("eval", workdir, "--dataset", dataset, "--json", "--by-position")[1]
        assert json.loads(out)["top1"] < 0.5


def test_eval_reads_the_named_table_and_some_of_the_classes(vit_jax, workdir, colours, tmp_path):
    images = _images(colours)
    test = _in_a_table(tmp_path / "t", images, {}).rename(tmp_path / "t" / "test.csv")
    reds = [(path, name) for path, name in images if name == "red"]
    hard = _in_a_table(tmp_path / "t", [*reds, (reds[0][0], "blue")], {})
    status, out, err = vit_jax("eval", workdir, "--dataset", hard)
    assert status == 0
    right = len(reds) - 1  # One of the red images shows blue, and the last label is wrong.
    assert out == f"top-1 {right / (len(reds) + 1):.2%} ({hard}, {len(reds) + 1} examples)\n"
    assert err == f"{hard}: {len(reds) + 1} images of 2 classes, matched by name: blue, red\n"
    train = _in_a_table(tmp_path / "t", images[::-1], {})
    out = vit_jax("eval", workdir, "--dataset", train, "--split", "test", "--json")[1]
    assert json.loads(out)["read"] == str(test)


def test_eval_skips_damaged_images_and_counts_them(vit_jax, refused, workdir, colours, tmp_path):
    images = _images(colours)
    data = _in_folders(tmp_path / "data", images, {})
    (data / "test" / "blue" / "a.png").write_bytes(b"")
    (data / "test" / "red" / "b.png").write_bytes(b"\x89PNG")
    assert "a.png: it is an empty file" in refused("eval", workdir, "--dataset", data)
    argv = ("eval", workdir, "--dataset", data, "--on-error", "skip")
    status, out, err = vit_jax(*argv)
    assert status == 0
    assert out.startswith(f"top-1 {8 / 9:.2%} (")
    assert out.endswith("9 examples, 2 skipped)\n")
    assert "2 damaged images were skipped: " in err
    assert json.loads(vit_jax(*argv, "--json")[1])["num_skipped"] == 2


def test_eval_names_a_corrupt_image(refused, workdir, colours, tmp_path):
    import shutil

    shutil.copytree(colours, tmp_path / "data")
    corrupt = tmp_path / "data" / "test" / "red" / "0.png"
    corrupt.write_bytes(corrupt.read_bytes()[:200])
    assert str(corrupt) in refused("eval", workdir, "--dataset", tmp_path / "data")


# --- convert -------------------------------------------------------------------------------------


def test_convert_there_and_back_is_exact(vit_jax, npz, tmp_path):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.npz"
    status, out, _ = vit_jax("convert", npz, there, "--to=timm")
    assert status == 0
    num_params = inference.load_weights(npz).num_params
    read, note, written = out.splitlines()
    assert read == "read      npz, layout released"
    assert note.startswith("note      timm antialiases")  # which timm cannot be told
    assert written == f"ViT-digits: {num_params:,} parameters written to {there}"
    assert vit_jax("convert", there, back, "--to=official")[0] == 0
    first, last = inference.load_weights(npz), inference.load_weights(back)
    assert first.model == last.model
    assert first.model.class_names == last.model.class_names == CLASSES
    ours, theirs = arrays(first.params), arrays(last.params)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_convert_refuses(refused, npz, tmp_path):
    assert "writes .npz files" in refused(
        "convert", npz, tmp_path / "x.safetensors", "--to=official"
    )
    assert "same file" in refused("convert", npz, npz, "--to=official")
    assert "cannot write" in refused("convert", npz, tmp_path / "no" / "x.npz", "--to=official")
    assert "no such file" in refused(
        "convert", tmp_path / "no.npz", tmp_path / "x.npz", "--to=official"
    )
    assert list(tmp_path.iterdir()) == []


def test_convert_leaves_the_old_file_when_writing_fails(refused, npz, tmp_path, monkeypatch):
    target = tmp_path / "x.npz"
    target.write_text("old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vit_jax.checkpoint.files.npz.pieces", full)
    assert "No space left" in refused("convert", npz, target, "--to=official")
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    ("to", "name"),
    [("big_vision", "x.npz"), ("orbax", "x"), ("timm", "x.pth"), ("hf", "x")],
)
def test_convert_says_what_it_did(vit_jax, workdir, tmp_path, to, name):
    argv = ("--num-classes=5", "--dtype=bfloat16", "--image-size=32", "--drop-pre-logits")
    status, out, err = vit_jax("convert", workdir, tmp_path / name, "--to", to, *argv)
    assert (status, err) == (0, "")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert lines[0] == ["read", "orbax, layout linen"]
    steps = [text for word, text in lines if word == "step"]
    assert "head replaced by zeros for 5 classes" in steps
    assert "cast to bfloat16" in steps
    assert ["dropped", "head/bias, head/kernel"] in lines
    skipped = next(text for word, text in lines if word == "skipped")
    assert "rest/opt_state/" in skipped
    found = json.loads(vit_jax("inspect", tmp_path / name, "--json")[1])
    assert (found["num_classes"], found["head_is_zero"]) == (5, True)
    assert list(found["dtypes"]) == ["bfloat16"]


def test_convert_reports_what_is_not_finite(vit_jax, npz, tmp_path):
    params = checkpoint.load(npz)
    params["head"]["bias"][:2] = np.nan
    checkpoint.save(tmp_path / "x.npz", params)
    status, out, _ = vit_jax("convert", tmp_path / "x.npz", tmp_path / "y", "--to=orbax")
    assert status == 0
    assert "warning   head/bias holds 2 numbers that are NaN or infinite\n" in out


@pytest.mark.parametrize("target", ["orbax", "hf", "big_vision"])
def test_predict_reads_what_convert_writes(vit_jax, npz, image, tmp_path, target):
    path = tmp_path / ("x.npz" if target == "big_vision" else "x")
    assert vit_jax("convert", npz, path, "--to", target)[0] == 0
    want, got = (
        json.loads(vit_jax("predict", p, image, "--json")[1])[0]["predictions"] for p in (npz, path)
    )
    assert [row["name"] for row in got] == [row["name"] for row in want]
    np.testing.assert_allclose(
        [row["probability"] for row in got], [row["probability"] for row in want], rtol=1e-5
    )


# --- inspect -------------------------------------------------------------------------------------


def test_inspect_says_what_a_run_is(vit_jax, workdir):
    status, out, err = vit_jax("inspect", workdir, "--tensors")
    assert (status, err) == (0, "")
    lines = {line[:12].split()[0]: line[12:] for line in out.splitlines()[:10] if line.strip()}
    assert lines["format"] == "orbax, layout linen"
    num_params = inference.load_weights(workdir).num_params
    assert lines["parameters"].startswith(f"{num_params:,} in ")
    assert lines["head"] == "3 classes"
    assert lines["classes"] == ", ".join(CLASSES)
    assert re.search(r"^ *head/kernel +\d+ × 3 +float32 *$", out, re.MULTILINE)
    fields = json.loads(vit_jax("inspect", workdir, "--json")[1])
    assert (fields["num_params"], fields["models"]) == (num_params, [])
    assert "tensors" not in fields
    assert fields["preprocess"]["size"] == inference.load_weights(workdir).model.preprocess.size


def test_inspect_tells_models_and_zero_heads(vit_jax, tmp_path):
    for name, line in (
        ("ViT-H_14", "ViT-H_14"),
        ("R50+ViT-B_16", "R50+ViT-B_16"),
        ("ViT-S_16-gap-norep", "ViT-S_16-gap-norep"),
    ):
        path = _sparse(tmp_path / "x", MODEL_CONFIGS[name], 1000, 14 * 14)
        out = vit_jax("inspect", path)[1]
        assert f"\nmodel       {line}\n" in out
        assert "\nhead        1,000 classes, all zero: not trained\n" in out
        assert ("\nopen        without a class token" in out) == ("gap" in name)


def test_inspect_refuses(refused, tmp_path):
    assert "no such file" in refused("inspect", tmp_path / "x")
    assert "holds no checkpoint" in refused("inspect", tmp_path)


def test_commands_are_the_modules_of_their_package():
    modules = {p.stem for p in pathlib.Path(commands.__file__).parent.glob("[a-z]*.py")}
    assert set(cli.COMMANDS) == modules - {"common", "watch"}  # the last is a part of eval
