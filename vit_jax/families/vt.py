"""Visual Transformers (Wu et al. 2020, arXiv:2006.03677), in the form of the paper's appendix.

Top-1: ibid., Table 8. No code was published. Section 4 gives the channels of the map (256 or 1024)
and 16 tokens; the width of the tokens, which it names as a hyperparameter, it gives for
segmentation only (1024). That of the classifiers stands in appendix A, which was not at hand: ours
is such that there are as many parameters as the table says (11.7, 19.2, 21.4 and 41.5 million), to
3 %. Whether the appendix has norms between its layers is not known either; ours has none.

Names: Visual Transformer: those of PyTorch's ResNets, and of the paper's parts for the rest.
"""

from vit_jax.families.family import Architecture, Config, Family, Layout
from vit_jax.families.parts import (
    BIAS,
    CONV,
    DENSE,
    LINEAR,
    SHORTCUT,
    always,
    architecture,
    conv_norms,
    imagenet,
)
from vit_jax.families.rules import Table, rule, under


def _vt(
    depths: tuple[int, ...], modules: int, token_size: int, top1: float, *, bottleneck: bool = False
) -> Architecture:
    config = {
        "hidden_sizes": (256, 512, 1024) if bottleneck else (64, 128, 256),
        "depths": depths,
        "bottleneck": bottleneck,
        "num_modules": modules,
        "num_tokens": 16,
        "token_size": token_size,
        "num_heads": 16,
    }
    return architecture(config, imagenet(224, 0.875), top1, layout="torch", licence="")


_BASIC = conv_norms({"1": "conv_0", "2": "conv_1"})
_BOTTLENECK = conv_norms({"1": "reduce", "2": "mix", "3": "expand"})
_GROUPED = "(g o) i -> g i o"


def _resnet(config: Config) -> Table:
    """As in torchvision: `layer1` is the first stage."""
    rows = conv_norms({"1": "stem"})
    parts = _BOTTLENECK if config["bottleneck"] else _BASIC
    for i, depth in enumerate(config["depths"]):
        for j in range(depth):
            # The stem gives 64 channels: where these stay, the first unit changes nothing.
            changes = j == 0 and (i > 0 or config["hidden_sizes"][0] != 64)
            unit = parts + (SHORTCUT if changes else [])
            rows += under(f"layer{i + 1}.{j}", f"stage_{i}/unit_{j}", unit)
    return rows


def _grouped(groups: int) -> Table:
    return under("", "", rule("weight", "kernel", _GROUPED) + BIAS, g=groups)


def _appendix(config: Config, *, first: bool, last: bool) -> Table:
    heads = config["num_heads"]
    tokenizer = under("value", "values", _grouped(heads)) + under("token", "token", DENSE)
    if first:
        tokenizer += under("coef", "filter", DENSE)
    else:
        tokenizer += under("query", "queries", DENSE) + under("key", "keys", _grouped(heads))
    tokenizer += under("penc.ds", "places/halve", CONV) + under("penc.out", "places/flatten", CONV)
    tokenizer += under("penc.pos", "places/encode", DENSE)
    transformer = under("ff", "Dense_0", DENSE)
    for theirs, ours in (("k", "keys"), ("q", "queries"), ("v", "values")):
        transformer += under(theirs, ours, _grouped(heads // 2))
    rows = under("tokenizer", "tokenizer", tokenizer)
    rows += under("transformer", "transformer", transformer)
    if last:
        return rows
    projector = under("key", "keys", DENSE) + under("value", "values", DENSE)
    projector += under("query", "queries", _grouped(heads))
    return rows + under("projector", "projector", projector)


def _equations(config: Config, *, first: bool, last: bool) -> Table:
    del config
    rows = under("tokenizer.W_A" if first else "tokenizer.W_TR", "tokenizer/filter", LINEAR)
    names = {"K": "keys", "Q": "queries", "F1": "Dense_0", "F2": "Dense_1"}
    for theirs, ours in names.items():
        rows += under(f"transformer.{theirs}", f"transformer/{ours}", LINEAR)
    if last:
        return rows
    for theirs, ours in {"W_Q": "queries", "W_K": "keys"}.items():
        rows += under(f"projector.{theirs}", f"projector/{ours}", LINEAR)
    return rows


_FORMS = {"appendix": _appendix, "equations": _equations}


def _table(config: Config) -> Table:
    rows, modules = _resnet(config), config["num_modules"]
    form = _FORMS[config.get("form", "appendix")]
    for i in range(modules):
        parts = form(config, first=i == 0, last=i + 1 == modules)
        rows += under(f"layer{len(config['depths']) + 1}.{i}", f"module_{i}", parts)
    return rows + under("fc", "head", DENSE)


FAMILIES = {
    "vt": Family(
        title="Visual Transformer",
        paper="2006.03677",
        model="vt:VisualTransformer",
        computes="ResNet with BatchNorm, attention among tokens",
        stem=lambda config: ("stem/conv/kernel",),
        architectures={
            "vt_resnet18": _vt((2, 2, 2), 2, 1472, 76.8),
            "vt_resnet34": _vt((3, 4, 6), 3, 1312, 79.9),
            "vt_resnet50": _vt((3, 4, 6), 3, 928, 80.6, bottleneck=True),
            "vt_resnet101": _vt((3, 4, 23), 3, 928, 82.3, bottleneck=True),
        },
        # No tensor depends on the image size: the places of tokens are resized to one map.
        layouts={"torch": Layout(_table)},
        small=always(
            {
                "hidden_sizes": (64, 64, 64),
                "depths": (1, 1, 1),
                "num_modules": 2,
                "num_tokens": 4,
                "token_size": 32,
                "num_heads": 2,
            }
        ),
        reference="torch",
        figures="the paper's equations, module by module",
    ),
}
