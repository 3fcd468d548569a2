"""Whole runs: the original's own test, resume, devices, accumulation, evaluation, bad input."""

import json
import pathlib

import jax
import numpy as np
import pytest
import tiny_run
import tracker_fakes
from ml_collections import ConfigDict
from PIL import Image
from recipes import flatten

from vit_jax import inference_time, test_utils, train
from vit_jax.configs import common, models
from vit_jax.configs import inference_time as inference_time_config
from vit_jax.errors import UserError
from vit_jax.train import metrics, run_info
from vit_jax.train.checkpointing import load_params


def write_images(folder: pathlib.Path, train: int, test: int, classes=("cat", "dog")) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (20, 24, 3)) + 100 * label
                path = folder / split / name / f"{i}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, train=11, test=5)
    return folder


def small_config(images: pathlib.Path, **changes) -> ConfigDict:
    """Six steps with dropout and augmentation, so that every source of chance is at work."""
    config = common.get_config()
    config.model = models.get_testing_config()
    config.dataset = str(images)
    config.pretrained_dir = None
    config.pp.crop = 16
    config.batch, config.batch_eval, config.accum_steps = 8, 4, 1
    config.total_steps, config.warmup_steps = 6, 1
    config.eval_every, config.progress_every, config.checkpoint_every = 3, 1, 3
    config.update(changes)
    return config


def run(config, workdir) -> dict[str, np.ndarray]:
    return flatten(jax.device_get(train.train_and_evaluate(config, workdir)))


def test_a_run_as_the_originals_test_has_it(tmp_path):
    """Batch larger than the dataset, no splits named, one step, weights from a file."""
    config = common.get_config()
    config.model = models.get_testing_config()
    config.batch, config.accum_steps, config.batch_eval, config.total_steps = 64, 2, 8, 1
    config.warmup_steps = 0
    config.dataset = str(tmp_path / "dataset")
    config.pp = ConfigDict({"crop": 32})
    write_images(tmp_path / "dataset", train=8, test=8, classes=("test1", "test2"))
    config.pretrained_dir = str(tmp_path)
    test_utils.create_checkpoint(config.model, f"{tmp_path}/testing.npz")

    train.train_and_evaluate(config, tmp_path)

    assert (tmp_path / "checkpoint_1").exists()
    (line,) = [line for line in metrics.read(tmp_path) if "accuracy_test" in line]
    assert line["examples_test"] == 16
    assert list(tmp_path.glob("events.out.tfevents.*"))
    info = run_info.load(tmp_path)
    assert info.class_names == ["test1", "test2"]
    assert info.preprocess.size == 32
    assert load_params(tmp_path)["head"]["kernel"].shape == (10, 2)


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return run(small_config(images), workdir), workdir


def test_a_resumed_run_is_the_uninterrupted_run(images, uninterrupted, tmp_path, monkeypatch):
    """And trackers that hang, fail or are missing change nothing."""
    expected, reference = uninterrupted

    class Killed(BaseException):
        pass

    def kill_at(step, monkeypatch):
        write = metrics.MetricWriter.write

        def dying(self, at, scalars):
            write(self, at, scalars)
            if at == step:
                raise Killed

        monkeypatch.setattr(metrics.MetricWriter, "write", dying)

    with pytest.MonkeyPatch.context() as patch:
        kill_at(5, patch)  # after the checkpoint of step 3, with two more lines written
        with pytest.raises(Killed):
            run(small_config(images), tmp_path)
    assert [line["step"] for line in metrics.read(tmp_path)][-1] == 5

    healthy = tracker_fakes.Healthy()
    broken = {"csv": tracker_fakes.Hangs(), "math": tracker_fakes.Exits(), "none_such": healthy}
    tracker_fakes.install(monkeypatch, json=healthy, **broken)
    got = run(small_config(images, trackers=("json", *broken)), tmp_path)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert tiny_run.lines(tmp_path) == tiny_run.lines(reference)
    lines = metrics.read(tmp_path)
    (resumed,) = (start["step"] for start in run_info.load(tmp_path).starts[1:])
    reported = [{"step": step, **scalars} for step, scalars in healthy.calls[1:-1]]
    assert reported == [line for line in lines if line["step"] > resumed]
    assert healthy.calls[-1] == ("close", "finished")


def test_a_finished_run_is_not_trained_again_and_says_so(images, uninterrupted, capsys):
    expected, workdir = uninterrupted
    before = (workdir / "metrics.jsonl").read_bytes()
    got = run(small_config(images), workdir)
    np.testing.assert_array_equal(got["head/kernel"], expected["head/kernel"])
    assert (workdir / "metrics.jsonl").read_bytes() == before
    out = capsys.readouterr().out
    assert "this run is finished: all 6 steps are done" in out
    assert f"vit-jax eval {workdir}" in out
    assert "compiling" not in out


@pytest.mark.parametrize("changes", [{"accum_steps": 2}, {"data": {"num_workers": 1}}], ids=str)
def test_accumulation_and_workers_change_nothing(images, uninterrupted, tmp_path, changes):
    # Dropout is drawn for each part of a batch: without it, the parts add up to the whole.
    plain = small_config(images)
    plain.model.transformer.dropout_rate = 0.0
    other = small_config(images, **changes)
    other.model.transformer.dropout_rate = 0.0
    expected, got = run(plain, tmp_path / "plain"), run(other, tmp_path / "other")
    for name, value in expected.items():
        scale = 1.0 if name.endswith("key/bias") else np.abs(value).max()
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


def test_one_device_and_four_make_the_same_run(images, tmp_path, monkeypatch):
    from vit_jax.devices import sharding
    from vit_jax.train import loop

    config = small_config(images)
    config.model.transformer.dropout_rate = 0.0
    four = run(config, tmp_path / "four")
    one_device = jax.make_mesh(
        (1, 1, 1),
        sharding.AXES,
        axis_types=(sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )
    monkeypatch.setattr(loop, "make_mesh", lambda sizes: one_device)
    one = run(config, tmp_path / "one")
    for name, value in four.items():
        scale = 1.0 if name.endswith("key/bias") else np.abs(value).max()
        np.testing.assert_allclose(one[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)
    a, b = metrics.read(tmp_path / "one"), metrics.read(tmp_path / "four")
    np.testing.assert_allclose(
        [line["train_loss"] for line in a if "train_loss" in line],
        [line["train_loss"] for line in b if "train_loss" in line],
        rtol=1e-5,
    )


def test_evaluation_counts_every_example_once(uninterrupted):
    _, workdir = uninterrupted
    evaluations = [line for line in metrics.read(workdir) if "accuracy_test" in line]
    assert [line["step"] for line in evaluations] == [3, 6]
    for line in evaluations:  # ten examples in batches of four
        assert line["examples_test"] == 10
        assert line["accuracy_test"] * 10 == pytest.approx(round(line["accuracy_test"] * 10))


def test_bfloat16_adamw_and_scan_train(images, tmp_path):
    config = small_config(images, dtype="bfloat16", optim="adamw", weight_decay=0.1, base_lr=0.01)
    config.model.transformer = dict(config.model.transformer) | {"scan": True, "num_layers": 2}
    params = run(config, tmp_path)
    assert params["Transformer/encoderblock/LayerNorm_0/scale"].shape == (2, 10)
    assert all(value.dtype == np.float32 for value in params.values())
    losses = [line["train_loss"] for line in metrics.read(tmp_path) if "train_loss" in line]
    assert np.isfinite(losses).all()
    # The next commands see the official tree.
    from vit_jax.inference import load_weights

    assert "encoderblock_1" in load_weights(tmp_path).params["Transformer"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch": 6},
            "must be a positive multiple of the number of devices that split it, 4",
        ),
        ({"batch": 8, "accum_steps": 4}, "4 times accum_steps=4"),
        ({"batch_eval": 3}, "batch_eval=3"),
        (
            {"total_steps": 0},
            "config.total_steps must be an integer of at least 1 or None or a text such as",
        ),
        ({"keep_best": "accuracy"}, "keep_best='accuracy'"),
        ({"ema": {"decay": 1.0}}, "config.ema.decay must be in [0, 1), got 1.0"),
        (
            {"warmup_steps": -1},
            "config.warmup_steps must be an integer of at least 0 or a text such as",
        ),
        ({"decay_type": "sine"}, "decay_type='sine'"),
        ({"optim": "adamx"}, "Did you mean 'adamw'"),
        ({"sam": {"rho": 0.1, "rho_min": 0.2}}, "expected rho_min <= rho"),
        ({"optim_dtype": "int8"}, "optim_dtype='int8'"),
        ({"dtype": "float8"}, "dtype='float8'"),
        ({"pretrained_dir": "/nowhere"}, "/nowhere/testing.npz"),
    ],
    ids=str,
)
def test_bad_settings(images, tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(small_config(images, **changes), tmp_path / "run")
    assert message in str(error.value)
    assert not list(tmp_path.glob("run/checkpoint_*"))


def test_another_model_does_not_continue_a_run(images, uninterrupted):
    _, workdir = uninterrupted
    config = small_config(images)
    config.model.hidden_size = 12
    with pytest.raises(UserError, match=r"model\.hidden_size was 10, is 12"):
        train.train_and_evaluate(config, workdir)
    with pytest.raises(UserError, match=r"expected float32\[12\]"):
        train.train_and_evaluate(config, workdir, allow_other_config=True)


def test_a_checkpoint_file_of_the_original_is_named(images, tmp_path):
    (tmp_path / "checkpoint_7").write_bytes(b"msgpack")
    with pytest.raises(UserError, match="checkpoint_7 is a checkpoint file of the original"):
        train.train_and_evaluate(small_config(images), tmp_path)


def test_a_workdir_that_cannot_be_written(images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --workdir"):
        train.train_and_evaluate(small_config(images), tmp_path / "file" / "run")


def test_unknown_config_fields_are_named(images):
    config = ConfigDict(small_config(images).to_dict())
    config.warmup_step = 3
    with pytest.raises(UserError, match="Did you mean 'warmup_steps'"):
        common.with_defaults(config)


def test_inference_time_measures_the_steps_it_is_told(tmp_path):
    config = inference_time_config.get_config()
    config.model_name, config.batch, config.num_classes, config.image_size = "testing", 4, 3, 32
    config.initial_steps, config.steps = 1, 3
    figures = inference_time.inference_time(config, tmp_path)
    low, mean, high = (figures[f"imgs_sec_core_{k}"] for k in ("min", "mean", "max"))
    assert 0 < low <= mean <= high
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 0
    config.steps = 0
    with pytest.raises(UserError, match=r"config\.steps must be an integer of at least 1, got 0"):
        inference_time.inference_time(config, tmp_path)


def test_the_moving_average_is_returned_saved_and_resumed(images, tmp_path, monkeypatch):
    config = small_config(images, ema={"decay": 0.9, "warmup": False})
    plain, averaged = run(small_config(images), tmp_path / "plain"), run(config, tmp_path / "ema")
    assert np.abs(averaged["head/kernel"] - plain["head/kernel"]).max() > 0
    stored = flatten(load_params(tmp_path / "ema"))
    for name, value in averaged.items():
        np.testing.assert_array_equal(stored[name], value, err_msg=name)

    class Killed(BaseException):
        pass

    def die(self, step, **figures):
        if step == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("vit_jax.train.log.RunLog.train", die)
        with pytest.raises(Killed):
            run(config, tmp_path / "again")
    resumed = run(config, tmp_path / "again")
    for name, value in averaged.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
