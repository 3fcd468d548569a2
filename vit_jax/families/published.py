"""The checkpoints that the original code published: where they lie, and who else holds them.

The facts are rows of `vit_jax/data/checkpoints.csv`; `checkpoints/README.md` says what the columns
mean and how each was established.
"""

import csv
import dataclasses
import functools
import re
import urllib.parse
from importlib import resources
from typing import Any

from vit_jax.families.family import Weights
from vit_jax.families.preprocess import Preprocess

GCS = "https://storage.googleapis.com/"
_HUB = "https://huggingface.co/"

# A name of the 50,000 files of "How to train your ViT?" (arXiv:2106.10270), without `.npz`.
_AUGREG_NAME = re.compile(
    r"(?P<model>\w+_\d+)"
    r"-(?P<upstream>i1k|i21k)-(?P<epochs>\d+)ep-lr_(?P<lr>[\d.]+)-aug_(?P<augment>[a-z]+\d?)"
    r"-wd_(?P<weight_decay>[\d.]+)-do_(?P<dropout>[\d.]+)-sd_(?P<stochastic_depth>[\d.]+)"
    r"(--(?P<dataset>\w+)-steps_(?P<steps>\d+k?)-lr_(?P<adapt_lr>[\d.]+)-res_(?P<resolution>\d+))?"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published(Weights):
    """A checkpoint that the original's authors published, as `source` says, in their layout.

    Attributes:
      collection: 'imagenet21k', 'imagenet21k+imagenet2012', 'augreg', 'sam', 'gsam', 'mixer' or
        'lit'.
      model: Official name of the architecture.
      head: 'zero' where the publisher wrote zeros over the classifier, 'trained', or ''.
      top1_from: Who measured `top1`.
      timm: timm's `architecture.tag` of the same weights.
      hf: Repository of the same weights in transformers' layout.
      recommended: Whether the authors recommend it among AugReg's.
      note: What the other fields do not say.
    """

    collection: str
    model: str
    head: str
    top1_from: str
    timm: str
    hf: str
    recommended: bool
    note: str

    @property
    def file(self) -> str:
        """Where it was published, `gs://bucket/name.npz`."""
        return self.source

    @property
    def resolution(self) -> int:
        """Image size of its last training, in pixels."""
        return max(self.preprocess.height_width)

    @property
    def url(self) -> str:
        """Its https address."""
        return gcs_url(self.file)

    @property
    def names(self) -> tuple[str, ...]:
        """What one may look it up by."""
        return tuple(filter(None, (self.model, self.collection, self.file, self.timm, self.hf)))

    @property
    def supported(self) -> bool:
        """Whether a model here takes these weights."""
        from vit_jax.families.registry import registered

        return self.model in registered()

    @property
    def copy(self) -> str:
        """A file that holds the same weights elsewhere, as https address; '' if none is known.

        transformers' comes first: it has the `pre_logits` that timm's lacks.
        """
        repository = self.hf or (f"timm/{self.timm}" if self.timm else "")
        return f"{_HUB}{repository}/resolve/main/model.safetensors" if repository else ""

    def to_dict(self) -> dict[str, object]:
        """What there is to list, for JSON."""
        names = ("collection", "model", "file", "resolution", "num_classes", "head", "top1")
        names += ("top1_from", "timm", "hf", "recommended", "note", "url", "copy", "supported")
        return {name: getattr(self, name) for name in (*names, "licence")}


@functools.cache
def published() -> tuple[Published, ...]:
    """Every row, in the order of the file."""
    text = resources.files("vit_jax").joinpath("data", "checkpoints.csv").read_text("utf-8")
    return tuple(_row(fields) for fields in csv.DictReader(text.splitlines()))


def published_of(model: str) -> dict[str, Weights]:
    """The rows of an architecture by tag, the path of the file without its bucket and ending."""
    rows = (row for row in published() if row.model == model)
    return {row.file.split("/", 3)[-1].removesuffix(".npz"): row for row in rows}


def find(location: str) -> Published | None:
    """The row of a `gs://` or https address, or None."""
    file = gcs_file(location)
    return next((row for row in published() if row.file == file), None)


def relatives(location: str) -> list[Published]:
    """Rows for the same model and head, of other weights, that can be had elsewhere.

    `location` need not be in the catalogue if its name follows AugReg's grammar.
    """
    row = find(location)
    if row is None:
        fields = parse_augreg(gcs_file(location))
        if fields is None:
            return []
        model, classes = fields["model"], 21_843 if fields["upstream"] == "i21k" else 1000
        if fields["dataset"] is not None:
            classes = 1000 if fields["dataset"] == "imagenet2012" else 0
        same = [r for r in published() if _augreg_model(r) == model and r.num_classes == classes]
    else:
        same = [r for r in published() if (r.model, r.num_classes) == (row.model, row.num_classes)]
    return [r for r in same if r.copy and r.file != gcs_file(location)]


def parse_augreg(name: str) -> dict[str, str | None] | None:
    """What the name of an AugReg file says, or None if it is no such name.

    `Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0` is a pretrained model: architecture,
    upstream dataset, epochs, learning rate, augmentation, weight decay, dropout and stochastic
    depth. `--imagenet2012-steps_20k-lr_0.03-res_384` behind it names a fine-tuned one: dataset,
    steps, learning rate, resolution; these four are None for a pretrained model.

    Args:
      name: With or without folder and `.npz`.
    """
    match = _AUGREG_NAME.fullmatch(name.rsplit("/", 1)[-1].removesuffix(".npz"))
    return match.groupdict() if match else None


def recommended(model: str) -> str:
    """The AugReg file that its authors recommend for `model` (`R_Ti_16`), or ''.

    It has the best upstream accuracy of its kind, so that it is what their `index.csv` leads to.
    """
    names = (row.file.rsplit("/", 1)[-1] for row in published() if row.recommended)
    fields = {name: parse_augreg(name) for name in names}
    found = (n for n, f in fields.items() if f and f["model"] == model and f["dataset"] is None)
    return next(found, "").removesuffix(".npz")


def gcs_url(file: str) -> str:
    """`gs://bucket/name` as the https address at which public buckets answer."""
    return GCS + urllib.parse.quote(file.removeprefix("gs://"))


def gcs_file(location: str) -> str:
    """The reverse of `gcs_url`; any other location as it is."""
    if not location.startswith(GCS):
        return location
    return "gs://" + urllib.parse.unquote(location.removeprefix(GCS))


def _row(fields: dict[str, str]) -> Published:
    told = ("collection", "model", "head", "top1_from", "timm", "hf", "note")
    texts: dict[str, Any] = {name: fields[name] for name in told}
    return Published(
        preprocess=Preprocess(size=int(fields["resolution"])),
        num_classes=int(fields["num_classes"]) if fields["num_classes"] else None,
        top1=float(fields["top1"]) if fields["top1"] else None,
        source=fields["file"],
        layout="official",
        licence="Apache-2.0",
        recommended=fields["recommended"] == "yes",
        **texts,
    )


def _augreg_model(row: Published) -> str | None:
    fields = parse_augreg(row.file)
    return fields["model"] if fields else None
