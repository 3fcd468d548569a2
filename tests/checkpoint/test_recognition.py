"""Which model a file is taken for: the right one, or an error that lists all that fit.

Every family's smallest registered model in every layout that it has; the tensors are zeros in half
precision, since only names, shapes and what is recorded decide.
"""

import json

import numpy as np
import pytest
from zero_files import state, write

from vit_jax import cli
from vit_jax.checkpoint import identify, load, recorded
from vit_jax.checkpoint.files.npz import Npz
from vit_jax.errors import UserError
from vit_jax.families.registry import comparable, families, family_of, get, resolve
from vit_jax.families.sizes import recorded as sizes

CASES = [(family, layout) for family, known in families().items() for layout in known.layouts]


def smallest(family: str) -> str:
    known = families()[family].architectures
    own = [n for n in known if not n.startswith("testing") and known[n].alias_of is None]
    return min(own, key=lambda name: sizes()[name].params)


def our_metadata(name: str) -> dict[str, str]:
    spec = resolve(name)
    fields = recorded.described(name, spec.config.to_dict(), spec.preprocess, None, None)
    return {recorded.OURS: json.dumps(fields)}


def suffix_of(layout: str) -> str:
    return ".npz" if layout in ("official", "big_vision") else ".safetensors"


# transformers and the official code have one LeViT: both of ours are written as the same tensors.
READ_AS = {("levit_conv", "hf"): "levit", ("levit_conv", "torch"): "levit"}


def assert_right_or_undecided(path, name: str, layout: str, capsys) -> None:
    """Never another model: where several fit, the right one is listed, and the command says so."""
    found, wanted = identify(path), resolve(name).config.to_dict()
    read_as = READ_AS.get((family_of(wanted), layout))
    if read_as is not None:
        assert found.config is not None
        assert get(found.config) is families()[read_as]
        assert get(found.config).computes == get(wanted).computes
        assert state(found.name, layout).keys() == state(name, layout).keys()
        return
    if found.config is not None:
        assert get(found.config) is get(wanted)
        assert comparable(found.config) == comparable(wanted)
        assert name in found.models
        return
    assert name in found.models
    assert len(found.candidates) > 1
    assert len({c.numerics for c in found.candidates}) > 1
    with pytest.raises(UserError, match="fit several models") as error:
        load(path)
    assert all(f"--model {c.name}: " in str(error.value) for c in found.candidates)
    assert cli.main(["convert", str(path), str(path.with_name("out.npz")), "--to", "official"]) == 2
    assert "fit several models" in capsys.readouterr().err
    assert not path.with_name("out.npz").exists()


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_tensors_alone(family, layout, tmp_path, capsys):
    name = smallest(family)
    path = write(tmp_path / f"x{suffix_of(layout)}", state(name, layout))
    assert_right_or_undecided(path, name, layout, capsys)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_our_metadata_decides(family, layout, tmp_path):
    name = smallest(family)
    path = write(tmp_path / f"x{suffix_of(layout)}", state(name, layout), our_metadata(name))
    found = identify(path)
    assert get(found.config) is families()[family]
    assert comparable(found.config) == comparable(resolve(name).config.to_dict())
    assert found.notes == ()


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_metadata_of_another_model_is_refused(family, layout, tmp_path):
    name, other = smallest(family), smallest("mixer" if family != "mixer" else "vit")
    path = write(tmp_path / f"x{suffix_of(layout)}", state(name, layout), our_metadata(other))
    with pytest.raises(UserError, match=f"says that it holds {other}, but its tensors do not fit"):
        identify(path)
    found = identify(path, name)  # named, it is read all the same
    assert get(found.config) is families()[family]
    assert "its metadata says" in " ".join(found.notes)


@pytest.mark.parametrize("damage", ["{", "[]", '{"config": {"family": "unheard of"}}'])
def test_damaged_metadata_is_said(damage, tmp_path):
    name = smallest("swin")
    path = write(tmp_path / "x.safetensors", state(name, "timm"), {recorded.OURS: damage})
    found = identify(path)
    assert found.models == (name,)
    assert "is damaged and not used" in " ".join(found.notes)


TIMM = [family for family, known in families().items() if "timm" in known.layouts]


# timm's name and tag of weights whose numerics are known to be the original's.
TAGGED = ("vit_tiny_patch16_224", "augreg_in21k_ft_in1k")


def timm_folder(folder, name: str, tag: str = ""):
    """A folder as timm's hub repositories are, of this registered model."""
    spec = resolve(name)
    images, architecture = spec.preprocess, spec.timm_name
    if architecture is None:  # timm has it under the name of another model, by its tag
        architecture, _, tag = spec.weights.source.removeprefix("timm/").partition(".")
    config = {
        "architecture": architecture,
        "num_classes": 10,
        "pretrained_cfg": {
            "tag": tag,
            "num_classes": 10,
            "input_size": [3, images.size, images.size],
            "interpolation": images.method,
            "crop_pct": images.crop,
            "mean": list(images.mean),
            "std": list(images.std),
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    write(folder / "model.safetensors", state(spec.name, "timm"))
    return folder


@pytest.mark.parametrize("family", TIMM)
def test_a_folder_of_timms_hub(family, tmp_path):
    name, tag = TAGGED if family == "vit" else (smallest(family), "")
    spec = resolve(name)
    found = identify(timm_folder(tmp_path, name, tag))
    assert found.config is not None, found.undecided
    assert get(found.config) is families()[family]
    assert comparable(found.config) == comparable(spec.config.to_dict())
    assert found.preprocess.mean == spec.preprocess.mean
    assert found.num_classes == (10 if spec.num_classes else 0)


@pytest.mark.parametrize("tag", ["", "dino"])
def test_a_tag_that_does_not_tell_the_gelu(tag, tmp_path, capsys):
    folder = timm_folder(tmp_path, TAGGED[0], tag)
    found = identify(folder)
    assert found.config is None
    assert {"ViT-Ti_16", "deit_tiny_patch16_224"} <= {c.name for c in found.candidates}
    assert cli.main(["inspect", str(folder)]) == 2
    assert "--model ViT-Ti_16" in capsys.readouterr().err


PREFIXES = [
    "module.",
    "model.",
    "_orig_mod.",
    "state_dict.",
    "state_dict.module.",
    "model._orig_mod.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_trainers(prefix, tmp_path):
    name = smallest("swin")
    tensors = {prefix + n: x for n, x in state(name, "timm").items()}
    assert identify(write(tmp_path / "x.safetensors", tensors)).models == (name,)


@pytest.mark.parametrize("average", ["model_ema.", "state_dict_ema.", "ema."])
def test_moving_averages_beside_the_others_must_be_named(average, tmp_path, capsys):
    name = smallest("swin")
    plain = "state_dict." if average.startswith("state") else "model."
    tensors = {p + n: x for p in (plain, average) for n, x in state(name, "timm").items()}
    path = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(UserError, match=f"several sets of weights: .*--part {average[:-1]}"):
        identify(path)
    assert cli.main(["inspect", str(path)]) == 2
    assert identify(path, part=average.removesuffix(".")).models == (name,)


# --- particular cases -----------------------------------------------------------------------------


def test_a_deit_without_metadata_may_be_a_vision_transformer(tmp_path, capsys):
    name = "deit_tiny_patch16_224"
    path = write(tmp_path / "x.safetensors", state(name, "timm"))
    found = identify(path)
    assert found.config is None
    called = [c.name for c in found.candidates]
    assert name in called
    assert {"ViT-Ti_16", "vit_tiny_patch16_224"} & set(called)
    assert cli.main(["convert", str(path), str(tmp_path / "y.npz"), "--to", "official"]) == 2
    message = capsys.readouterr().err
    assert "GELU" in message
    assert "mean 0.485" in message
    assert "mean 0.5" in message


def test_a_class_position_is_no_deit3s(tmp_path):
    """196 patches and a class token: DeiT III gives its class token no position."""
    name = smallest("deit3")
    tensors = dict(state(name, "timm"))
    tensors["pos_embed"] = np.zeros((1, 197, tensors["pos_embed"].shape[-1]), np.float16)
    found = identify(write(tmp_path / "x.safetensors", tensors))
    assert not any(m.startswith("deit3") for m in found.models)
    assert found.config is None


def test_a_damaged_deit_is_called_a_deit(tmp_path):
    name = smallest("deit_distilled")
    tensors = dict(state(name, "timm"))
    del tensors["blocks.3.mlp.fc1.weight"]
    with pytest.raises(UserError) as error:
        load(write(tmp_path / "x.safetensors", tensors))
    assert "the closest model is deit" in str(error.value)
    assert "blocks.3.mlp.fc1.weight" in str(error.value)


@pytest.mark.parametrize("bug", [AssertionError, TypeError, NameError, AttributeError])
def test_our_own_bug_is_no_damaged_file(bug, tmp_path, monkeypatch):
    path = write(tmp_path / "x.npz", state(smallest("mixer"), "official"))

    def read(self, name):
        raise bug("a bug of ours")

    monkeypatch.setattr(Npz, "read", read)
    with pytest.raises(bug, match="a bug of ours"):
        load(path)
