"""The table of figures of official code: which of our models they are of, and where they are taken.

`zoo/test_official.py` asks every row the same things; what only a family has is in its own file.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from zoo_cases import config_of
from zoo_official import Official, Point, as_tokens

from vit_jax.checkpoint import from_torch, names, to_torch
from vit_jax.layers.conv import max_pool
from vit_jax.tree import arrays, unflatten
from vit_jax.variables import collections, named


class Resized(Official):
    """Its weights are for smaller images, and are fitted as the official code fits them."""

    def read(self, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        flat = arrays(named(super().read(weights)))
        size = self.golden.images.shape[1:3]
        for key, edit in names.resizes(self.config, (64, 64), size, "official").items():
            flat[key] = edit(flat[key].astype(np.float64))
        return collections(flat, names.statistics(self.config))


class BigVision(Official):
    """In JAX: its names are ours as they are, and its maps have their channels last."""

    def read(self, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        self.golden.figures["mid_stem"] = as_tokens(self.golden.figures["mid_stem"])
        return {"params": unflatten(weights)}

    def assert_names_both_ways(self) -> None:
        """The model's own, and those of its file, in which no blocks are stacked."""
        images = self.golden.images
        made = jax.eval_shape(lambda: self.model.init(jax.random.key(0), images, train=False))
        weights = self.golden.weights
        shapes = {key: x.shape for key, x in arrays(made["params"]).items()}
        assert shapes == {key: x.shape for key, x in weights.items()}
        again = from_torch(
            to_torch(self.variables, self.model, self.layout), self.model, self.layout
        )
        again = arrays(again["params"])
        assert again.keys() == weights.keys()
        for key, x in weights.items():
            np.testing.assert_array_equal(again[key], x, err_msg=key)

    def varied(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, x in self.golden.weights.items():
            yield key, self.read({**self.golden.weights, key: x * np.float32(1.01)})


class Row(NamedTuple):
    """One model of the table.

    Attributes:
      model: Registered.
      fields: Constructor fields that make it what the figures are of.
      points: Where recorded figures are taken, beside the logits.
      official: What puts the two sides together.
      logits: The figure that is what our model returns.
      mix: The box of patches (top, left, bottom, right) that are mixed in its training; None where
        no figures of that are recorded.
      training: Where figures of such a training step are taken.
    """

    model: str
    fields: Mapping[str, Any]
    points: Mapping[str, str | Point]
    official: Any = Official
    logits: str = "logits_f64"
    mix: tuple[int, int, int, int] | None = None
    training: Mapping[str, Point] = {}


def _without_first(x: jax.Array) -> jax.Array:
    return x[:, 1:]


_CONVOLVES = functools.partial(Official, convolves=True)
_THREE = {"hidden_size": 24, "num_layers": 3, "num_heads": 3}
_BLOCK, _NORM = "Transformer/encoderblock_0", "Transformer/encoder_norm"
_COMPACT = {**_THREE, "mlp_dim": 48}
_SINES = {"position_embedding": "sine"}
_COMPACT_POINTS = {"mid_tokens": "embedding", "mid_block0": _BLOCK, "mid_norm": _NORM}
_CCT_POINTS = {**_COMPACT_POINTS, "mid_tokens": "tokenizer"}
_CCT_ONE = {**_COMPACT, "num_convolutions": 1, "kernel_size": 3, "stride": 1}
_CCT_TWO = {**_COMPACT, "num_convolutions": 2, "kernel_size": 7, "stride": 2}
_PVT = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 2, 1, 2), "num_heads": (1, 2, 3, 4)}
_PVT_POINTS = {
    "mid_block1_last": "stage_0/encoderblock_0",
    "mid_block2_last": "stage_1/encoderblock_1",
    "mid_block3_last": "stage_2/encoderblock_0",
    "mid_norm": "encoder_norm",
}
_CVT = {"hidden_sizes": (8, 16, 24), "num_heads": (1, 2, 3), "depths": (1, 1, 2)}
_CVT_POINTS = {
    "mid_embed0": "stage_0/embedding",
    "mid_stage0": "stage_0/encoderblock_0",
    "mid_stage1": "stage_1/encoderblock_0",
    "mid_stage2": Point("stage_2/encoderblock_1", _without_first),
    "mid_norm": "encoder_norm",
}
_CPVT = {**_THREE, "mlp_dim": 96}
_CPVT_POINTS = {
    "mid_block0": "encoderblock_0",
    "mid_peg0": "positions_0",
    "mid_norm": "encoder_norm",
}
_CEIT = {**_THREE, "mlp_dim": 96, "stem_features": 12}
_CEIT_POINTS = {
    "mid_stem": Point("stem", max_pool),
    "mid_tokens": "embedding",
    "mid_block0": "encoderblock_0",
    "mid_lca": "layerwise_attention",
    "mid_norm": "encoder_norm",
}
_T2T = {"hidden_size": 48, "num_layers": 2, "num_heads": 3, "mlp_dim": 144, "token_size": 16}
_T2T_POINTS = {
    "mid_attn1": "tokens_0",
    "mid_attn2": "tokens_1",
    "mid_tokens": "embedding",
    "mid_block0": _BLOCK,
    "mid_norm": _NORM,
}
# Their blocks have half of the stream that the official ones have.
_HALVES = {f"mid_block{i}": Point(f"encoderblock_{i}", lambda x: 2 * x) for i in (0, 1)}
_DEEPVIT = {**_THREE, "mlp_dim": 72}
_DEEPVIT_POINTS = {
    "mid_tokens": "embedding",
    "mid_block0": "encoderblock_0",
    "mid_block1": "encoderblock_1",
    "mid_norm": "encoder_norm",
}
_REFINER = {"hidden_size": 24, "num_heads": 4, "mlp_dim": 72, "num_layers": 4}
_REFINED = {"num_layers": 3, "reused_layers": (2,), "refined_layers": (0,), "refined_expansion": 6}
_REFINER_TRAINING = {"mid_tokens": Point("embedding"), **_HALVES}
_LVVIT = {**_THREE, "mlp_dim": 72, "drop_path_rate": 0.0}
_LVVIT_TRAINING = {"mid_tokens": Point("embedding")}
_LARGE_LVVIT = {"residual_divisor": 3.0, "stem_features": 128, "order": ("mha", "ffn", "tr")}
_DIVERSE = {**_THREE, "patch_size": 8, "mlp_dim": 96, "head_dropout_rate": 0.0}
_DIVERSE_POINTS = {
    "mid_block0": _BLOCK,
    "features_cls_f64": Point("head", before=True),
    "features_patches_f64": Point(_NORM, _without_first),
    "logits_patch_f64": "head_patches",
}
_BIG_VISION = {"patch_size": (8, 8), "hidden_size": 24, "num_layers": 2, "mlp_dim": 40}
_BIG_VISION |= {"num_heads": 3, "position_embedding": "learned"}
_COMPUTED = {**_BIG_VISION, "position_embedding": "sincos2d"}
_BIG_VISION_POINTS = {
    "mid_stem": "embedding",
    "mid_with_posemb": Point("Transformer", before=True),
    "mid_block0": _BLOCK,
    "mid_encoded": _NORM,
    "mid_head_input": Point("head", before=True),
    "mid_pre_logits": Point("head", before=True),
}
# Blocks that are stacked are one module.
_STACKED_POINTS = {key: x for key, x in _BIG_VISION_POINTS.items() if key != "mid_block0"}
_WITH_REPRESENTATION = _BIG_VISION_POINTS | {"mid_head_input": Point("pre_logits", before=True)}
_WITH_TOKEN = {"mid_with_posemb": Point("Transformer", _without_first, before=True)}


ROWS = {
    "cct_tiny": Row("cct_6_3x2_32", _CCT_TWO, _CCT_POINTS),
    "cct_tiny_sine": Row("cct_6_3x2_32", _CCT_ONE | _SINES, _CCT_POINTS),
    "vitlite_tiny": Row("vit_7_4_32", _COMPACT, _COMPACT_POINTS),
    "vitlite_tiny_sine": Row("vit_7_4_32", _COMPACT | _SINES, _COMPACT_POINTS),
    "cvt_compact_tiny": Row("cvt_7_4_32", _COMPACT, _COMPACT_POINTS),
    "cvt_tiny": Row("cvt_13", _CVT, _CVT_POINTS),
    "pvt_tiny_native": Row("pvt_tiny", _PVT, _PVT_POINTS),
    "pvt_tiny_resized": Row("pvt_tiny", _PVT, _PVT_POINTS, Resized),
    "cpvt_tiny_cls": Row("cpvt_ti_patch16_224", _CPVT, _CPVT_POINTS),
    "cpvt_tiny_gap": Row("cpvt_ti_gap_patch16_224", _CPVT, _CPVT_POINTS),
    "ceit_tiny": Row("ceit_tiny_patch16_224", _CEIT, _CEIT_POINTS, _CONVOLVES),
    "t2t_performer_tiny": Row("t2t_vit_7", _T2T, _T2T_POINTS),
    "t2t_transformer_tiny": Row("t2t_vit_t_14", _T2T, _T2T_POINTS),
    "deepvit_reattn_tiny": Row(
        "deepvit_patch16_224_re_attn_16b", _DEEPVIT | {"reattention_layers": 3}, _DEEPVIT_POINTS
    ),
    "deepvit_S_tiny": Row(
        "deepvit_S", _DEEPVIT | {"reattention_layers": 2}, _DEEPVIT_POINTS | _HALVES
    ),
    "refiner_tiny": Row(
        "refiner_vit_s",
        _REFINER,
        {"features_f64": "encoder_norm"},
        _CONVOLVES,
        mix=(1, 2, 4, 4),
        training=_REFINER_TRAINING,
    ),
    "refiner_tiny_plainembed_transform": Row(
        "refiner_vit_s",
        _REFINER | _REFINED | {"stem_features": None},
        {"features_f64": "encoder_norm"},
        _CONVOLVES,
        mix=(1, 2, 3, 4),
        training=_REFINER_TRAINING,
    ),
    "lvvit_tiny_lam2": Row(
        "lvvit_s", _LVVIT, {"features_f64": _NORM}, mix=(1, 2, 3, 4), training=_LVVIT_TRAINING
    ),
    "lvvit_tiny_lam1_headdim": Row(
        "lvvit_s",
        _LVVIT | {"residual_divisor": 1.0, "head_dim": 12},
        {"features_f64": _NORM},
        mix=(1, 2, 3, 4),
        training=_LVVIT_TRAINING,
    ),
    "lvvit_tiny_128stem_order": Row(
        "lvvit_s", _LVVIT | _LARGE_LVVIT, {"features_f64": _NORM}, mix=(0, 1, 1, 3)
    ),
    "diversepatch_tiny_talk": Row(
        "diversepatch_deit_tiny_patch16_224", _DIVERSE, _DIVERSE_POINTS, logits="logits_cls_f64"
    ),
    # With weights so small that the loss which keeps patches apart is not saturated.
    "diversepatch_tiny_talk_s002": Row(
        "diversepatch_deit_tiny_patch16_224", _DIVERSE, _DIVERSE_POINTS, logits="logits_cls_f64"
    ),
    "diversepatch_tiny_talk_s005": Row(
        "diversepatch_deit_tiny_patch16_224", _DIVERSE, _DIVERSE_POINTS, logits="logits_cls_f64"
    ),
    "diversepatch_tiny_notalk": Row(
        "diversepatch_deit_tiny_patch16_224",
        _DIVERSE | {"talking_heads": False},
        _DIVERSE_POINTS,
        logits="logits_cls_f64",
    ),
    "bv_simplevit_tiny": Row("simple_vit_s_16", _COMPUTED, _BIG_VISION_POINTS, BigVision),
    "bv_simplevit_tiny_rep": Row(
        "simple_vit_s_16", _COMPUTED | {"representation_size": 24}, _WITH_REPRESENTATION, BigVision
    ),
    "bv_map_tiny": Row(
        "simple_vit_s_16", _BIG_VISION | {"pool": "map"}, _BIG_VISION_POINTS, BigVision
    ),
    "bv_tok_tiny": Row(
        "simple_vit_s_16",
        _BIG_VISION | {"pool": "token", "representation_size": 16},
        _WITH_REPRESENTATION | _WITH_TOKEN,
        BigVision,
    ),
    "bv_tok_scan_tiny": Row(
        "simple_vit_s_16",
        _COMPUTED | {"pool": "first", "scan": True},
        _STACKED_POINTS,
        BigVision,
    ),
}


@functools.cache
def official(name: str) -> Official:
    """The two sides of a row."""
    row = ROWS[name]
    return row.official(name, config_of(row.model, **row.fields), {**row.points, row.logits: ""})
