"""Defaults of a training run: the one place where they are declared.

Every field that a run may set stands here. A recipe starts from `get_config()` and changes what
differs; `with_defaults()` completes a config that was written against the original code.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from vit_jax.errors import UserError, suggest
from vit_jax.families import fields
from vit_jax.ranges import ANY, COUNT, RATE, SHARE, Range, above, at_least, integer


def get_config() -> ConfigDict:
    """The defaults of every field; the config is locked, so that a misspelt field is an error."""
    config = ConfigDict()

    # A checkpoint to start from, of any format that `vit-jax convert` reads: a file or its address,
    # a directory, or the workdir of another run.
    config.pretrained = placeholder(str)
    # If `pretrained` is not set, the folder of the checkpoint `<model_name>.npz` to start from;
    # None or '' trains from scratch.
    config.pretrained_dir = "."
    # For AugReg recipes only: a file name without `.npz`, or its first part for the best such file.
    config.model_or_filename = placeholder(str)
    # The constructor fields of the model, for example from ./models.py.
    config.model = None
    # The type to compute in, 'float32' or 'bfloat16'; parameters and losses stay float32.
    config.dtype = "float32"
    # The program that computes attention: 'auto', 'xla', 'packed' (TPU) or 'cudnn' (GPU). The last
    # two are an error if they cannot compute the model. See vit_jax/layers/attention/choice.py.
    config.attend = "auto"

    # A TFDS name; a folder {train,test}/<class>/ or <class>/ of images; a table of paths and labels
    # or of pixels (CSV, TSV, JSON lines, Parquet); or an `.npz` of arrays. Without a test split, a
    # tenth of each class is held out of training.
    config.dataset = placeholder(str)
    config.tfds_data_dir = placeholder(str)
    config.tfds_manual_dir = placeholder(str)
    config.pp = _preprocessing()
    config.data = ConfigDict(
        {
            # Processes that decode and augment images; 0 does it in threads of this process.
            "num_workers": 0,
            # How a damaged image is treated: 'raise' ends the run. 'skip' takes the next image in
            # training, leaves the image out of evaluation, and names it at the end of the run.
            "on_error": "raise",
            # Repeated augmentation: the number of copies of an image, each augmented differently.
            "repeats": 1,
            # ImageNet-ReaL's `real.json` (arXiv:2006.07159): test images, which must be ImageNet's
            # validation images under their own names, have its labels: several, one or none.
            "real_labels": placeholder(str),
        }
    )
    # Kept for the original's configs. Shuffling here is global and needs no buffer.
    config.shuffle_buffer = 50_000
    # The number of batches that lie ready on the devices.
    config.prefetch = 2

    # The number of devices along each axis of the mesh; -1 takes all remaining devices. See
    # vit_jax/devices/sharding.py.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "model": 1})
    # Pairs (regex on parameter names, axes of the dimensions), tried before the default ones.
    config.sharding_rules = ()
    # On TPU, whether weights that `mesh` splits are gathered in one piece before a product. False
    # lets the compiler multiply part by part, and read large activations again for each part.
    config.gather_whole = True

    # Images per optimizer update, over all devices, and per evaluation step.
    config.batch = 512
    config.batch_eval = 512
    # The number of images that a device evaluates at once. The model is evaluated in this shape
    # only, so that figures are the same to the last bit for any number of devices and `batch_eval`.
    config.batch_eval_device = 16
    # The number of parts into which a training batch is cut to save memory.
    config.accum_steps = 8
    config.total_steps = placeholder(int)
    # Seeds parameters, data order, augmentation and dropout.
    config.seed = 0

    # 'softmax', 'sigmoid' or 'multilabel', and the share of the labels spread over all classes.
    config.loss = "softmax"
    config.label_smoothing = 0.0
    # See vit_jax/train/mixing.py. An alpha of 0 turns its kind off.
    config.mixing = ConfigDict(
        {
            "mixup_alpha": 0.0,
            "cutmix_alpha": 0.0,
            "probability": 1.0,
            "switch": 0.5,
            "per_example": False,
        }
    )
    # Learning also from a teacher, see vit_jax/train/distill.py. `kind` is 'none', 'soft' or
    # 'hard', `alpha` the teacher's share of the loss, and `tau` the temperature of 'soft'.
    # `teacher_checkpoint` may have any readable format; `teacher` names its model if the
    # checkpoint alone does not tell. The classes of teacher and dataset are matched by name;
    # `by_position` takes class i for output i, whatever their names are.
    config.distill = ConfigDict(
        {
            "kind": "none",
            "alpha": 0.5,
            "tau": 1.0,
            "teacher": placeholder(str),
            "teacher_checkpoint": placeholder(str),
            "by_position": False,
        }
    )
    # The bias of a fresh head; None leaves the bias as the model initialises it. For a sigmoid
    # loss, about -log(number of classes) is useful.
    config.init_head_bias = placeholder(float)

    # 'sgd', 'adamw', 'adafactor', 'lamb' or 'lion'. A constant that is None takes the optimizer's
    # default, see vit_jax/train/optimizers.py.
    config.optim = "sgd"
    config.optim_b1 = placeholder(float)
    config.optim_b2 = placeholder(float)
    config.optim_eps = placeholder(float)
    config.optim_clip = placeholder(float)
    # The type of the momentum.
    config.optim_dtype = "bfloat16"
    config.weight_decay = 0.0
    # Pairs (regex on parameter names, value). The first regex that matches decides, and every
    # parameter must be matched. The values are factors of the weight decay, factors of the learning
    # rate, and whether a parameter is frozen.
    config.decay_rules = ((r"(?:.*/)?kernel", 1.0), (r".*", 0.0))
    config.lr_rules = ((r".*", 1.0),)
    config.freeze_rules = ((r".*", False),)
    # The factor by which the learning rate falls from each block to the block before it.
    config.layer_decay = 1.0
    # Sharpness-aware minimisation, see vit_jax/train/sam.py: the radius `rho` (0 turns SAM off),
    # GSAM's least radius and alpha, and whether each of the `accum_steps` parts is perturbed
    # separately, as the papers do on each device.
    config.sam = ConfigDict({"rho": 0.0, "rho_min": 0.0, "alpha": 0.0, "per_part": False})
    # Gradients of a larger global norm are scaled down to this norm; 0 or None turns this off.
    config.grad_norm_clip = 1.0
    config.base_lr = 0.03
    # 'cosine', 'linear', 'rsqrt' or 'constant', between a linear warm-up and a linear cooldown.
    config.decay_type = "cosine"
    config.warmup_steps = 500
    config.cooldown_steps = 0
    # The number of steps that the decay 'rsqrt' divides by.
    config.lr_timescale = 10_000

    # The moving average of the parameters, which is evaluated and exported. `decay` is the weight
    # of the old average (0 turns averaging off); with `warmup` the weight at a step is
    # min(decay, (1 + step) / (10 + step)).
    config.ema = ConfigDict({"decay": 0.0, "warmup": True})

    # The number of steps between evaluations, log lines and checkpoints; with 0 they happen after
    # the last step only.
    config.eval_every = 100
    config.progress_every = 10
    config.checkpoint_every = 1_000
    # (first step, last step) to trace for TensorBoard's profiler, counted from 1; () for none.
    config.profile = ()
    # The number of newest checkpoints to keep; 0 keeps all.
    config.keep_checkpoints = 3
    # A figure of the evaluation, 'accuracy_test' or 'loss_test'. Among the checkpoints at evaluated
    # steps, the one with the best figure is kept too.
    config.keep_best = placeholder(str)

    # The program that the config is for, 'train' or 'inference_time'.
    config.trainer = "train"
    return config.lock()


def _preprocessing() -> ConfigDict:
    return ConfigDict(
        {
            # Splits of a TFDS dataset.
            "train": "train",
            "test": "test",
            # Images of this number of channels: 3 reads RGB, 1 grey; others as they are stored.
            "channels": 3,
            # What the model gets, in pixels: the side of a square, or (height, width).
            "crop": FieldReference(224, field_type=object),
            # The size in pixels to resize to before the crop, a side or (height, width) as `crop`.
            # With None, training crops the original image, and evaluation squashes the image to
            # `crop`.
            "resize": placeholder(object),
            # 'bilinear' without antialiasing, the original's, or 'bicubic' with it.
            "resize_method": "bilinear",
            # 'squash' ignores the aspect ratio; 'shortest' keeps it, and sets the shorter side.
            "resize_shape": "squash",
            # (x / 255 - mean) / std, per channel; equal numbers stand for any number of channels.
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            # 'inception' (window of `area_min` to 100 % of the area, flip), 'crop' (random crop
            # of the resized image, flip), 'digits' (shift, rotation), 'none', or one of the other
            # ways in ../vit_jax/input_pipeline/recipes.py.
            "augment": "inception",
            # The least share of the image's area that a random window covers.
            "area_min": 0.05,
            # For 'randaug' and 'deit': RandAugment's operations, their magnitude (its standard
            # deviation), and whose scale that is on: 'torchvision' (30 is the strongest), 'timm'
            # or 'big_vision' (10 is).
            "randaug": {
                "num_ops": 2,
                "magnitude": 9.0,
                "magnitude_std": 0.0,
                "space": "torchvision",
            },
            # For 'autoaug': lines of (operation, probability, level of 0 to 9), two or so each;
            # None is the published list for ImageNet.
            "autoaug_policy": placeholder(tuple),
            # Brightness, contrast and saturation change by up to this; 0 leaves them.
            "color_jitter": 0.0,
            # The probability of random erasing.
            "erasing": 0.0,
        }
    )


# The range of every field that is a number. Those of a model's fields are declared in
# vit_jax/families/fields.py.
RANGES = {
    "pp.crop": COUNT,
    "pp.resize": integer(1, None),
    "pp.mean": ANY,
    "pp.std": above(0),
    "pp.area_min": Range(0, 1, above=True),
    "pp.randaug.num_ops": COUNT,
    "pp.randaug.magnitude": at_least(0),
    "pp.randaug.magnitude_std": at_least(0),
    "pp.channels": COUNT,
    "pp.color_jitter": SHARE,
    "pp.erasing": SHARE,
    "data.num_workers": integer(0),
    "data.repeats": COUNT,
    "shuffle_buffer": integer(0),
    "prefetch": integer(0),
    "mesh.data": integer(1, -1),
    "mesh.fsdp": integer(1, -1),
    "mesh.model": integer(1, -1),
    "batch": COUNT,
    "batch_eval": COUNT,
    "batch_eval_device": COUNT,
    "accum_steps": COUNT,
    "total_steps": integer(1, None),
    "seed": Range(0, 2**32 - 1, integer=True),  # JAX drops what is above 32 bits in silence.
    "label_smoothing": RATE,
    "mixing.mixup_alpha": at_least(0),
    "mixing.cutmix_alpha": at_least(0),
    "mixing.probability": SHARE,
    "mixing.switch": SHARE,
    "distill.alpha": SHARE,
    "distill.tau": above(0),
    "init_head_bias": Range(also=(None,)),
    "optim_b1": Range(0, 1, below=True, also=(None,)),
    "optim_b2": Range(0, 1, below=True, also=(None,)),
    "optim_eps": at_least(0, also=(None,)),
    "optim_clip": at_least(0, also=(None,)),
    "weight_decay": at_least(0),
    "decay_rules": at_least(0, rules=True),
    "lr_rules": at_least(0, rules=True),
    "layer_decay": Range(0, 1, above=True),
    "sam.rho": at_least(0),
    "sam.rho_min": at_least(0),
    "sam.alpha": at_least(0),
    "grad_norm_clip": at_least(0, also=(None,)),
    "base_lr": at_least(0),
    "warmup_steps": integer(0),
    "cooldown_steps": integer(0),
    "lr_timescale": COUNT,
    "ema.decay": RATE,
    "eval_every": integer(0),
    "progress_every": integer(0),
    "checkpoint_every": integer(0),
    "profile": COUNT,
    "keep_checkpoints": integer(0),
}


def check(values: Mapping[str, Any]) -> None:
    """Raises UserError for a value out of the range of its field.

    Args:
      values: Values by the dotted names of their fields, such as 'mixing.switch'.
    """
    for field, value in values.items():
        if field in RANGES:
            RANGES[field].require(f"config.{field}", value)


def with_drop_path(model: ConfigDict, rate: float) -> ConfigDict:
    """A copy of a model's config with the stochastic depth `rate`."""
    model = ConfigDict(model.to_dict())
    holder = model.transformer if "transformer" in model else model
    holder.drop_path_rate = rate
    return model


# Each preset keeps a part of the training split out of training, for validation.
DATASET_PRESETS = {
    "cifar10": {
        "total_steps": 10_000,
        "pp": {"train": "train[:98%]", "test": "test", "crop": 384},
    },
    "cifar100": {
        "total_steps": 10_000,
        "pp": {"train": "train[:98%]", "test": "test", "crop": 384},
    },
    "imagenet2012": {
        "total_steps": 20_000,
        "pp": {"train": "train[:99%]", "test": "validation", "crop": 384},
    },
}


def with_dataset(config: ConfigDict, dataset: str) -> ConfigDict:
    """A copy of `config` with the preset of `dataset`.

    Raises:
      UserError: for a dataset without a preset.
    """
    if dataset not in DATASET_PRESETS:
        raise UserError(
            f"no preset for dataset {dataset!r}.{suggest(dataset, DATASET_PRESETS)} There are "
            f"presets for {', '.join(DATASET_PRESETS)}; any other dataset is set by "
            "--config.dataset, --config.pp and --config.total_steps."
        )
    config = copy.deepcopy(config).unlock()  # keeps placeholders, which the command line needs
    config.dataset = dataset
    config.update(DATASET_PRESETS[dataset])
    return config.lock()


def with_defaults(config: ConfigDict) -> ConfigDict:
    """A complete copy: fields that `config` lacks get their default.

    Raises:
      UserError: for a field that no run has, and for a number out of the range of its field.
    """
    config = config.copy_and_resolve_references()
    complete = get_config().unlock()
    complete.model = config.get("model")
    given = {k: v for k, v in config.items() if k != "model"}
    if given.get("pp") is None:
        given.pop("pp", None)
    known = dict(flatten(complete, prefix=()))
    for name, _ in flatten(given, prefix=()):
        if name not in known and not name.startswith("model."):
            raise UserError(f"config has no field {name!r}.{suggest(name, known)}")
    check(dict(flatten(given, prefix=())))
    model: Any = complete.model or {}
    fields.check(model, prefix="config.model.")
    complete.update({k: ConfigDict(v) if isinstance(v, Mapping) else v for k, v in given.items()})
    return complete.lock()


def flatten(
    config: Mapping[str, Any] | ConfigDict, prefix: tuple[str, ...] = ("config",)
) -> Iterable[tuple[str, Any]]:
    """('config.pp.crop', 384), … : one pair for every leaf, as the command line spells it."""
    for name, value in config.items():
        if isinstance(value, (Mapping, ConfigDict)):
            yield from flatten(value, (*prefix, name))
        else:
            yield ".".join((*prefix, name)), value
