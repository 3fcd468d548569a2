"""CLIP's files: folders of transformers and open_clip, timm's bias, and what is never guessed."""

import json

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers.convert_slow_tokenizer import bytes_to_unicode
from zero_files import state, write

import vit_jax
from vit_jax import cli
from vit_jax.checkpoint import convert, from_torch, identify, names, to_torch
from vit_jax.errors import UserError
from vit_jax.families.registry import comparable, config_of, families, shrunk
from vit_jax.families.text import Text
from vit_jax.parity.figures import FLOAT32_BAR, relative_error
from vit_jax.parity.subject import random_params
from vit_jax.tree import unflatten

LENGTH, SIDE = 12, 64
TOWER = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "hidden_act": "quick_gelu",
}
TEXTS = ["a photo of a cat", "Dogs!"]


def vocabulary() -> dict[str, int]:
    letters = list(bytes_to_unicode().values())
    ends = ["<|startoftext|>", "<|endoftext|>"]
    return {x: i for i, x in enumerate([*letters, *(x + "</w>" for x in letters), *ends])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP as transformers saves it, with its tokenizer and its image processor."""
    path, entries = tmp_path_factory.mktemp("clip"), vocabulary()
    sizes = {"vocab_size": len(entries), "max_position_embeddings": LENGTH}
    ends = {"bos_token_id": len(entries) - 2, "eos_token_id": len(entries) - 1}
    config = transformers.CLIPConfig(
        vision_config={**TOWER, "image_size": SIDE, "patch_size": 16},
        text_config={**TOWER, **sizes, **ends},
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config)
    for x in model.parameters():
        x.data += 0.1 * torch.randn_like(x)
    model.save_pretrained(path)
    transformers.CLIPTokenizer(vocab=entries, merges=[]).save_pretrained(path)
    images = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    transformers.CLIPImageProcessor(**images).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
    """The same under OpenAI's names, recorded, and without any record."""
    path = tmp_path_factory.mktemp("torch")
    convert(folder, path / "recorded.safetensors", to="torch")
    save_file(load_file(path / "recorded.safetensors"), path / "bare.safetensors")
    return path


def test_a_folder_of_transformers_tells_everything(folder):
    found = identify(folder)
    assert found.config["family"] == "clip"
    assert found.config["image"]["activation"] == found.config["text"]["activation"] == "quick_gelu"
    assert "end" not in found.config["text"]  # the largest number, as the config says otherwise
    assert found.text == Text("clip", str(folder / "tokenizer.json"), LENGTH)
    assert found.image_size == (SIDE, SIDE)
    assert found.preprocess.mean == (0.48145466, 0.4578275, 0.40821073)
    assert found.other_function == ""
    assert not any("activation" in note for note in found.notes)


def test_images_and_texts_are_embedded_as_transformers_does(folder):
    model = vit_jax.load(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    zimg, ztxt = model(pixels, TEXTS)
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenize = transformers.CLIPTokenizer.from_pretrained(folder)
    process = transformers.CLIPImageProcessor.from_pretrained(folder)
    how = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    with torch.no_grad():
        output = theirs(
            pixel_values=process(list(pixels), return_tensors="pt")["pixel_values"],
            **tokenize(TEXTS, return_tensors="pt", **how),
        )
    assert relative_error(output.image_embeds.numpy(), zimg) <= FLOAT32_BAR
    assert relative_error(output.text_embeds.numpy(), ztxt) <= FLOAT32_BAR


def test_names_of_three_kinds_bit_for_bit(folder, converted, tmp_path):
    there = load_file(converted / "recorded.safetensors")
    assert there["visual.proj"].shape == (48, 24)  # not turned, as layers of PyTorch are
    assert there["logit_scale"].shape == ()
    convert(converted / "recorded.safetensors", tmp_path / "ours.npz", to="official")
    convert(tmp_path / "ours.npz", tmp_path / "back", to="hf")
    wanted = load_file(folder / "model.safetensors")
    got = load_file(tmp_path / "back/model.safetensors")
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(got[name], x, err_msg=name)
    _, told = transformers.CLIPModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told.values())
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config["vision_config"]["hidden_act"] == config["text_config"]["hidden_act"]
    assert config["vision_config"]["hidden_act"] == "quick_gelu"


# --- the activation -------------------------------------------------------------------------------


def test_a_file_alone_does_not_tell_the_activation(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    write(path, state("vit_base_patch32_clip_224", "timm"))
    assert cli.main(["inspect", str(path)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "its activation, which is no tensor" in message
    assert "'quick_gelu' is x σ(1.702 x), of OpenAI" in message
    assert "'gelu' is the erf form of GELU, of LAION-2B" in message
    for name in ("vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224"):
        assert f"--model {name}: " in message
        found = identify(path, name)
        assert found.config["activation"] == config_of(name)["activation"]
        assert "its activation, which is no tensor" in " ".join(found.notes)
    assert cli.main(["inspect", str(path), "--model", "vit_base_patch32_clip_224"]) == 0
    assert "its activation, which is no tensor" in capsys.readouterr().out


def test_a_size_of_one_registered_activation_is_not_guessed_either(tmp_path):
    write(tmp_path / "x.safetensors", state("vit_base_patch32_clip_256", "timm"))
    found = identify(tmp_path / "x.safetensors")
    assert found.config is None
    assert "activation" in found.undecided


@pytest.mark.parametrize(
    ("architecture", "args", "name"),
    [
        ("vit_base_patch32_clip_224.openai", {}, "vit_base_patch32_clip_quickgelu_224"),
        ("vit_base_patch32_clip_224.laion2b", {}, "vit_base_patch32_clip_224"),
        ("vit_base_patch32_clip_quickgelu_224.mine", {}, "vit_base_patch32_clip_quickgelu_224"),
        ("vit_base_patch32_clip_224.mine", {}, "vit_base_patch32_clip_224"),
        (
            "vit_base_patch32_clip_224.mine",
            {"act_layer": "quick_gelu"},
            "vit_base_patch32_clip_quickgelu_224",
        ),
    ],
)
def test_timms_name_tells_the_activation(architecture, args, name, tmp_path):
    """Of OpenAI's weights timm's name is that of the other activation: the tag decides."""
    architecture, tag = architecture.split(".")
    told = {"architecture": architecture, "model_args": args, "pretrained_cfg": {"tag": tag}}
    tensors = state("vit_base_patch32_clip_224", "timm")
    path = write(tmp_path / "x.safetensors", tensors, {"timm": json.dumps(told)})
    assert identify(path).models == (name,)


def test_a_config_and_a_name_that_contradict_each_other(folder, tmp_path):
    config = identify(folder).config
    other = {**config, "image": {**config["image"], "activation": "gelu"}}
    found = identify(folder, other)
    assert "says activation 'quick_gelu'" in found.other_function
    assert identify(folder, other, allow=["other-function"]).other_function == ""
    fields = json.loads((folder / "config.json").read_text())
    fields["vision_config"]["hidden_act"] = "gelu_new"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="hidden_act, is 'gelu_new'"):
        identify(tmp_path)


@pytest.mark.parametrize("quick", [True, False, None])
def test_open_clips_config_tells_it(quick, converted, tmp_path):
    towers = {"width": 48, "layers": 2, "mlp_ratio": 2.0}
    text = {**towers, "heads": 4, "vocab_size": len(vocabulary()), "context_length": LENGTH}
    image = {**towers, "head_width": 12, "patch_size": 16, "image_size": SIDE}
    model = {"embed_dim": 24, "vision_cfg": image, "text_cfg": text}
    model |= {} if quick is None else {"quick_gelu": quick}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    tensors = load_file(converted / "bare.safetensors")
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    found = identify(tmp_path)
    wanted = identify(converted / "recorded.safetensors").config
    if not quick:
        for tower in ("image", "text"):
            wanted = {**wanted, tower: {**wanted[tower], "activation": "gelu"}}
    assert comparable(found.config) == comparable(wanted)
    model["vision_cfg"] = {**image, "timm_model_name": "vit_base_patch16_224"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    assert identify(tmp_path).config is None


# --- timm's bias, images of other sizes, what is registered ---------------------------------------


def test_timms_bias_is_zeros_both_ways():
    config = shrunk(config_of("vit_base_patch32_clip_quickgelu_224"))
    shapes = names.expected_shapes(config, num_classes=24, image_size=(SIDE, SIDE))
    tensors = to_torch({"params": unflatten(random_params(shapes, seed=0))}, config, "timm")
    np.testing.assert_array_equal(tensors["head.bias"], np.zeros(24, np.float32))
    from_torch(tensors, config, "timm")
    without = {name: x for name, x in tensors.items() if name != "head.bias"}
    from_torch(without, config, "timm")
    tensors["head.bias"] = np.full(24, 0.25, np.float32)
    with pytest.raises(UserError, match=r"expected zeros in 'head.bias'.*up to 0.25.*classifier"):
        from_torch(tensors, config, "timm")


@pytest.mark.parametrize("size", [(32, 96), (128, 80)])
def test_positions_are_resized_as_open_clip_or_as_transformers(size, folder, tmp_path):
    """open_clip and timm widen the kernel where they shrink, transformers does not."""
    name = "img/posembed_input/pos_embedding"
    with np.load(_ours(folder, tmp_path / "ours.npz")) as file:
        table = np.array(file[name])
    grid = torch.from_numpy(table[:, 1:]).reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    for method, antialias in ((None, True), ("timm", True), ("bicubic", False)):
        dst = tmp_path / "resized.npz"
        convert(folder, dst, to="official", image_size=size, resize_method=method)
        with np.load(dst) as file:
            got = np.array(file[name])
        theirs = torch.nn.functional.interpolate(
            grid, (size[0] // 16, size[1] // 16), mode="bicubic", antialias=antialias
        )
        theirs = theirs.permute(0, 2, 3, 1).reshape(1, -1, 48).numpy()
        np.testing.assert_array_equal(got[:, :1], table[:, :1])
        np.testing.assert_allclose(got[:, 1:], theirs, rtol=0, atol=1e-6 * table.std())


def _ours(folder, path):
    convert(folder, path, to="official")
    return path


def test_zero_shot_by_the_command(folder, tmp_path, capsys):
    Image.fromarray(np.arange(70 * 90 * 3, dtype=np.uint8).reshape(70, 90, 3)).save(
        tmp_path / "a.png"
    )
    command = ["zeroshot", "--weights", str(folder), "--classes", "cat,dog", "--prompts", "name"]
    assert cli.main([*command, "--format", "jsonl", str(tmp_path / "a.png")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    model = vit_jax.load(folder)
    zimg, ztxt = model(tmp_path / "a.png", ["cat", "dog"])
    scale = np.exp(model.variables["params"]["t"])
    scores = np.exp(scale * (zimg @ ztxt.T))[0]
    scores = dict(zip(["cat", "dog"], scores / scores.sum(), strict=True))
    assert set(scores) == {"cat", "dog"}
    best = max(scores, key=lambda name: scores[name])
    assert best in line
    assert f"{scores[best]:.2f}"[:4] in line


def test_timms_facts_of_published_weights():
    """Preprocessing and outputs of every row, as timm's own table has them."""
    for name, known in families()["clip_vision"].architectures.items():
        for tag, weights in known.weights.items():
            silent = (name, tag) == ("vit_base_patch16_clip_quickgelu_224", "dfn2b")
            # open_clip says quick GELU of these weights, and timm says nothing of it.
            row = weights.source.removeprefix("timm/") if silent else f"{name}.{tag}"
            told = timm.get_pretrained_cfg(row)
            images = weights.preprocess
            assert told.input_size == (3, images.size, images.size)
            assert (told.crop_pct, told.interpolation) == (images.crop, images.method)
            assert (told.mean, told.std) == (images.mean, images.std)
            assert told.num_classes == weights.num_classes
            is_quick = any("QuickGELU" in note for note in told.notes or ())
            assert (is_quick or silent) == (known.config["activation"] == "quick_gelu"), (name, tag)
            assert weights.source == (told.hf_hub_id if not silent else f"timm/{row}")
