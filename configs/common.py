"""Defaults of a training run: the one place where they are declared.

Every field that a run may set stands here. A recipe starts from `get_config()` and changes what
differs; `with_defaults()` completes a config that was written against the original code.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax.errors import UserError, suggest


def get_config() -> ConfigDict:
    """A locked config: a misspelt field is an error."""
    config = ConfigDict()

    # A checkpoint to start from, of any format that `vit-jax convert` reads: a file or its address,
    # a directory, or the workdir of another run.
    config.pretrained = placeholder(str)
    # Without it, folder of `<model_name>.npz` to start from; None or '' trains from scratch.
    config.pretrained_dir = "."
    # AugReg recipes only: a full file name without `.npz`, or its first part for the best one.
    config.model_or_filename = placeholder(str)
    # Constructor fields of the model, from ./models.py.
    config.model = None
    # Type to compute in, 'float32' or 'bfloat16'; parameters and losses stay float32.
    config.dtype = "float32"
    # What computes attention: 'auto', 'xla', 'packed' (TPU) or 'cudnn' (GPU); the last two are an
    # error where they cannot compute the model. See vit_jax/layers/attention/choice.py.
    config.attend = "auto"

    # A TFDS name, or a folder {train,test}/<class>/*.jpg.
    config.dataset = placeholder(str)
    config.tfds_data_dir = placeholder(str)
    config.tfds_manual_dir = placeholder(str)
    config.pp = _preprocessing()
    config.data = ConfigDict(
        {
            # Processes that decode and augment images; 0 does it in threads of this process.
            "num_workers": 0,
            # What a damaged image does: 'raise' ends the run; 'skip' takes the next one in
            # training, leaves it out of evaluation, and names it at the end.
            "on_error": "raise",
            # Repeated augmentation: copies of an image in a batch, each augmented differently.
            "repeats": 1,
            # ImageNet-ReaL's `real.json` (arXiv:2006.07159): test images, which must be ImageNet's
            # validation images under their own names, have its labels: several, one or none.
            "real_labels": placeholder(str),
        }
    )
    # Kept for the original's configs. Shuffling here is global and needs no buffer.
    config.shuffle_buffer = 50_000
    # Batches that lie ready on the devices.
    config.prefetch = 2

    # Devices along each axis; -1 is the rest. See vit_jax/train/sharding.py.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "model": 1})
    # Pairs (regex on parameter names, axes of the dimensions), tried before the default ones.
    config.sharding_rules = ()
    # On TPU: weights that `mesh` splits are gathered in one piece before a product. False lets the
    # compiler multiply part by part, and read large activations once a part.
    config.gather_whole = True

    # Images per optimizer update, over all devices, and per evaluation step.
    config.batch = 512
    config.batch_eval = 512
    # Images that a device evaluates at once. It is the one shape that the model is evaluated in, so
    # that figures are the same to the last bit for any number of devices and any `batch_eval`.
    config.batch_eval_device = 16
    # Parts into which a batch is cut to save memory.
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
    # Learning from a teacher too, see vit_jax/train/distill.py: 'none', 'soft' or 'hard', its share
    # of the loss, the temperature of 'soft', the teacher's checkpoint of any format, and its name
    # where that does not tell.
    config.distill = ConfigDict(
        {
            "kind": "none",
            "alpha": 0.5,
            "tau": 1.0,
            "teacher": placeholder(str),
            "teacher_checkpoint": placeholder(str),
        }
    )
    # Bias of a fresh head; None leaves it 0. About -log(classes) for a sigmoid loss.
    config.init_head_bias = placeholder(float)

    # 'sgd', 'adamw', 'adafactor', 'lamb' or 'lion', and its constants; None takes its own.
    config.optim = "sgd"
    config.optim_b1 = placeholder(float)
    config.optim_b2 = placeholder(float)
    config.optim_eps = placeholder(float)
    config.optim_clip = placeholder(float)
    # Type of the momentum.
    config.optim_dtype = "bfloat16"
    config.weight_decay = 0.0
    # Pairs (regex on parameter names, value); the first match holds, all must be covered. Factors
    # of the weight decay and of the learning rate, and what stays as it is.
    config.decay_rules = ((r"(?:.*/)?kernel", 1.0), (r".*", 0.0))
    config.lr_rules = ((r".*", 1.0),)
    config.freeze_rules = ((r".*", False),)
    # Factor of the learning rate from each block to the one before it; 1 for none.
    config.layer_decay = 1.0
    # Sharpness-aware minimisation: radius (0 for none), GSAM's least radius and alpha, and whether
    # each of the `accum_steps` parts is perturbed on its own, as the papers do on each device.
    config.sam = ConfigDict({"rho": 0.0, "rho_min": 0.0, "alpha": 0.0, "per_part": False})
    # Gradients are scaled down to this global norm; 0 or None leaves them.
    config.grad_norm_clip = 1.0
    config.base_lr = 0.03
    # 'cosine', 'linear', 'rsqrt' or 'constant', between a linear warm-up and a linear cooldown.
    config.decay_type = "cosine"
    config.warmup_steps = 500
    config.cooldown_steps = 0
    # Steps of 'rsqrt'.
    config.lr_timescale = 10_000

    # Moving average of the parameters, which is evaluated and exported: weight of the old average
    # (0 for none), and whether it grows to that from min(decay, (1 + step) / (10 + step)).
    config.ema = ConfigDict({"decay": 0.0, "warmup": True})

    # Steps between evaluations, log lines and checkpoints; 0 leaves them to the last step.
    config.eval_every = 100
    config.progress_every = 10
    config.checkpoint_every = 1_000
    # (first step, last step) to trace for TensorBoard's profiler, counted from 1; () for none.
    config.profile = ()
    # Checkpoints to keep, the newest; 0 keeps all.
    config.keep_checkpoints = 3
    # A figure of the evaluation, 'accuracy_test' or 'loss_test': the checkpoint where it is best
    # stays too, of those at steps that are evaluated.
    config.keep_best = placeholder(str)

    # 'train' or 'inference_time'.
    config.trainer = "train"
    return config.lock()


def _preprocessing() -> ConfigDict:
    return ConfigDict(
        {
            # Splits of a TFDS dataset.
            "train": "train",
            "test": "test",
            # Height and width in pixels that the model gets.
            "crop": 224,
            # Size to resize to before the crop; None: training crops the original image,
            # evaluation squashes it to `crop`.
            "resize": placeholder(int),
            # 'bilinear' without antialiasing, the original's, or 'bicubic' with it.
            "resize_method": "bilinear",
            # 'squash' ignores the aspect ratio; 'shortest' keeps it, and sets the shorter side.
            "resize_shape": "squash",
            # (x / 255 - mean) / std, per channel.
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            # 'inception' (window of `area_min` to 100 % of the area, flip), 'crop' (random crop
            # of the resized image, flip), 'digits' (shift, rotation), 'none', or one of the other
            # ways in ../vit_jax/input_pipeline/recipes.py.
            "augment": "inception",
            # Least share of the image's area that a random window has.
            "area_min": 0.05,
            # Of 'randaug' and 'deit': RandAugment's operations, their magnitude (its standard
            # deviation), and whose scale that is on: 'torchvision' (30 is the strongest), 'timm'
            # or 'big_vision' (10 is).
            "randaug": {
                "num_ops": 2,
                "magnitude": 9.0,
                "magnitude_std": 0.0,
                "space": "torchvision",
            },
            # Of 'autoaug': lines of (operation, probability, level of 0 to 9), two or so each;
            # None is the published list for ImageNet.
            "autoaug_policy": placeholder(tuple),
            # Brightness, contrast and saturation change by up to this; 0 leaves them.
            "color_jitter": 0.0,
            # Probability of random erasing.
            "erasing": 0.0,
        }
    )


def with_drop_path(model: ConfigDict, rate: float) -> ConfigDict:
    """A copy of a model's config with this stochastic depth."""
    model = ConfigDict(model.to_dict())
    holder = model.transformer if "transformer" in model else model
    holder.drop_path_rate = rate
    return model


# A part of the training split stays out, for validation.
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
      UserError: for a field that no run has.
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
