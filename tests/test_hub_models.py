"""Models of the hub's repositories: the right model, prepared as its own library prepares it."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from hub_repositories import randomise, timm_repository, transformers_repository
from hub_server import COMMITS, serving, use
from PIL import Image
from prepared_elsewhere import photographs
from recipes import random_params
from safetensors.numpy import save_file
from vocabularies import OPTIONS, theirs, trained

import vit_jax
from vit_jax import checkpoint, cli
from vit_jax.checkpoint import names
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.families.registry import resolve
from vit_jax.train.pretrained import find_pretrained

NOISE = 2e-5  # of the logits' deviation, in float32
PHOTOGRAPHS = list(photographs(20))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        use(server.url, tmp_path_factory.mktemp("cache"), patch)
        yield server


@pytest.fixture(scope="module")
def timm_model(hub, tmp_path_factory):
    """Its address and timm's pipeline."""
    folder = tmp_path_factory.mktemp("timm")
    sizes = {"num_classes": 7, "img_size": (48, 64)}
    pipeline = timm_repository(folder, "deit_tiny_patch16_224", **sizes)
    return hub.add("someone/my-deit", folder), pipeline


@pytest.fixture(scope="module")
def transformers_model(hub, tmp_path_factory):
    """Its address and transformers' pipelines; in shards, and oblong."""
    folder = tmp_path_factory.mktemp("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        image_size=[32, 48], layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh", num_labels=6,
    )  # fmt: skip
    size = {"height": 32, "width": 48}
    processor = transformers.ViTImageProcessor(size=size, resample=3, image_mean=[0.4, 0.5, 0.6])
    pipelines = transformers_repository(folder, config, processor, shard="60KB")
    return hub.add("someone/my-vit", folder), pipelines


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of logits, by their deviation."""
    return float(np.abs(ours - theirs).max() / theirs.std())


# --- the library's own pipeline ------------------------------------------------------------------


def test_timms_pipeline_gives_the_same_logits_of_photographs(timm_model):
    address, pipeline = timm_model
    model = vit_jax.load(address)
    theirs = pipeline(PHOTOGRAPHS)
    assert distance(model(PHOTOGRAPHS), theirs) < NOISE
    squashed = [np.asarray(x)[::2, ::2] for x in PHOTOGRAPHS]  # another picture, for a control
    assert distance(model(squashed), theirs) > 100 * NOISE
    assert model.name == "deit_tiny_patch16_224"
    assert model.weights.model.licence == "cc-by-nc-4.0"


def test_transformers_pipeline_gives_the_same_logits_of_photographs(transformers_model):
    address, pipelines = transformers_model
    model = vit_jax.load(address)
    assert model.preprocessing.height_width == (32, 48)
    ours = model(PHOTOGRAPHS)
    assert distance(ours, pipelines("pil")(PHOTOGRAPHS)) < NOISE
    # With torchvision, its default, it rounds and clips otherwise where it resizes.
    assert NOISE < distance(ours, pipelines("torchvision")(PHOTOGRAPHS)) < 0.2


@pytest.fixture(scope="module")
def dinov2(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28,
        patch_size=14, num_labels=6,
    )  # fmt: skip
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, resample=3
    )
    return hub.add("someone/my-dinov2", folder), transformers_repository(folder, config, processor)


def test_what_is_cropped_by_a_pixel_otherwise_is_said(dinov2):
    address, pipelines = dinov2
    model = vit_jax.load(address)
    pipeline = pipelines("pil")
    squares = [x[:80, :80] for x in PHOTOGRAPHS]  # of which even borders are cut off
    assert distance(model(squares), pipeline(squares)) < NOISE
    assert distance(model(PHOTOGRAPHS), pipeline(PHOTOGRAPHS)) > 100 * NOISE
    said = [note for note in checkpoint.identify(address).notes if "centre one pixel" in note]
    assert len(said) == 1


def test_both_towers_of_a_repository(hub, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "intermediate_size": 48, "image_size": 32, "patch_size": 16}
    text = {**sizes, "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 16}
    config = transformers.SiglipConfig(vision_config=vision, text_config=text)
    theirs = randomise(transformers.SiglipModel(config))
    theirs.save_pretrained(tmp_path)
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    model = vit_jax.load(hub.add("someone/my-siglip", tmp_path))
    prepare = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pixels = prepare([Image.fromarray(x) for x in PHOTOGRAPHS], return_tensors="pt")
    with torch.inference_mode():
        wanted = theirs.get_image_features(**pixels).pooler_output
        wanted = (wanted / wanted.norm(dim=-1, keepdim=True)).numpy()
    assert distance(model.features(PHOTOGRAPHS), wanted) < NOISE
    with pytest.raises(UserError, match=r"holds a siglip by its name, and config\.json desc"):
        checkpoint.identify(hub.add("google/siglip-base-patch16-224", tmp_path))


@pytest.mark.filterwarnings("ignore:This sequence already has")
@pytest.mark.parametrize(
    ("kind", "says"),
    [("siglip", "SiglipTokenizer"), ("siglip2", "Siglip2Tokenizer"), ("siglip2", "GemmaTokenizer")],
)
def test_a_repository_has_its_tokenizer(hub, kind, says, tmp_path):
    vocabulary = trained(tmp_path / "x", **OPTIONS[kind])
    folder = tmp_path / "repository"
    tokenize = theirs(kind, vocabulary)
    tokenize.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": says}))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "intermediate_size": 48, "image_size": 32, "patch_size": 16}
    text = {**sizes, "intermediate_size": 48, "vocab_size": 330, "max_position_embeddings": 8}
    transformers.SiglipModel(
        transformers.SiglipConfig(vision_config=vision, text_config=text)
    ).save_pretrained(folder)
    texts = ["a photo of a Cat!", "", "two dogs, running! " * 4]
    wanted = tokenize(texts, padding="max_length", truncation=True, max_length=8)["input_ids"]
    address = hub.add(f"someone/{says}", folder)
    for where in (address, str(folder)):
        model = vit_jax.load(where)
        assert model.tokenize(texts).tolist() == wanted
        assert model.weights.model.text.kind == kind
    assert vit_jax.load(address).weights.model.text.vocabulary.startswith(f"{address}@")
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "spiece.model").unlink(missing_ok=True)
    with pytest.raises(UserError, match="nothing tells which tokenizer"):
        vit_jax.load(folder).tokenize(texts)


# --- what is told --------------------------------------------------------------------------------


def test_inspect_tells_source_and_licence_and_convert_records_them(
    timm_model, tmp_path, capsys, hub
):
    address, _ = timm_model
    assert cli.main(["inspect", address, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["licence"] == "cc-by-nc-4.0"
    origin = f"hf://someone/my-deit@{COMMITS['main']}/model.safetensors"
    assert told["origin"] == origin
    assert cli.main(["inspect", address]) == 0
    assert "licence     cc-by-nc-4.0" in capsys.readouterr().out
    target = tmp_path / "x.npz"
    assert cli.main(["convert", address, str(target), "--to", "official"]) == 0
    found = checkpoint.identify(target)
    assert found.licence == "cc-by-nc-4.0"
    assert found.history[0]["source"]["origin"] == origin
    assert found.origin == ""
    capsys.readouterr()
    assert cli.main(["inspect", "hf://someone/gone"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_environment_names_hub_and_cache(transformers_model, tmp_path, hub):
    address, _ = transformers_model
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "vit_jax.cli", "inspect", address]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "licence     apache-2.0" in done.stdout
    assert list(tmp_path.rglob("model.safetensors.index.json"))


# --- names ---------------------------------------------------------------------------------------


def test_the_name_of_a_repository_tells_the_model_where_nothing_else_does(hub, tmp_path):
    """Its tensors are those of a ViT and of a DeiT, which compute otherwise."""
    config = resolve("ViT-Ti_16").config.to_dict()
    shapes = names.expected_shapes(config, image_size=(224, 224), num_classes=3)
    state = checkpoint.to_torch({"params": random_params(shapes, 0.1)}, config)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="fit several models"):
        checkpoint.load(hub.add("someone/nameless", tmp_path))
    found = checkpoint.identify(hub.add("timm/vit_tiny_patch16_224.augreg_in21k", tmp_path))
    assert found.require_model()["classifier"] == "token"
    assert found.models[0] in ("ViT-Ti_16", "vit_tiny_patch16_224")
    assert found.licence == "Apache-2.0"
    with pytest.raises(UserError, match="says that it holds ViT-S_16"):
        checkpoint.identify(hub.add("timm/vit_small_patch16_224.augreg_in21k", tmp_path))


def test_a_name_that_contradicts_its_repository_stops(hub, tmp_path):
    folder = tmp_path / "repo"
    timm_repository(folder, "deit_tiny_patch16_224", num_classes=3, img_size=32)
    described = json.loads((folder / "config.json").read_text())
    described["architecture"] = "deit_small_patch16_224"
    (folder / "config.json").write_text(json.dumps(described))
    address = hub.add("someone/wrong", folder)
    with pytest.raises(UserError, match="says that it holds deit_small_patch16_224, and its tens"):
        checkpoint.identify(address)
    assert checkpoint.identify(address, "deit_tiny_patch16_224").num_classes == 3


# --- training -------------------------------------------------------------------------------------


def test_a_run_starts_from_a_repository(transformers_model):
    address, _ = transformers_model
    config = common.get_config()
    config.pretrained = address
    path = find_pretrained(config)
    model = vit_jax.load(address)
    init = jax.tree.map(np.zeros_like, model.variables["params"])
    loaded = checkpoint.load_pretrained(
        pretrained_path=path,
        init_params=init,
        model_config=model.weights.model.config,
        new_grid=(2, 3),
    )
    np.testing.assert_array_equal(
        loaded["embedding"]["kernel"], model.variables["params"]["embedding"]["kernel"]
    )
    assert not loaded["head"]["kernel"].any()  # the model's own, as in every fine-tuning
