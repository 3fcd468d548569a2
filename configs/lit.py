r"""Trains a text tower beside an image tower that is done and locked (LiT).

    vit-jax train --workdir=runs/lit --config=configs/lit.py:b16b_2 --config.dataset=coco_captions
    vit-jax train … --config.contrastive.loss=sigmoid

Zhai et al. 2022 (arXiv:2111.07991), with the values of big_vision's recipe for a small run on
MS-COCO: 5,000 steps at 4,096 pairs; Adam, rate 1e-3, cosine to 0 after a warm-up over 3 % of the
steps; gradients clipped to the norm 1 over what is trained; weight decay 0.01 of kernels alone,
which follows the schedule and not the rate, so that here it is 0.01 / 1e-3; images squashed to 224
pixels, flipped, and changed by RandAugment (2 operations, magnitude 10). In a run of fewer than
3,334 steps theirs warms up over 100. The model starts with the factor 10 of the scores. The sigmoid
loss (Zhai et al. 2023, arXiv:2303.15343) adds a bias to them, at first -2.71, and there is room for
it from the start.

The image tower comes from the AugReg checkpoint on ImageNet-21k that they take. The text tower
starts from scratch: theirs starts from BERT, --config.contrastive.text_tower=CHECKPOINT. Text
towers that are no BERT are trained by Adafactor. B16B has a head of the image tower, which is drawn
and trained; all else below `img` is locked: it has no optimizer state, and drops nothing.
"""

from ml_collections import ConfigDict

from vit_jax.configs import common, models
from vit_jax.errors import chosen

_B16 = "gs://vit_models/augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz"
_L16 = "gs://vit_models/augreg/L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.npz"
_VOCABULARY = "gs://vit_models/lit/{}"
# Short name -> the model's name, the checkpoint of its image tower, the file of its vocabulary.
_MODELS = {
    "b16b": ("LiT-B16B", _B16, "LiT-B16B.txt"),
    "b16b_2": ("LiT-B16B_2", _B16, "LiT-B16B_2.txt"),
    "l16l": ("LiT-L16L", _L16, "LiT-L16L.txt"),
    "l16s": ("LiT-L16S", _L16, "LiT-L16S.model"),
    "l16ti": ("LiT-L16Ti", _L16, "LiT-L16Ti.model"),
}


def get_config(model: str = "b16b_2") -> ConfigDict:
    """`model` is `b16b`, `b16b_2`, `l16l`, `l16s` or `l16ti`."""
    name, image_tower, vocabulary = chosen(model, _MODELS, "model")
    config = common.get_config()
    config.pretrained_dir = None
    config.model = as_trained(models.MODEL_CONFIGS[name])
    config.objective = "contrastive"
    config.contrastive.image_tower = image_tower
    config.text.kind = config.model.pp.tokenizer_name
    config.text.vocabulary = _VOCABULARY.format(vocabulary)
    config.text.length = config.model.pp.max_len
    config.freeze_rules = locked(config.model)
    config.dataset = "coco_captions"
    config.pp.train, config.pp.test, config.pp.augment = "train", "val", "squash_randaug"
    config.pp.randaug.update({"num_ops": 2, "magnitude": 10.0, "space": "big_vision"})
    config.optim = "adamw" if config.model.text_model == "bert" else "adafactor"
    config.optim_dtype = "float32" if config.optim == "adamw" else "bfloat16"
    config.base_lr, config.weight_decay = 1e-3, 10.0
    config.batch, config.batch_eval, config.accum_steps = 4_096, 512, 1
    config.total_steps, config.warmup_steps = 5_000, "3%"
    config.dtype = "bfloat16"
    config.eval_every = config.checkpoint_every = 500
    return config


def as_trained(model: ConfigDict) -> ConfigDict:
    """A copy of a LiT's config as training begins: what is dropped, factor and bias of the scores.

    A bias changes nothing in the softmax loss, and without decay it stays as it is.
    """
    model = ConfigDict(model.to_dict())
    model.temperature_init, model.bias_init = 10.0, -2.71
    if "transformer" in model.image:
        model.image.transformer.dropout_rate = 0.0
        model.image.transformer.attention_dropout_rate = 0.0
    if model.text_model == "bert":
        model.text.dropout_rate = model.text.attention_dropout_rate = 0.1
    return model


def locked(model: ConfigDict) -> tuple[tuple[str, bool], ...]:
    """The rules that lock an image tower, but not a head that it has."""
    dims = model.out_dim
    has_head = (dims if isinstance(dims, int) else dims[0]) is not None
    head = ((r"img/head/.*", False),) if has_head else ()
    return (*head, (r"img/.*", True), (r".*", False))
