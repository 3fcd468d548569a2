"""Images with captions: what is read of every kind of dataset, and refused; and the examples."""

import json
import pathlib
import pickle

import numpy as np
import pytest
import sample_files
from image_helpers import encode

from vit_jax import cli, input_pipeline
from vit_jax.configs import common
from vit_jax.errors import UserError
from vit_jax.families.text import Text
from vit_jax.input_pipeline.captions import Tokens, caption_feature, open_captions
from vit_jax.input_pipeline.sources import open_source

WORDS = ["[PAD]", "[CLS]", "[UNK]", "a", "red", "blue", "dog", "cat", "two", "##s"]


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for i, name in enumerate(("0", "1", "2", "more/3")):
        pixels = np.full((8, 9, 3), 50 * i, np.uint8)
        (tmp_path / "photos" / f"{name}.png").write_bytes(encode(pixels))
    return tmp_path


@pytest.fixture
def vocabulary(tmp_path) -> str:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return str(tmp_path / "vocab.txt")


def found(source) -> list[tuple[str, list[str]]]:
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(len(source))] == [source[i] for i in range(len(source))]
    return [(pathlib.Path(r["name"]).name, r["captions"]) for r in again]


def write_table(path: pathlib.Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        path.write_text("".join(mark.join(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["caption", "Text", "sentences", "alt_text"])
def test_tables(images, suffix, name):
    """An image may have several rows, as in Flickr30k's table."""
    rows = [
        {"image": "photos/1.png", name: "a red dog"},
        {"image": "photos/0.png", name: " a dog; and a cat "},
        {"image": "photos/1.png", name: "a dog"},
    ]
    source = open_captions(write_table(images / f"table{suffix}", rows))
    assert found(source) == [("1.png", ["a red dog", "a dog"]), ("0.png", ["a dog; and a cat"])]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_in_a_cell(images, suffix):
    rows = [{"path": "photos/0.png", "captions": ["a dog", "dogs"]}]
    assert found(open_captions(write_table(images / f"t{suffix}", rows))) == [
        ("0.png", ["a dog", "dogs"])
    ]


def test_a_folder(images):
    for name in ("0", "1", "2", "more/3"):
        (images / "photos" / f"{name}.txt").write_text(f"a dog {name}\n\na dog\n")
    source = open_captions(str(images / "photos"))
    assert found(source) == [
        (f"{pathlib.Path(name).name}.png", [f"a dog {name}", "a dog"])
        for name in ("0", "1", "2", "more/3")
    ]


def test_splits(images, caplog):
    """Those that are there, or a tenth of the training images."""
    train = write_table(images / "train.csv", [{"path": "photos/0.png", "text": "one"}])
    for folder in ("train", "val"):
        (images / "sets" / folder).mkdir(parents=True)
        (images / "sets" / folder / "x.png").write_bytes((images / "photos/0.png").read_bytes())
        (images / "sets" / folder / "x.txt").write_text(f"of {folder}")
    assert found(open_captions(str(images / "sets"), "train")) == [("x.png", ["of train"])]
    assert found(open_captions(str(images / "sets"), "test")) == [("x.png", ["of val"])]
    write_table(images / "validation.csv", [{"path": "photos/1.png", "text": "two"}])
    assert found(open_captions(train, "train")) == [("0.png", ["one"])]
    assert found(open_captions(train, "test")) == [("1.png", ["two"])]
    rows = [{"path": f"photos/{i}.png", "text": str(i)} for i in range(3)]
    (images / "alone").mkdir()
    (images / "alone" / "photos").symlink_to(images / "photos")
    alone = write_table(images / "alone" / "all.csv", rows)
    parts = [found(open_captions(alone, split)) for split in ("train", "test")]
    assert [len(part) for part in parts] == [2, 1]
    assert sorted(parts[0] + parts[1]) == [(f"{i}.png", [str(i)]) for i in range(3)]
    assert "a tenth of the images is held out" in caplog.text


REFUSED = {
    "an empty caption": ("path,caption\nphotos/0.png,a\nphotos/1.png, \n", r"t\.csv, line 3: an"),
    "no column": ("path,label\nphotos/0.png,a\n", "paths and captions, which a first line"),
    "no image": ("path,caption\nphotos/9.png,a\n", r"do not exist: .*9\.png; the first in line 2"),
    "two columns": ("path,caption,text\nphotos/0.png,a,b\n", "several columns could be the capt"),
    "nothing": ("path,caption\n", "no images with captions in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_tables(images, name):
    content, message = REFUSED[name]
    (images / "t.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        open_captions(str(images / "t.csv"))


def test_refused(images):
    with pytest.raises(UserError, match=r"4 of the 4 images of .*photos have no captions: .*0\.tx"):
        open_captions(str(images / "photos"))
    for name in ("0", "1", "2", "more/3"):
        (images / "photos" / f"{name}.txt").write_text("a dog")
    (images / "photos" / "1.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"photos/1\.txt: an image must have at least one caption"):
        open_captions(str(images / "photos"))
    (images / "photos" / "1.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"photos/1\.txt are no text in UTF-8"):
        open_captions(str(images / "photos"))
    write_table(images / "t.jsonl", [{"path": "photos/0.png", "captions": []}])
    with pytest.raises(UserError, match=r"t\.jsonl, line 1: an image must have at least one"):
        open_captions(str(images / "t.jsonl"))
    (images / "x.tar").write_bytes(b"")
    with pytest.raises(UserError, match="`vit-jax prepare --captions` makes one"):
        open_captions(str(images / "x.tar"))


def test_features_of_tfds():
    import tensorflow_datasets as tfds

    f = tfds.features
    known = {
        "coco": (f.Sequence({"id": np.int64, "text": f.Text()}), ("captions", "text")),
        "one": (f.Text(), ("caption", None)),
        "several": (f.Sequence(f.Text()), ("captions", None)),
    }
    for feature, (name, inside) in known.values():
        features = f.FeaturesDict({"image": f.Image(), name: feature, "id": np.int64})
        assert caption_feature(features, "x") == (name, inside)
    two = f.FeaturesDict({"image": f.Image(), "caption": f.Text(), "text": f.Text()})
    with pytest.raises(UserError, match="several that could be captions"):
        caption_feature(two, "x")
    with pytest.raises(UserError, match=r"no captions: expected .* found \['image', 'label'\]"):
        caption_feature(
            f.FeaturesDict({"image": f.Image(), "label": f.ClassLabel(num_classes=3)}), "x"
        )


def test_captions_of_coco(images):
    """The nested features of COCO's captions, which a run reads where TFDS has prepared them."""
    import tensorflow_datasets as tfds

    f = tfds.features
    features = f.FeaturesDict(
        {
            "image": f.Image(),
            "image/filename": f.Text(),
            "captions": f.Sequence({"id": np.int64, "text": f.Text()}),
        }
    )
    texts = [["a dog", "two dogs"], ["a cät"], [""]]
    examples = [
        {
            "image": str(images / "photos" / f"{i}.png"),
            "image/filename": f"{i}.png",
            "captions": [{"id": k, "text": text} for k, text in enumerate(of_image)],
        }
        for i, of_image in enumerate(texts)
    ]
    folder = sample_files.write_tfds(images / "coco", features, examples)
    for dataset in (folder, f"{folder}/*.array_record*"):
        source = open_captions(dataset, "train")
        assert [source[i]["captions"] for i in range(2)] == texts[:2]
        assert source[1]["image"] == (images / "photos" / "1.png").read_bytes()
        assert source[1]["name"] == f"{dataset}[train] example 1 (1.png)"
        with pytest.raises(UserError, match=r"example 2 \(2\.png\): an image must have at least"):
            source[2]


def test_a_dataset_whose_builder_needs_tensorflow(tmp_path):
    with pytest.raises(UserError, match=r"coco_captions.*TensorFlow Datasets"):
        open_captions("coco_captions", "train", data_dir=tmp_path)


@pytest.mark.parametrize("kind", ["txt", "json", "json.alt", "parquet"])
def test_prepare_keeps_captions(tmp_path, kind, capsys):
    captions = {i: [f"a dog {i}", "a dog"][: 1 + i % 2] for i in range(5)}
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        (tmp_path / "train.parquet").parent.mkdir(exist_ok=True)
        rows = [
            {"image": {"bytes": sample_files.image(i)}, "caption": captions[i]} for i in range(5)
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    else:
        members: dict[str, bytes] = {}
        for i, texts in captions.items():
            members[f"{i}.jpg"] = sample_files.image(i)
            if kind == "txt":
                members[f"{i}.txt"] = "\n".join(texts).encode()
            else:
                key = kind.partition(".")[2] or "Caption"
                other = {"text": "not this"} if kind == "json.alt" else {"url": "x"}
                members[f"{i}.json"] = json.dumps({key: texts, **other}).encode()
        sample_files.write_tar(tmp_path / "train.tar", members)
    file = tmp_path / ("train.parquet" if kind == "parquet" else "train.tar")
    words = ["prepare", "--captions", str(file), "--to", str(tmp_path / "to")]
    if kind == "json.alt":
        assert cli.main(words) == cli.BAD_INPUT
        error = capsys.readouterr().err
        assert (
            "several fields that could be the caption: alt, text. Name it by --caption-f" in error
        )
        words = ["prepare", "--caption-field", kind, *words[2:]]
    assert cli.main(words) == 0
    assert "ready in" in capsys.readouterr().out
    source = open_captions(str(tmp_path / "to"), "train")
    assert [(r["image"], r["captions"]) for r in map(source.__getitem__, range(5))] == [
        (sample_files.image(i), captions[i]) for i in range(5)
    ]
    with pytest.raises(UserError, match="is no image classification dataset"):
        open_source(str(tmp_path / "to"), "train")


def test_prepare_refuses_a_sample_without_caption(tmp_path, capsys):
    members = {"0.jpg": sample_files.image(0), "0.txt": b"a", "1.jpg": sample_files.image(1)}
    sample_files.write_tar(tmp_path / "train.tar", members | {"1.txt": b" \n"})
    words = ["prepare", "--captions", str(tmp_path / "train.tar"), "--to", str(tmp_path / "to")]
    assert cli.main(words) == cli.BAD_INPUT
    assert "train.tar: 1: it has no caption" in capsys.readouterr().err
    assert cli.main([*words, "--on-error=skip"]) == 0
    assert len(open_captions(str(tmp_path / "to"), "train")) == 1


# --- examples ------------------------------------------------------------------------------------


def config(images, vocabulary, **changes):
    made = common.get_config()
    made.objective, made.dataset = (
        "contrastive",
        write_table(
            images / "train.jsonl",
            [
                {
                    "path": f"photos/{i}.png",
                    "captions": ["a red dog", "two cats", "a blue dog"][: 3 - i],
                }
                for i in range(3)
            ],
        ),
    )
    write_table(images / "test.jsonl", [{"path": "photos/0.png", "captions": ["a cat", "dog"]}])
    made.text.update({"kind": "bert", "vocabulary": vocabulary, "length": 6})
    made.pp.crop, made.batch, made.batch_eval = 4, 4, 2
    made.update_from_flattened_dict(changes)
    return made


def test_a_caption_is_drawn_anew_in_training_and_is_the_first_in_evaluation(images, vocabulary):
    made = config(images, vocabulary)
    train, test = input_pipeline.get_datasets(made)
    assert train.num_classes == 0
    assert train.summary == f"{made.dataset}: 3 images"
    with train.iterate() as batches:
        first = [next(batches) for _ in range(12)]
    assert {k: (x.dtype, x.shape) for k, x in first[0].items()} == {
        "image": (np.float32, (4, 4, 4, 3)),
        "tokens": (np.int32, (4, 6)),
    }
    seen = {tuple(row) for batch in first for row in batch["tokens"].tolist()}
    assert seen == {(1, 3, 4, 6, 0, 0), (1, 8, 7, 9, 0, 0), (1, 3, 5, 6, 0, 0)}
    (batch,) = test
    assert batch["tokens"].tolist() == [[1, 3, 7, 0, 0, 0], [0] * 6]
    assert batch["mask"].tolist() == [1, 0]
    # From any step, in worker processes, and shared by two hosts, the examples are the same.
    with train.iterate(5) as batches:
        np.testing.assert_array_equal(next(batches)["tokens"], first[5]["tokens"])
    workers, _ = input_pipeline.get_datasets(config(images, vocabulary, **{"data.num_workers": 1}))
    with workers.iterate(5) as batches:
        np.testing.assert_array_equal(next(batches)["tokens"], first[5]["tokens"])
    halves = []
    for i in range(2):
        shared, _ = input_pipeline.get_datasets(made, process_index=i, process_count=2)
        with shared.iterate(5) as batches:
            halves.append(next(batches)["tokens"])
    np.testing.assert_array_equal(np.concatenate(halves), first[5]["tokens"])


def test_a_run_must_say_how_texts_become_tokens(images, vocabulary):
    with pytest.raises(UserError, match=r"config\.text\.kind and config\.text\.vocabulary must"):
        input_pipeline.get_datasets(config(images, ""))


def test_a_draw_needs_a_generator(vocabulary):
    with pytest.raises(TypeError, match="Tokens is random"):
        Tokens(Text("bert", vocabulary), drawn=True)({"image": None, "captions": ["a"]})
