"""CCT, as the official code and vit-pytorch call it: the same names."""

from vit_jax.checkpoint.tables.family import Config, Names, Size
from vit_jax.checkpoint.tables.parts import DENSE, KERNEL, NORM, OUT, QKV, merged
from vit_jax.checkpoint.tables.plain import POSITIONS, encoder_points, positions
from vit_jax.families.rules import Table, rule, under

_ATTENTION = under("qkv", "", merged(QKV, bias=False)) + under("proj", "out", OUT)
_BLOCK = (
    under("pre_norm", "LayerNorm_0", NORM)
    + under("self_attn", "MultiHeadDotProductAttention_0", _ATTENTION)
    + under("norm1", "LayerNorm_1", NORM)
    + under("linear1", "MlpBlock_0/Dense_0", DENSE)
    + under("linear2", "MlpBlock_0/Dense_1", DENSE)
)


def _cct(config: Config) -> Table:
    transformer = config["transformer"]
    rows = rule("classifier.positional_emb", POSITIONS)
    for i in range(config["tokenizer"]["num_layers"]):
        rows += under(f"tokenizer.conv_layers.{i}.0", f"tokenizer/conv_{i}", KERNEL)
    for i in range(transformer["num_layers"]):
        block = f"Transformer/encoderblock_{i}"
        rows += under(f"classifier.blocks.{i}", block, _BLOCK, heads=transformer["num_heads"])
    return (
        rows
        + under("classifier.norm", "Transformer/encoder_norm", NORM)
        + under("classifier.attention_pool", "attention_pool", DENSE)
        + under("classifier.fc", "head", DENSE)
    )


def _stride(config: Config) -> Size:
    tokenizer = config["tokenizer"]
    stride = (2 * tokenizer["stride"]) ** tokenizer["num_layers"]
    return stride, stride


FAMILIES = {
    "cct": Names(
        {"vit_pytorch": _cct},
        points=encoder_points(
            # vit-pytorch adds positions in place: a module before that shows them too.
            embedding=("posembed_input", "classifier.dropout"),
            blocks="classifier.blocks",
            norm="classifier.norm",
        ),
        **positions(prefix=0, stride=_stride, padded=True),
    )
}
