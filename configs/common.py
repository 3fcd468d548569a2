"""Defaults of a training run: the one place where they are declared.

Every field that a run may set stands here. A recipe starts from `get_config()` and changes what
differs; `with_defaults()` completes a config that was written against the original code.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from vit_jax.durations import SECONDS, STEP_UNITS, Duration
from vit_jax.errors import UserError, chosen, suggest
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
    # RUN@STEP, such as 'runs/a@120000': the checkpoint of another run whose whole state this run
    # begins with, the optimizer's and the step included. See vit_jax/train/branching.py.
    config.resume_from = placeholder(str)
    # For AugReg recipes only: a file name without `.npz`, or its first part for the best such file.
    config.model_or_filename = placeholder(str)
    # The constructor fields of the model, for example from ./models.py.
    config.model = None
    # The type to compute in, 'float32' or 'bfloat16'; parameters and losses stay float32.
    config.dtype = "float32"
    # The program that computes attention: 'auto', 'xla', 'blocks' (long rows), 'packed' and 'flash'
    # (TPU) or 'cudnn' (GPU). The last three are an error if they cannot compute the model. See
    # vit_jax/layers/attention/choice.py.
    config.attend = "auto"

    # A TFDS name; a folder {train,test}/<class>/ or <class>/ of images; a table of paths and labels
    # or of pixels (CSV, TSV, JSON lines, Parquet); an `.npz` of arrays; a folder that TFDS or
    # `vit-jax prepare` wrote, or a pattern of ArrayRecord files in such folders. Without a test
    # split, a tenth of each class is held out of training (but not of prepared data and TFDS).
    config.dataset = placeholder(str)
    config.tfds_data_dir = placeholder(str)
    config.tfds_manual_dir = placeholder(str)
    # Several datasets to train on at once, in exact proportions; `dataset` is then the one that is
    # evaluated, and whose classes they have. An entry is a name for messages and overrides
    # (--config.mixture.photos.weight=2), and a dict: {"photos": {"dataset": "data/photos",
    # "weight": 1.0}}, and if need be 'split', 'data_dir' and 'classes', pairs (name of a class
    # there, name of the run's class). See vit_jax/input_pipeline/mixture.py.
    config.mixture = ConfigDict()
    # What is done about classes that `dataset` lacks: 'same' refuses them, 'union' adds them.
    config.mixture_classes = "same"
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
    # This and every other number of steps below may also be a text that follows the batch:
    # '90epochs', '3e8images', or '5%' of the whole run. An epoch has as many images as there are
    # to train on, whatever `data.repeats` is. See vit_jax/durations.py.
    config.total_steps = placeholder(object)
    # Seeds parameters, data order, augmentation and dropout.
    config.seed = 0

    # What is learned: 'classes', those of the images; 'masked_patches', the colours of patches that
    # the model does not see; 'mae', the pixels of patches that are left out; 'diverse_patches',
    # classes and patches that stay apart; 'contrastive', which text belongs to which image. See
    # vit_jax/train/objectives.py.
    config.objective = "classes"
    # For 'masked_patches', see vit_jax/train/masked_patches.py: the share of the patches that are
    # corrupted, the shares of those that become the mask token and another patch; what is
    # predicted, 'mean_colour', 'mean_colour_4x4' or 'pixels'; and which channel counts most in the
    # number of a colour's class, the first ('rgb') or the last ('bgr').
    config.masking = ConfigDict(
        {
            "rate": 0.5,
            "masked": 0.8,
            "swapped": 0.1,
            "target": "mean_colour",
            "packing": "rgb",
        }
    )
    # For 'mae', see vit_jax/train/masked_autoencoder.py: the share of the patches that are removed,
    # and whether the pixels of each patch are normalised before they are predicted.
    config.mae = ConfigDict({"rate": 0.75, "norm_pixels": True})
    # For 'diverse_patches', see vit_jax/train/diverse_patches.py: whose losses, 'released' or
    # 'paper', and the weight of each beside that of the classes; 0 leaves it out.
    config.diversity = ConfigDict(
        {"form": "released", "cosine": 0.0, "contrastive": 1.0, "mixing": 1.0}
    )
    # For 'contrastive', see vit_jax/train/contrastive.py and docs/objectives.md: 'softmax' or
    # 'sigmoid'; how many rows of the scores of a whole batch are computed at a time, at most; and
    # checkpoints, as for `pretrained`, of the towers of images and of texts to start from.
    config.contrastive = ConfigDict(
        {
            "loss": "softmax",
            "rows": 1024,
            "image_tower": placeholder(str),
            "text_tower": placeholder(str),
        }
    )
    # How texts become numbers: the tokenizer's rules, 'bert' or 'sentencepiece'; its vocabulary, a
    # path or an address; and the number of tokens, to which texts are cut or filled up. With
    # 'contrastive', `dataset` has captions in place of classes, see docs/data.md.
    config.text = ConfigDict(
        {"kind": placeholder(str), "vocabulary": placeholder(str), "length": 16}
    )
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
    # Token labelling: a label for every patch beside that of the image, see
    # vit_jax/train/token_labels.py and docs/token_labels.md. `maps` is the folder of the label maps
    # of the training images; None takes each image's own label. The two weights are those of the
    # losses of class token and patches. `ground_truth` mixes the true label into that of the maps,
    # and a `mixtoken_alpha` above 0 has patches exchanged between images.
    config.token_labels = ConfigDict(
        {
            "on": False,
            "maps": placeholder(str),
            "class_weight": 1.0,
            "dense_weight": 1.0,
            "ground_truth": False,
            "mixtoken_alpha": 0.0,
        }
    )
    # The bias of a fresh head; None leaves the bias as the model initialises it. For a sigmoid
    # loss, about -log(number of classes) is useful.
    config.init_head_bias = placeholder(float)

    # 'sgd', 'adamw', 'adafactor', 'lamb', 'lion', 'muon' or 'schedule_free_adamw'. A constant that
    # is None takes the optimizer's default, see vit_jax/train/optimizers.py. Muon has AdamW's
    # constants for what it leaves to AdamW, and its own `optim_momentum`. Schedule-free AdamW wants
    # `decay_type='constant'` after a warm-up, and keeps the average that is evaluated by itself.
    config.optim = "sgd"
    config.optim_b1 = placeholder(float)
    config.optim_b2 = placeholder(float)
    config.optim_eps = placeholder(float)
    config.optim_clip = placeholder(float)
    config.optim_momentum = placeholder(float)
    # The type of the momentum.
    config.optim_dtype = "bfloat16"
    config.weight_decay = 0.0
    # Pairs (regex on parameter names, value). The first regex that matches decides, and every
    # parameter must be matched. The values are factors of the weight decay, factors of the learning
    # rate, and whether a parameter is frozen.
    config.decay_rules = ((r"(?:.*/)?kernel", 1.0), (r".*", 0.0))
    config.lr_rules = ((r".*", 1.0),)
    config.freeze_rules = ((r".*", False),)
    # Low-rank adapters, see vit_jax/train/lora.py: `rank` (0 turns them off), the numerator `alpha`
    # of their factor alpha / rank, the kernels that get one, and regexes on the names of the
    # parameters that are trained besides. All others are frozen.
    config.lora = ConfigDict(
        {
            "rank": 0,
            "alpha": 8.0,
            "targets": ((r"(?:.*/)?(?:query|value)/kernel", True), (r".*", False)),
            "train": (r"(?:.*/)?head\w*/.*",),
        }
    )
    # Pairs (regex on parameter names, whether Muon trains the kernels of these names). AdamW trains
    # all other parameters: embeddings of patches, stems, heads, positions, norms and biases, and
    # kernels that are no matrices, see vit_jax/train/muon.py.
    config.muon_rules = (
        (r"(?:.*/)?(?:embedding|stem|tokenizer|conv_root|head)[^/]*/.*", False),
        (r".*", True),
    )
    # The factor by which the learning rate falls from each block to the block before it.
    config.layer_decay = 1.0
    # Sharpness-aware minimisation, see vit_jax/train/sam.py: the radius `rho` (0 turns SAM off),
    # GSAM's least radius and alpha, and whether each of the `accum_steps` parts is perturbed
    # separately, as the papers do on each device.
    config.sam = ConfigDict({"rho": 0.0, "rho_min": 0.0, "alpha": 0.0, "per_part": False})
    # Gradients of a larger global norm are scaled down to this norm; 0 or None turns this off.
    config.grad_norm_clip = 1.0
    config.base_lr = 0.03
    # The batch that `base_lr` is meant for, and how the rate follows another `batch`: 'none', or
    # times their ratio, 'linear' (Goyal et al. 2017, arXiv:1706.02677), or its root, 'sqrt'.
    config.lr_scaling = ConfigDict({"rule": "none", "batch": 256})
    # 'cosine', 'linear', 'rsqrt' or 'constant', between a linear warm-up and a cooldown to 0, which
    # is 'linear' or '1-sqrt' (Hägele et al. 2024, arXiv:2405.18392).
    config.decay_type = "cosine"
    config.warmup_steps = FieldReference(500, field_type=object)
    config.cooldown_steps = FieldReference(0, field_type=object)
    config.cooldown_type = "linear"
    # The number of steps that the decay 'rsqrt' divides by.
    config.lr_timescale = 10_000

    # The moving average of the parameters, which is evaluated and exported. `decay` is the weight
    # of the old average (0 turns averaging off); with `warmup` the weight at a step is
    # min(decay, (1 + step) / (10 + step)).
    config.ema = ConfigDict({"decay": 0.0, "warmup": True})

    # The number of steps between evaluations, log lines and checkpoints; with 0 they happen after
    # the last step only.
    config.eval_every = FieldReference(100, field_type=object)
    config.progress_every = FieldReference(10, field_type=object)
    # This one may also be a text of time, such as '10min'.
    config.checkpoint_every = FieldReference(1_000, field_type=object)
    # Where the figures of `metrics.jsonl` are shown besides: 'wandb', 'mlflow' and 'trackio', each
    # at most once; see vit_jax/train/trackers. Keys and servers come from the environment.
    config.trackers = ()
    # (first step, last step) to trace for TensorBoard's profiler, counted from 1; () for none.
    config.profile = ()
    # The number of newest checkpoints to keep; 0 keeps all.
    config.keep_checkpoints = 3
    # At every multiple of so many steps a checkpoint is saved and kept for good; 0 for none.
    config.keep_every = FieldReference(0, field_type=object)
    # A figure of an evaluation, such as 'accuracy_test', 'loss_test' or 'val/accuracy'. Among the
    # checkpoints at evaluated steps, the one with the best figure is kept too.
    config.keep_best = placeholder(str)
    # Evaluations beside that of the test split, by the names that their figures begin with:
    # {"val": {"split": "train[99%:]"}, "10shot": {"kind": "fewshot", "dataset": "cifar100"}}. The
    # fields of each are those of EVALUATION and of its kind in EVALUATION_KINDS, below.
    config.evals = ConfigDict()

    # What follows an update that is not finite: 'stop' ends the run. 'skip' leaves the update out,
    # and ends the run after `max_skips` in a row. 'rollback' goes back to the newest checkpoint and
    # leaves out the batches up to the update, and ends the run after `max_rollbacks` to the same
    # checkpoint. A loss above `factor` times the median of the last `window` losses (0 turns this
    # off) is a spike, which is treated as 'rollback' says. See docs/distributed.md.
    config.on_nonfinite = "stop"
    config.spike = ConfigDict({"factor": 0.0, "window": 100})
    config.max_skips = 10
    config.max_rollbacks = 5
    # The number of steps between log lines with the norms of each block; 0 for none.
    config.log_norms_every = 0

    # When a run counts as hanging, so that it writes its threads' stacks and ends with status 142:
    # no step ends within `factor` times the median time of a step, and within `at_least` seconds;
    # or it compiles, evaluates or saves for longer than so many seconds. 0 is no limit. `grace` is
    # how many seconds a run that hangs lives on after SIGTERM.
    config.watchdog = ConfigDict(
        {
            "factor": 20.0,
            "at_least": 300.0,
            "compiling": 3600.0,
            "evaluating": 10800.0,
            "saving": 3600.0,
            "grace": 60.0,
        }
    )

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
            # Where there is RandAugment: its operations, their magnitude (its standard
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


# What an entry of `config.evals` says, whatever its kind is.
EVALUATION: dict[str, Any] = {
    "kind": "accuracy",
    # As `--dataset` and `--split` of `vit-jax eval`; None takes the run's own. The classes are
    # found among those of the run by their names, or with `by_position` by their order.
    "dataset": None,
    "split": None,
    "by_position": False,
    # Steps between two evaluations; None takes `config.eval_every`, and 0 makes none of these.
    "every": None,
    # Steps at which it is made once; and whether it is made after the last step.
    "at": (),
    "at_end": True,
    # 'best', the moving average if the run keeps one; 'raw' or 'ema', one of the two.
    "weights": "best",
    # Whether `vit-jax eval --watch` makes it, on another host, and not the run itself.
    "standalone": False,
}
# What only the kind takes. 'accuracy' is that of the head; 'fewshot' and 'knn' judge the features,
# on a dataset of any classes, see vit_jax/evaluate/fewshot.py. The others are for 'contrastive'.
EVALUATION_KINDS: dict[str, dict[str, Any]] = {
    # As `config.data.real_labels`.
    "accuracy": {"real_labels": None},
    # The split to learn from, examples of each class (0 for all), the seed that draws them, and
    # strengths of the penalty, one of which cross-validation chooses; () takes the usual ones.
    "fewshot": {"train_split": None, "shots": 10, "seed": 0, "l2": ()},
    # Neighbours that vote, and the temperature of their votes.
    "knn": {"train_split": None, "k": 20, "temperature": 0.07},
    # For 'contrastive', on a dataset of captions: all of them and their images find one another.
    "retrieval": {},
    # For 'contrastive', on a dataset of any classes: how the texts of a class are averaged, and the
    # prompts if others than usual, see vit_jax/evaluate/zeroshot.py.
    "zeroshot": {"averaging": "big_vision", "prompts": None},
}
EVALUATION_RANGES: dict[str, Range] = {
    "every": Duration(0, also=(None,)),
    "at": Duration(1),
    "shots": integer(0),
    "seed": integer(0),
    "l2": above(0),
    "k": COUNT,
    "temperature": above(0),
}

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
    "total_steps": Duration(1, also=(None,), units=STEP_UNITS[:-1]),
    "seed": Range(0, 2**32 - 1, integer=True),  # JAX drops what is above 32 bits in silence.
    "label_smoothing": RATE,
    "masking.rate": Range(0, 1, above=True),
    "masking.masked": SHARE,
    "masking.swapped": SHARE,
    "mae.rate": Range(0, 1, above=True, below=True),
    "diversity.cosine": at_least(0),
    "diversity.contrastive": at_least(0),
    "diversity.mixing": at_least(0),
    "contrastive.rows": COUNT,
    "text.length": COUNT,
    "mixing.mixup_alpha": at_least(0),
    "mixing.cutmix_alpha": at_least(0),
    "mixing.probability": SHARE,
    "mixing.switch": SHARE,
    "distill.alpha": SHARE,
    "distill.tau": above(0),
    "token_labels.class_weight": at_least(0),
    "token_labels.dense_weight": at_least(0),
    "token_labels.mixtoken_alpha": at_least(0),
    "init_head_bias": Range(also=(None,)),
    "optim_b1": Range(0, 1, below=True, also=(None,)),
    "optim_b2": Range(0, 1, below=True, also=(None,)),
    "optim_eps": at_least(0, also=(None,)),
    "optim_clip": at_least(0, also=(None,)),
    "optim_momentum": Range(0, 1, below=True, also=(None,)),
    "weight_decay": at_least(0),
    "decay_rules": at_least(0, rules=True),
    "lr_rules": at_least(0, rules=True),
    "lora.rank": integer(0),
    "lora.alpha": Range(0, above=True),
    "layer_decay": Range(0, 1, above=True),
    "sam.rho": at_least(0),
    "sam.rho_min": at_least(0),
    "sam.alpha": at_least(0),
    "grad_norm_clip": at_least(0, also=(None,)),
    "base_lr": at_least(0),
    "lr_scaling.batch": COUNT,
    "warmup_steps": Duration(0),
    "cooldown_steps": Duration(0),
    "lr_timescale": COUNT,
    "ema.decay": RATE,
    "eval_every": Duration(0),
    "progress_every": Duration(0),
    "checkpoint_every": Duration(0, units=(*STEP_UNITS, *SECONDS)),
    "profile": COUNT,
    "keep_checkpoints": integer(0),
    "keep_every": Duration(0),
    "spike.factor": Range(1, above=True, also=(0.0,)),
    "spike.window": COUNT,
    "watchdog.factor": Range(1, also=(0.0,)),
    "watchdog.at_least": above(0),
    "watchdog.compiling": at_least(0),
    "watchdog.evaluating": at_least(0),
    "watchdog.saving": at_least(0),
    "watchdog.grace": at_least(0),
    "max_skips": COUNT,
    "max_rollbacks": COUNT,
    "log_norms_every": integer(0),
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
    given = {k: v for k, v in config.items() if k not in ("model", "evals")}
    if given.get("pp") is None:
        given.pop("pp", None)
    known = dict(flatten(complete, prefix=()))
    for name, _ in flatten(given, prefix=()):
        if name not in known and not name.startswith(("model.", "mixture.")):
            raise UserError(f"config has no field {name!r}.{suggest(name, known)}")
    check(dict(flatten(given, prefix=())))
    model: Any = complete.model or {}
    fields.check(model, prefix="config.model.")
    complete.update({k: ConfigDict(v) if isinstance(v, Mapping) else v for k, v in given.items()})
    evals: Any = config.get("evals") or {}
    complete.evals = {n: evaluation(n, e) for n, e in evals.items()}
    return complete.lock()


def evaluation(name: str, given: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """A complete entry of `config.evals`: fields that `given` lacks get their default.

    Raises:
      UserError: for a name that cannot begin a figure's, an unknown kind, a field that its kind
        does not have, and a number out of the range of its field.
    """
    where = f"config.evals.{name}"
    if not re.fullmatch(r"[\w.-]+", name) or name == "test":
        raise UserError(
            f"{where}: an evaluation is named by letters, digits, '_', '-' and '.'; "
            "'test' is the one of config.pp.test"
        )
    if not isinstance(given, (Mapping, ConfigDict)):
        raise UserError(f"{where} must be a group of fields, got {given!r}")
    kind: Any = given.get("kind", EVALUATION["kind"])
    complete = EVALUATION | chosen(kind, EVALUATION_KINDS, f"{where}.kind")
    for field, value in given.items():
        if field not in complete:
            raise UserError(
                f"{where} of kind {kind!r} has no field {field!r}.{suggest(field, complete)} "
                f"Fields: {', '.join(complete)}"
            )
        if field in EVALUATION_RANGES:
            EVALUATION_RANGES[field].require(f"{where}.{field}", value)
        elif not isinstance(value, _types(complete[field])):
            raise UserError(f"{where}.{field} must be like {complete[field]!r}, got {value!r}")
    return complete | {k: _plural(v) if k in ("at", "l2") else v for k, v in given.items()}


def _types(default: Any) -> tuple[type, ...]:
    return (str, type(None)) if default is None else (type(default),)


def _plural(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def flatten(
    config: Mapping[str, Any] | ConfigDict, prefix: tuple[str, ...] = ("config",)
) -> Iterable[tuple[str, Any]]:
    """('config.pp.crop', 384), … : one pair for every leaf, as the command line spells it."""
    for name, value in config.items():
        if isinstance(value, (Mapping, ConfigDict)):
            yield from flatten(value, (*prefix, name))
        else:
            yield ".".join((*prefix, name)), value
