"""Where a training step spends one CPU core, ours and timm's: `python benchmarks/cpu_profile.py`.

Loss and gradients of S/16 at batch 8, without the optimizer; milliseconds of one core, by kind of
operation. On one core operations do not overlap, so that they add up.
"""

import collections
import glob
import os
import re
import tempfile

MODEL, BATCH, SIZE, STEPS = "ViT-S_16", 8, 224, 3
# How the names of our operations are read, by the first that fits. 'dot' is what XLA leaves to
# Eigen, the fusions of YNNPACK are named after it.
ATTENTION = r"MultiHeadDotProductAttention_0\._separate/(?!(query|key|value|out)/)"
OURS = (
    ("attention between the projections", ATTENTION),
    ("products, Eigen", r"^dot\b.*dot|^dot\b.*transpose"),
    ("products, YNNPACK", r"^ynn_fusion.*dot_general"),
    ("GELU", r"MlpBlock_0/(tanh|mul|add|integer_pow|add_any)"),
)
TIMM = (
    ("attention between the projections", "scaled_dot_product"),
    ("products", r"aten::(mm|addmm)$"),
    ("GELU", "gelu"),
)


def kind(name: str, kinds) -> str:
    return next((title for title, pattern in kinds if re.search(pattern, name)), "the rest")


def ours() -> collections.Counter:
    import jax
    import jax.numpy as jnp
    from jax.profiler import ProfileData

    from vit_jax.models import get_model

    model = get_model(MODEL)
    images = jax.random.normal(jax.random.key(0), (BATCH, SIZE, SIZE, 3))
    params = jax.jit(lambda key: model.init(key, images[:1], train=False))(jax.random.key(1))
    labels = jnp.eye(1000)[:BATCH]

    def loss(params):
        logits = model.apply(params, images, train=True)
        return -(jax.nn.log_softmax(logits) * labels).sum(-1).mean()

    step = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    operations = {}
    for line in step.as_text().splitlines():
        if found := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line):
            named = re.search(r'op_name="([^"]*)"', line)
            operations[found[1]] = named[1] if named else ""
    jax.block_until_ready(step(params))
    spent = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                jax.block_until_ready(step(params))
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        for plane in ProfileData.from_file(path).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in operations:
                        name = f"{event.name} {operations[event.name]}"
                        spent[kind(name, OURS)] += event.duration_ns / 1e6 / STEPS
    return spent


def timms() -> collections.Counter:
    import timm
    import torch
    from torch.profiler import ProfilerActivity, profile

    from vit_jax.families.registry import resolve

    model = timm.create_model(resolve(MODEL).timm_name).train()
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.eye(1000)[:BATCH]

    def step() -> None:
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        model.zero_grad(set_to_none=True)

    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(STEPS):
            step()
    spent = collections.Counter()
    for event in found.key_averages():
        spent[kind(event.key, TIMM)] += event.self_cpu_time_total / 1e3 / STEPS
    return spent


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for who, spent in (("vit_jax", ours()), ("timm", timms())):
        print(f"{who}: {spent.total():,.0f} ms")
        for title, milliseconds in spent.most_common():
            print(f"  {milliseconds:8,.0f} ms  {title}")


if __name__ == "__main__":
    main()
