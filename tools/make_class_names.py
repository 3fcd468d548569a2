"""Writes vit_jax/data/imagenet*.txt.gz: WordNet id, tab, lemmas; one class a line, in the
models' order.

    python tools/make_class_names.py

The source is the installed timm.
"""

import gzip
import pathlib

from timm.data import ImageNetInfo

DATA = pathlib.Path(__file__).parents[1] / "vit_jax" / "data"
SUBSETS = {"imagenet1k": "imagenet-1k", "imagenet21k": "imagenet-21k-goog"}


def main() -> None:
    DATA.mkdir(exist_ok=True)
    for name, subset in SUBSETS.items():
        lemmas = ImageNetInfo(subset).label_descriptions(as_dict=True)
        table = "".join(f"{synset}\t{lemma}\n" for synset, lemma in lemmas.items())
        # No time stamp, so that the same names always give the same bytes.
        (DATA / f"{name}.txt.gz").write_bytes(gzip.compress(table.encode(), mtime=0))


if __name__ == "__main__":
    main()
