"""`compare_pixels`: images as we prepare them against timm's transform and transformers' processor.

The libraries open the files themselves, with Pillow, and prepare them by what our export writes
beside weights; timm by its own registered data config where the model is one of its tags.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.checkpoint import beside, hf_dir
from vit_jax.errors import UserError
from vit_jax.families.preprocess import Preprocess
from vit_jax.families.registry import get as family_of
from vit_jax.families.registry import resolve
from vit_jax.parity.figures import relative_error, top1_agreement
from vit_jax.parity.subject import Subject
from vit_jax.parity.traces import trace_ours

# In levels of 0 to 255: float32 rounds by less, and another kernel, window or rounding gives more.
PIXEL_BAR = 0.01

Prepare = Callable[[Any], np.ndarray]  # Pillow's image to float [H, W, C], normalised


class Pipeline(NamedTuple):
    """How a library prepares an image.

    Attributes:
      name: What it is called in a report.
      config: Where the library's settings came from, in words.
      prepare: What it does.
      known: In words, how its pixels are known to differ from ours.
      counts: Whether the verdict counts it; not for a backend that rounds otherwise by itself.
    """

    name: str
    config: str
    prepare: Prepare
    known: tuple[str, ...] = ()
    counts: bool = True


@dataclasses.dataclass(frozen=True)
class PixelErrors:
    """One library's pixels against ours.

    Attributes:
      pipeline: The library and how it was set.
      config: Where its settings came from.
      largest, mean: |theirs - ours| over all images, in levels of 0 to 255.
      logits: What this changes in our model's logits, as `relative_error` in float64.
      top1_agreement: Share of images that keep their first class.
      known: In words, how it is known to differ.
      counts: Whether the verdict counts it.
    """

    pipeline: str
    config: str
    largest: float
    mean: float
    logits: float
    top1_agreement: float
    known: tuple[str, ...]
    counts: bool

    @property
    def verdict(self) -> str:
        return "same" if self.largest <= PIXEL_BAR else "differs"


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Every library's pixels of some images.

    Attributes:
      images: Their paths.
      preprocess: Our preprocessing.
      pipelines: By library.
    """

    images: tuple[str, ...]
    preprocess: Preprocess
    pipelines: tuple[PixelErrors, ...]

    @property
    def verdict(self) -> str:
        """That of all pipelines that count."""
        return "same" if all(p.verdict == "same" for p in self.pipelines if p.counts) else "differs"

    @property
    def summary(self) -> dict[str, Any]:
        """JSON-ready, what is computed from the fields."""
        each = [dataclasses.asdict(p) | {"verdict": p.verdict} for p in self.pipelines]
        return {"pipelines": each, "verdict": self.verdict}


def compare_pixels(this: Subject, images: Sequence[str | os.PathLike]) -> Pixels:
    """Prepares image files in every way that the model's family has.

    Raises:
      UserError: for a file that is no image, and a model for which no library that is installed
        prepares images.
    """
    from vit_jax.models import from_config

    paths = tuple(os.fspath(path) for path in images)
    ours = np.stack([_ours(this, path) for path in paths])
    ways = pipelines(this)
    prepared = [ours, *(_theirs(way, paths, ours.shape) for way in ways)]
    model = from_config(this.config, num_classes=this.num_classes)
    # All at once, by one program.
    every = trace_ours(model, this.variables, np.concatenate(prepared), [], np.float64).logits
    before, *after = np.split(every, len(prepared))
    std = np.asarray(this.preprocess.std, np.float64)
    return Pixels(
        paths,
        this.preprocess,
        tuple(
            _errors(way, np.abs(pixels - ours) * std * 255, logits, before)
            for way, pixels, logits in zip(ways, prepared[1:], after, strict=True)
        ),
    )


def _theirs(way: Pipeline, paths: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """A library's pixels of the files, which Pillow opens."""
    from PIL import Image

    found = np.stack([way.prepare(Image.open(path).convert("RGB")) for path in paths])
    if found.shape != shape:
        raise UserError(
            f"{way.name} prepares images of {_size(found.shape)} pixels, and we of "
            f"{_size(shape)}: its settings ({way.config}) cannot say this size; give another "
            "--image-size"
        )
    return found.astype(np.float64)


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape[1:3]))


def _errors(
    way: Pipeline, levels: np.ndarray, after: np.ndarray, before: np.ndarray
) -> PixelErrors:
    return PixelErrors(
        way.name,
        way.config,
        float(levels.max()),
        float(levels.mean()),
        relative_error(after, before),
        top1_agreement(after, before),
        way.known,
        way.counts,
    )


def _ours(this: Subject, path: str) -> np.ndarray:
    """Our pixels of a file, float32 [H, W, C]."""
    from vit_jax.input_pipeline.records import read_image
    from vit_jax.input_pipeline.transforms import Decode, preprocess_image

    record = {"image": read_image(path), "name": path}
    return preprocess_image(Decode(this.preprocess.channels)(record)["image"], this.preprocess)


def pipelines(this: Subject) -> list[Pipeline]:
    """Those of the libraries that are installed and have the model's family.

    Raises UserError where there are none.
    """
    if "images" not in family_of(this.config).inputs or this.preprocess.channels != 3:
        raise UserError(f"{this.name} takes no RGB images, and no library prepares them")
    layouts = family_of(this.config).layouts
    makers = {"timm": ("timm", _timm), "hf": ("transformers", _transformers)}
    found: list[Pipeline] = []
    for layout, (package, make) in makers.items():
        if layout in layouts and importlib.util.find_spec(package) is not None:
            found += make(this)
    if not found:
        raise UserError(
            f"no library that is installed prepares images for {this.name}: timm and "
            'transformers do for many models, pip install "vit-jax[torch]"'
        )
    return found


def _timm(this: Subject) -> Iterator[Pipeline]:
    import timm.data

    way, tag = this.preprocess, timm_tag(this)
    config: Any = timm.models.get_pretrained_cfg(tag) if tag else None
    said = f"timm's own of {tag}"
    if config is None:
        described = beside.timm_description(
            this.config, num_classes=1, image_size=way.height_width, preprocess=way
        )
        config, said = described["pretrained_cfg"], "as our export writes it"
    else:
        config = {**config.to_dict(), "input_size": (3, *way.height_width)}
    data: Any = timm.data  # its package declares no names
    transform = data.create_transform(**data.resolve_data_config(pretrained_cfg=config))

    def prepare(image: Any) -> np.ndarray:
        return transform(image).numpy().transpose(1, 2, 0)

    yield Pipeline("timm", said, prepare, tuple(beside.preprocessing_differences(way)))


def timm_tag(this: Subject) -> str | None:
    """`NAME.TAG` of timm for a registered model whose weights have timm's tag; else None."""
    if this.registered is None:
        return None
    spec = resolve(this.registered)
    kept = family_of(this.config).architectures.values()
    of_default = (t for a in kept for t, weights in a.weights.items() if weights is spec.weights)
    tag = this.registered.partition(".")[2] or next(of_default, "")
    return f"{spec.timm_name}.{tag}" if tag and spec.timm_name else None


def _transformers(this: Subject) -> Iterator[Pipeline]:
    from transformers import AutoImageProcessor

    way = this.preprocess
    fields = hf_dir.preprocessor_json(way, way.height_width)
    known = tuple(hf_dir.preprocessing_differences(way, way.height_width))
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / hf_dir.PREPROCESSOR).write_text(json.dumps(fields))
        for name, options in (
            ("transformers, backend pil", {"backend": "pil"}),
            ("transformers, backend torchvision", {}),
        ):
            processor: Any = AutoImageProcessor.from_pretrained(folder, **options)

            def prepare(image: Any, processor: Any = processor) -> np.ndarray:
                found = processor(image, return_tensors="np")["pixel_values"]
                return np.asarray(found[0]).transpose(1, 2, 0)

            counts = bool(options)
            rounds = () if counts else ("torchvision rounds resized pixels otherwise than Pillow",)
            yield Pipeline(name, "as our export writes it", prepare, (*known, *rounds), counts)
