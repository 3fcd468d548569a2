"""Tables of the layers that many models share, PyTorch's names to ours."""

from vit_jax.families.rules import Table, rule, under

QKV = ("query", "key", "value")

BIAS = rule("bias", "bias")
NORM = rule("weight", "scale") + BIAS
DENSE = rule("weight", "kernel", "o i -> i o") + BIAS
KERNEL = rule("weight", "kernel", "o i h w -> h w i o")
CONV = KERNEL + BIAS

HEADS = rule("weight", "kernel", "(heads d) c -> c heads d") + rule(
    "bias", "bias", "(heads d) -> heads d"
)
OUT = rule("weight", "kernel", "c (heads d) -> heads d c") + BIAS


def merged(parts: tuple[str, ...], *, bias: bool = True) -> Table:
    """One linear layer on their side, several on ours."""
    kernels, biases = (tuple(f"{x}/{leaf}" for x in parts) for leaf in ("kernel", "bias"))
    rows = rule("weight", kernels, "(n heads d) c -> n c heads d")
    return rows + (rule("bias", biases, "(n heads d) -> n heads d") if bias else [])


ATTENTION = under("qkv", "", merged(QKV)) + under("proj", "out", OUT)
MLP = under("fc1", "Dense_0", DENSE) + under("fc2", "Dense_1", DENSE)


def encoder_block(attention: Table, mlp: Table = MLP) -> Table:
    """The pre-norm block, as most of timm's models call its parts."""
    return (
        under("norm1", "LayerNorm_0", NORM)
        + under("attn", "MultiHeadDotProductAttention_0", attention)
        + under("norm2", "LayerNorm_1", NORM)
        + under("mlp", "MlpBlock_0", mlp)
    )


ENCODER_BLOCK = encoder_block(ATTENTION)
LINEAR = rule("weight", "kernel", "o i -> i o")  # without a bias

# The statistics are told from parameters by their leaves, `mean` and `var`, which no parameter has.
BATCH_NORM = NORM + rule("running_mean", "mean") + rule("running_var", "var")
CONV_NORM = under("conv", "conv", KERNEL) + under("bn", "norm", BATCH_NORM)
