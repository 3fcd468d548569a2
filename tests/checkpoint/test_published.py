"""The catalogue against itself, against the models here and against the installed timm."""

import json

import pytest
from timm.models import mlp_mixer, vision_transformer, vision_transformer_hybrid

from vit_jax import cli
from vit_jax.configs.models import AUGREG_CONFIGS
from vit_jax.families import published as catalogue
from vit_jax.families.published import published
from vit_jax.families.registry import registered

TIMM = {
    f"{architecture}.{tag}": cfg
    for module in (vision_transformer, vision_transformer_hybrid, mlp_mixer)
    for architecture, entry in module.default_cfgs.items()
    for tag, cfg in entry.cfgs.items()
}
AUGREG = [row for row in published() if row.collection == "augreg"]


def of(rows):
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.file)


def test_every_collection_is_there():
    assert list(dict.fromkeys(row.collection for row in published())) == [
        "imagenet21k",
        "imagenet21k+imagenet2012",
        "augreg",
        "sam",
        "gsam",
        "mixer",
        "lit",
    ]


def test_a_file_stands_in_one_row():
    files = [row.file for row in published()]
    assert len(set(files)) == len(files)


@of(published())
def test_a_row_is_consistent(row):
    bucket = "gs://mixer_models/" if row.model.startswith("Mixer") else "gs://vit_models/"
    assert row.file.startswith(bucket)
    assert row.file.endswith(".npz")
    assert row.resolution in (224, 384)
    assert row.head in ("zero", "trained", "")
    assert (row.num_classes is None) == (row.collection == "lit")
    assert row.num_classes in (1000, 21_843, None)
    assert (row.top1 is None) == (row.top1_from == "")
    assert row.top1 is None or 70 < row.top1 < 90
    # An accuracy on ImageNet-1k is that of a head for it, or zero-shot.
    assert row.top1 is None or row.num_classes in (1000, None)
    assert row.file in catalogue.gcs_file(row.url)
    assert catalogue.find(row.url) is catalogue.find(row.file) is row


def test_models_without_a_class_here_are_known_to_be_so():
    absent = {row.model for row in published() if not row.supported}
    assert absent == {"Mixer-S_8", "Mixer-S_16", "Mixer-S_32"}


@of([row for row in published() if row.collection != "augreg"])
def test_the_file_is_named_after_the_model(row):
    name = row.file.rsplit("/", 1)[1].removesuffix(".npz").removesuffix("-224")
    assert name == row.model.removesuffix("-gap-norep")


@of([row for row in published() if row.timm])
def test_timm_has_the_model_for_these_classes_and_this_size(row):
    cfg = TIMM[row.timm]
    assert cfg.hf_hub_id == "timm/"
    assert cfg.input_size == (3, row.resolution, row.resolution)
    assert cfg.num_classes == (0 if row.head == "zero" else row.num_classes)
    if row.supported:
        spec = registered()[row.model]
        assert spec.timm_name
        assert row.timm.startswith(spec.timm_name.removesuffix("224"))


def test_timms_own_sources_are_all_here():
    source = {
        name: catalogue.gcs_file(cfg.url)
        for name, cfg in TIMM.items()
        if cfg.url and "/vit_models/" in cfg.url
    }
    assert len(source) >= 37
    assert {row.timm: row.file for row in published() if row.timm in source} == source


@of(AUGREG)
def test_augreg_names_say_what_the_columns_say(row):
    fields = catalogue.parse_augreg(row.file)
    assert fields is not None
    assert AUGREG_CONFIGS[fields["model"]].model_name == row.model
    adapted = fields["dataset"] is not None
    assert row.resolution == int(fields["resolution"] or 224)
    assert row.num_classes == (1000 if adapted or fields["upstream"] == "i1k" else 21_843)


def test_augreg_grammar():
    name = "R26_S_32-i21k-30ep-lr_0.001-aug_light0-wd_0.03-do_0.1-sd_0.1"
    pretrained = {
        "model": "R26_S_32",
        "upstream": "i21k",
        "epochs": "30",
        "lr": "0.001",
        "augment": "light0",
        "weight_decay": "0.03",
        "dropout": "0.1",
        "stochastic_depth": "0.1",
        "dataset": None,
        "steps": None,
        "adapt_lr": None,
        "resolution": None,
    }
    assert catalogue.parse_augreg(f"gs://vit_models/augreg/{name}.npz") == pretrained
    adapted = {"dataset": "cifar100", "steps": "500", "adapt_lr": "0.003", "resolution": "128"}
    found = catalogue.parse_augreg(f"{name}--cifar100-steps_500-lr_0.003-res_128")
    assert found == pretrained | adapted
    assert catalogue.parse_augreg("ViT-B_16") is None
    assert catalogue.parse_augreg(f"{name}--cifar100") is None


def test_recommended():
    assert catalogue.recommended("L_16").startswith("L_16-i21k-300ep-lr_0.001-aug_strong1")
    assert catalogue.recommended("B_8") == catalogue.recommended("ViT-B_16") == ""
    assert sum(row.recommended for row in published()) == 2 * 9


def test_addresses():
    file = "gs://vit_models/imagenet21k+imagenet2012/ViT-B_16.npz"
    url = "https://storage.googleapis.com/vit_models/imagenet21k%2Bimagenet2012/ViT-B_16.npz"
    assert catalogue.gcs_url(file) == url
    assert catalogue.gcs_file(url) == catalogue.gcs_file(url.replace("%2B", "+")) == file
    assert catalogue.gcs_file("https://example.org/a%2Bb") == "https://example.org/a%2Bb"
    assert catalogue.find("gs://vit_models/imagenet21k/ViT-B_17.npz") is None


def test_copies():
    find = catalogue.find
    both = find("gs://vit_models/imagenet21k/ViT-B_16.npz")
    one = find("gs://mixer_models/imagenet21k/Mixer-B_16.npz")
    none = find("gs://vit_models/sam/ViT-L_16.npz")
    hub, file = "https://huggingface.co/", "/resolve/main/model.safetensors"
    assert both.copy == f"{hub}google/vit-base-patch16-224-in21k{file}"
    assert one.copy == f"{hub}timm/mixer_b16_224.goog_in21k{file}"
    assert none.copy == ""


def test_relatives_are_the_same_model_with_the_same_classes():
    sam = catalogue.relatives("gs://vit_models/sam/ViT-L_16.npz")
    assert sam
    assert {(row.model, row.num_classes) for row in sam} == {("ViT-L_16", 1000)}
    # Not a row, but its name tells the model.
    folder, name = (
        "gs://vit_models/augreg/",
        "S_16-i21k-30ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0",
    )
    (found,) = catalogue.relatives(f"{folder}{name}.npz")
    assert found.timm == "vit_small_patch16_224.augreg_in21k"
    found = catalogue.relatives(f"{folder}{name}--imagenet2012-steps_20k-lr_0.01-res_224.npz")
    assert {row.num_classes for row in found} == {1000}
    assert not catalogue.relatives(f"{folder}{name}--cifar100-steps_500-lr_0.01-res_224.npz")
    assert not catalogue.relatives("https://example.org/x.npz")


def test_the_command_lists_them(capsys):
    assert cli.main(["models", "--checkpoints", "imagenet21k/vit-b_16"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "gs://vit_models/imagenet21k/ViT-B_16.npz",
        "    ViT-B_16 · 224 px · 21843 classes · head zero",
        "    timm vit_base_patch16_224.orig_in21k · Hugging Face google/vit-base-patch16-224-in21k",
        "    timm's copy lacks pre_logits; Hugging Face's holds it as its pooler",
    ]
    assert cli.main(["models", "--checkpoints", "lit-l16s"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "gs://vit_models/lit/LiT-L16S.npz",
        "    LiT-L16S · 224 px",
    ]
    assert cli.main(["models", "--checkpoints"]) == 0
    files = [line for line in capsys.readouterr().out.splitlines() if line.startswith("gs://")]
    assert files == [row.file for row in published()]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("vit_base_patch16_224.sam*", 1), ("google/*", 11), ("LIT-*", 5), ("mixer-b_16", 4)],
)
def test_the_command_finds_by_any_name(capsys, pattern, count):
    assert cli.main(["models", "--checkpoints", pattern, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == count
    assert rows[0] == catalogue.find(rows[0]["file"]).to_dict()
    assert rows[0]["url"].startswith("https://storage.googleapis.com/")


def test_the_command_without_a_match(capsys):
    assert cli.main(["models", "--checkpoints", "LiT-B16"]) == 0  # a part is enough
    capsys.readouterr()
    assert cli.main(["models", "--checkpoints", "LiT-B17B"]) == 2
    assert capsys.readouterr().err.startswith(
        "vit-jax: error: no published checkpoint matches 'LiT-B17B'. Did you mean 'LiT-B16B'"
    )
