"""Files as users have them: wrapped, in parts, oblong, averaged, with adapters, or with NaN."""

import json

import numpy as np
import pytest
from zero_files import state, write

from vit_jax import checkpoint, cli
from vit_jax.checkpoint import hf_dir, identify, load
from vit_jax.errors import UserError
from vit_jax.families.registry import resolve
from vit_jax.inference import load_model

NAME = "ViT-Ti_16"


def timm_state(name: str = NAME) -> dict[str, np.ndarray]:
    return dict(state(name, "timm"))


def prefixed(prefix: str, tensors=None) -> dict[str, np.ndarray]:
    return {prefix + name: x for name, x in (tensors or timm_state()).items()}


def random_state(name: str = NAME) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {n: (rng.normal(size=x.shape) / 20).astype("f4") for n, x in timm_state(name).items()}


def with_positions(count: int) -> dict[str, np.ndarray]:
    tensors = timm_state()
    return tensors | {"pos_embed": np.zeros((1, 1 + count, 192), np.float16)}


# --- wrappers -------------------------------------------------------------------------------------

WRAPPERS = [
    "backbone.",
    "state_dict.module._orig_mod.",
    "state_dict.model.backbone.",
    "my.own.classifier.of.everything.",
    "encoder.model.module.",
]


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_wrappers_of_any_name_are_left_out_and_said(prefix, tmp_path):
    others = {"criterion.weight": np.ones(3), "projector.0.weight": np.ones((2, 2))}
    path = write(tmp_path / "x.safetensors", prefixed(prefix) | others)
    found = identify(path, NAME)
    assert found.models == (NAME,)
    assert f"names are read without {prefix!r}" in found.notes
    assert set(found.skipped) == set(others)


def test_a_head_beside_its_backbone_is_read(tmp_path):
    tensors = timm_state()
    outside = {n: tensors.pop(n) for n in ("head.weight", "head.bias")}
    path = write(tmp_path / "x.safetensors", prefixed("backbone.", tensors) | outside)
    assert identify(path, NAME).num_classes == 10


def test_two_models_beside_each_other_must_be_told_apart(tmp_path):
    path = write(tmp_path / "x.safetensors", prefixed("encoder_q.") | prefixed("encoder_k."))
    with pytest.raises(UserError, match="--part encoder_k or --part encoder_q"):
        identify(path, NAME)
    found = identify(path, NAME, part="encoder_k")
    assert found.models == (NAME,)
    assert "the weights 'encoder_k' are read" in found.notes


def test_a_moving_average_that_is_read_is_recorded(tmp_path):
    path = write(tmp_path / "x.safetensors", prefixed("model.") | prefixed("model_ema."))
    out = tmp_path / "out.npz"
    checkpoint.convert(path, out, to="official", model=NAME, part="model_ema")
    (record,) = identify(out).history
    assert "the weights 'model_ema' are read, not 'model'" in record["notes"]


def test_an_unknown_file_shows_its_own_names(tmp_path):
    path = write(tmp_path / "x.safetensors", {f"convs.{i}.kern": np.ones(3) for i in range(9)})
    assert "they begin with 'convs.0.kern', 'convs.1.kern'" in identify(path).undecided


@pytest.mark.parametrize("name", ["lora_A.default.weight", "lora_B.weight", "base_layer.weight"])
def test_adapters_must_be_merged_first(name, tmp_path):
    tensors = prefixed("base_model.model.") | {
        f"base_model.model.blocks.0.attn.qkv.{name}": np.ones(3)
    }
    with pytest.raises(UserError, match=r"not merged.*merge_and_unload"):
        identify(write(tmp_path / "x.safetensors", tensors))


# --- parts ----------------------------------------------------------------------------------------


@pytest.fixture
def in_parts(tmp_path):
    """A folder of transformers whose weights lie in two files."""
    checkpoint.convert(
        write(tmp_path / "x.safetensors", random_state()), tmp_path / "hf", to="hf", model=NAME
    )
    whole = tmp_path / "hf" / hf_dir.WEIGHTS
    tensors = dict(checkpoint.conversion.open_source(whole).archive)
    whole.unlink()
    names, where = sorted(tensors), {}
    for part, mine in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{part}-of-00002.safetensors"
        write(tmp_path / "hf" / file, {n: tensors[n] for n in mine})
        where |= dict.fromkeys(mine, file)
    index = tmp_path / "hf" / f"{hf_dir.WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return tmp_path / "hf"


def test_weights_in_parts_are_read_by_their_index(in_parts, tmp_path):
    index = in_parts / f"{hf_dir.WEIGHTS}.index.json"
    for path in (in_parts, index):
        assert identify(path).num_classes == 10
        checkpoint.convert(path, tmp_path / "y.npz", to="official")
        checkpoint.convert(tmp_path / "y.npz", tmp_path / "z.safetensors", to="timm")
        assert_same_tensors(tmp_path / "z.safetensors", random_state())
    part = in_parts / "model-00001-of-00002.safetensors"
    with pytest.raises(UserError, match=r"is part 1 of 2 of the weights.*index\.json"):
        identify(part)
    part.unlink()
    with pytest.raises(UserError, match=f"not beside it: {part.name}"):
        identify(in_parts)


def assert_same_tensors(path, wanted) -> None:
    with checkpoint.conversion.open_source(path) as source:
        for name, x in wanted.items():
            np.testing.assert_array_equal(source.archive[name], x, err_msg=name)


# --- what lies beside -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling", "name"),
    [
        ({"global_pool": "token"}, NAME),
        ({"global_pool": "avg", "fc_norm": False}, "vit_tiny_patch16_avg_prenorm_224"),
        ({"global_pool": "avg"}, "vit_tiny_patch16_avg_224"),
    ],
)
def test_how_timm_pools_decides(pooling, name, tmp_path):
    write(tmp_path / "model.safetensors", timm_state(name))
    args = {"img_size": [224, 224], "in_chans": 3, **pooling}
    fields = {
        "architecture": "vit_tiny_patch16_224",
        "global_pool": pooling["global_pool"],
        "model_args": args,
        "pretrained_cfg": {"tag": "augreg_in21k_ft_in1k"},
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert identify(path).models == (name,)


def test_without_anything_beside_the_ways_of_pooling_are_listed(tmp_path, capsys):
    path = write(tmp_path / "x.safetensors", timm_state())
    assert cli.main(["inspect", str(path)]) == 2
    said = capsys.readouterr().err
    for name in (NAME, "deit_tiny_patch16_224", "vit_tiny_patch16_avg_prenorm_224"):
        assert f"--model {name}:" in said


# --- oblong images --------------------------------------------------------------------------------


def test_a_number_of_patches_that_is_no_squares(tmp_path):
    path = write(tmp_path / "x.safetensors", with_positions(200))
    assert "--image-size HEIGHTxWIDTH" in identify(path).undecided
    assert set(identify(path, image_size=(160, 320)).models) >= {NAME}
    found = identify(path, NAME)
    assert (found.grid, found.image_size, found.size_is_known) == (None, None, False)
    checkpoint.convert(path, tmp_path / "y.npz", to="official", model=NAME)
    recorded = json.loads(identify(tmp_path / "y.npz").metadata["vit_jax"])
    assert recorded["image_size"] is None
    assert "size" not in recorded["preprocess"]


def test_an_assumed_square_is_said_and_not_recorded(tmp_path):
    path = write(tmp_path / "x.safetensors", with_positions(256))
    for to, out in (("official", "y.npz"), ("timm", "y.safetensors")):
        done = checkpoint.convert(path, tmp_path / out, to=to, model=NAME)
        assert any("16 × 16 is assumed" in note for note in done.notes)
        again = identify(tmp_path / out)
        assert (again.grid, again.size_is_known) == ((16, 16), False)
    done = checkpoint.convert(
        path, tmp_path / "y.npz", to="official", model=NAME, image_size=(128, 512)
    )
    assert done.steps == ()
    with pytest.raises(UserError, match="for images of 256×256 pixels, not of 384×384"):
        load_model(path, NAME, image_size=(384, 384))
    again = identify(tmp_path / "y.npz")
    assert (again.grid, again.size_is_known, again.notes) == ((8, 32), True, ())


# --- another function -----------------------------------------------------------------------------


def transformers_folder(folder, **entries):
    """A folder of transformers whose config.json says another function."""
    path = write(folder / "x.safetensors", random_state())
    checkpoint.convert(path, folder / "hf", to="hf", model=NAME)
    file = folder / "hf" / hf_dir.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    weights = folder / "hf" / hf_dir.WEIGHTS
    with checkpoint.conversion.open_source(weights) as source:
        tensors = dict(source.archive)
    write(weights, tensors)  # as somebody else wrote it
    return folder / "hf"


@pytest.mark.parametrize(
    "entries", [{"hidden_act": "relu"}, {"hidden_act": "gelu", "layer_norm_eps": 1e-5}]
)
def test_another_function_must_be_allowed_and_stays_known(entries, tmp_path, capsys):
    folder, first, second = (
        transformers_folder(tmp_path, **entries),
        tmp_path / "a.npz",
        tmp_path / "b",
    )
    with pytest.raises(UserError, match="--allow other-function"):
        load(folder)
    assert cli.main(["inspect", str(folder)]) == 2
    assert cli.main(["convert", str(folder), str(first), "--to", "official"]) == 2
    assert not first.exists()
    allowed = ["--allow", "other-function"]
    assert cli.main(["convert", str(folder), str(first), "--to", "official", *allowed]) == 0
    assert cli.main(["convert", str(first), str(second), "--to", "hf"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(second)]) == 0
    for name, value in entries.items():
        assert f"note: its {name} is {value!r}" in capsys.readouterr().out
        break


def test_what_published_weights_are_shipped_with_is_a_note(tmp_path):
    folder = transformers_folder(tmp_path, hidden_act="gelu", layer_norm_eps=1e-12)
    done = checkpoint.convert(folder, tmp_path / "x.npz", to="official")
    assert "its hidden_act is 'gelu', ours is 'gelu_pytorch_tanh'" in done.notes


def test_a_hybrids_norms_cannot_be_told_to_timm(tmp_path):
    name = "R+ViT-Ti_16"
    path = write(tmp_path / "x.npz", state(name, "official"))
    with pytest.raises(UserError, match="timm computes with another GroupNorm eps"):
        checkpoint.convert(path, tmp_path / "y.safetensors", to="timm", model=name)


# --- numbers --------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    tensors = random_state()
    tensors["head.weight"][3, 5] = np.nan
    tensors["blocks.2.mlp.fc1.bias"][:2] = np.inf
    return write(tmp_path / "x.safetensors", tensors)


def test_numbers_that_are_not_finite_are_counted_and_named(damaged, capsys):
    assert cli.main(["inspect", str(damaged), "--model", NAME, "--json"]) == 2
    shown, said = capsys.readouterr()
    assert json.loads(shown)["not_finite"] == {"head.weight": 1, "blocks.2.mlp.fc1.bias": 2}
    assert "2 tensors hold numbers that are NaN or infinite" in said
    assert cli.main(["inspect", str(damaged), "--model", NAME, "--allow", "not-finite"]) == 0
    with pytest.raises(UserError, match=r"head/kernel \(1\).*--allow not-finite"):
        load(damaged, NAME)
    assert np.isnan(load(damaged, NAME, allow=["not-finite"])["head"]["kernel"]).any()
    with pytest.raises(UserError, match="nothing to allow is called"):
        load(damaged, NAME, allow=["nan"])


def test_json_has_no_nan(capsys):
    from vit_jax.commands import common

    common.print_json({"a": [float("nan"), 1.5], "b": float("inf")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": None}


def test_a_head_of_zeros_is_warned_of(tmp_path, capsys):
    from vit_jax.commands import common

    path = write(tmp_path / "x.safetensors", timm_state())
    common.warn_of_zero_head(load_model(path, NAME))
    assert "every number of the head is zero" in capsys.readouterr().err
    random = write(tmp_path / "y.safetensors", random_state())
    common.warn_of_zero_head(load_model(random, NAME))
    assert capsys.readouterr().err == ""


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "model", "classes"),
    [
        ("vit_base_patch16_224.augreg_in21k", "ViT-B_16", 21_843),
        ("timm/vit_base_patch16_224.augreg_in21k", "ViT-B_16", 21_843),
        ("vit_b_16", "ViT-B_16", 1000),
        ("ViT-B/16", "ViT-B_16", 1000),
        ("google/vit-base-patch16-224", "ViT-B_16", 1000),
        ("google/vit-base-patch16-224-in21k", "ViT-B_16", 21_843),
        ("facebook/deit-base-patch16-224", "deit_base_patch16_224", 1000),
        ("vit_base_patch16_224.mae", "deit_base_patch16_224", 0),
        ("vit_base_patch16_224.dino", "dino_vitb16", 0),
        ("timm/vit_small_patch8_224.dino", "dino_vits8", 0),
        ("facebook/dino-vits16", "dino_vits16", 0),
        ("vit_huge_patch14_gap_224.in22k_ijepa", "vit_huge_patch14_gap_224", 0),
        ("vit_so400m_patch14_reg1_tipsv2.webli", "vit_so400m_patch14_reg1_tipsv2", 0),
    ],
)
def test_other_names_of_one_thing(asked, model, classes):
    spec = resolve(asked)
    assert (spec.config["model_name"], spec.num_classes) == (model, classes)


@pytest.mark.parametrize("asked", ["vit_tiny_patch16_224.dino", "someone/vit-base-patch16-224"])
def test_names_that_mean_something_else_are_unknown(asked):
    with pytest.raises(UserError, match=r"no weights|unknown model"):
        resolve(asked)
