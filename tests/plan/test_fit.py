"""`vit-jax plan --fit`: the search, over a compiler whose memory is a formula."""

import itertools
import json
import shlex

import jax
import pytest
from kernels import equations
from ml_collections import ConfigDict
from zoo_shallow import shallow

from vit_jax import cli, main
from vit_jax import models as model_lib
from vit_jax.configs import common, models
from vit_jax.errors import UserError
from vit_jax.families.registry import taking
from vit_jax.overrides import changed
from vit_jax.plan import compiling, fit, space, topology
from vit_jax.plan.report import Memory, Plan
from vit_jax.plan.traffic import Traffic, Work

KEEPS = {False: 10, "qkv,attention,mlp": 6, "qkv,attention": 4, True: 1}
MLP = {"mlp": 5}  # all that a Mixer marks
SIZES = {"state": 4000}
LIMIT = 10_000


def needed(batch, devices, remat, accum_steps, fsdp):
    """Activations of the images of a part, the state's share, and what fsdp gathers."""
    images = batch / devices / accum_steps
    return (
        SIZES["state"] / fsdp + images * (KEEPS | MLP)[remat] + (0 if fsdp == 1 else 0.5 * images)
    )


@pytest.fixture
def compiled(monkeypatch):
    """All that was compiled, in order. Slices are of this machine's devices."""
    seen = []

    def lower(config, devices, num_classes):
        return devices

    def compile_step(devices, config, name):
        remat = (config.model.get("transformer") or config.model).get("remat", False)
        arguments = (config.batch, len(devices), remat, config.accum_steps, config.mesh.fsdp)
        seen.append((name, *arguments))
        memory = needed(*arguments)
        if memory > 2 * LIMIT:  # The real one refuses what is far too much before it knows all.
            raise compiling.DoesNotFit("no", memory, LIMIT)
        return Plan(
            topology=name or "here",
            device_kind="TPU v5 lite",
            devices=len(devices),
            mesh=dict(config.mesh),
            batch=config.batch,
            accum_steps=config.accum_steps,
            image_flops=1e9,
            memory=Memory(int(memory), 0, 0, 0),
            traffic=Traffic({"moves": Work(1, 10**9, 10)}, {}),
            compile_seconds=1.0,
            limit=LIMIT,
        )

    def devices(name):
        sizes = {"2x2": 1, "2x4": 2, "4x4": 4}
        return jax.devices()[: sizes[name.partition(":")[2]] if name else 4]

    monkeypatch.setattr(compiling, "lower", lower)
    monkeypatch.setattr(compiling, "compile_step", compile_step)
    monkeypatch.setattr(compiling, "limit", lambda device: LIMIT)
    monkeypatch.setattr(topology, "devices", devices)
    monkeypatch.setattr(topology, "KNOWN", {"v5e": ("2x2", "2x4", "4x4")})
    return seen


def recipe(batch, model=None):
    config = common.get_config().unlock()
    config.model = model or models.get_ti16_config()
    # Wide enough for 4 devices, shallow enough to be quick.
    if "transformer" in config.model:
        config.model.transformer.num_layers = 1
    config.pp.crop, config.batch, config.batch_eval, config.total_steps = 32, batch, 64, 1000
    return config


def search(config, name: str | None, goal):
    lines = [""]

    def say(text, ends):
        lines[-1] += text
        lines.extend([""] * ends)

    return fit.search(config, name, 10, goal, say=say), lines[:-1]


def fitting(batches, devices, parts=(1,), kept=tuple(KEEPS)):
    """The whole space, the best first: batch, then remat, parts and fsdp from the fastest on."""
    space = itertools.product(sorted(batches, reverse=True), kept, parts, (1, devices))
    return [s for s in space if needed(s[0], devices, *s[1:]) <= LIMIT]


@pytest.mark.parametrize("state", [100, 4_000, 9_000])
@pytest.mark.parametrize("batch", [64, 512, 4_096])
def test_the_largest_batch_of_the_space_by_its_fastest_settings(
    batch, state, compiled, monkeypatch
):
    monkeypatch.setitem(SIZES, "state", state)
    found, lines = search(recipe(batch), "v5e:4x4", "batch")
    best = fitting([batch * 2**k for k in range(12)], 4)[0]
    assert tuple(found.settings.values()) == best
    assert found.plan.batch == best[0]
    assert found.plan.fits
    # Every compilation is shown once, and none is made twice.
    assert len(lines) == len(compiled) == len(set(compiled)) == len(found.tries)
    assert lines[0].startswith(f"v5e:4x4, batch {batch}, remat True, accum_steps 1, fsdp 1: ")
    assert sum("too much" in line for line in lines) == sum(not t.fits for t in found.tries) > 0
    # One by one it would be 12 doublings, of 8 settings each.
    assert len(compiled) <= 16


def test_a_batch_that_only_fits_in_parts(compiled):
    found, _ = search(recipe(65_536), "v5e:4x4", "batch")
    assert tuple(found.settings.values()) == fitting([65_536], 4, (1, 2, 4, 8))[0]
    assert found.settings["accum_steps"] > 1


def test_a_batch_that_fits_nowhere_is_one_message(compiled, monkeypatch):
    monkeypatch.setitem(SIZES, "state", 10**6)
    with pytest.raises(UserError, match=r"batch=64 does not fit v5e:4x4.*--set batch.*--fit chips"):
        search(recipe(64), "v5e:4x4", "batch")
    with pytest.raises(UserError, match="batch=64 fits no slice of v5e"):
        search(recipe(64), "v5e:2x2", "chips")


@pytest.mark.parametrize(("batch", "slice_"), [(64, "2x2"), (8_192, "2x4"), (16_384, "4x4")])
def test_the_fewest_chips(batch, slice_, compiled, monkeypatch):
    monkeypatch.setattr("vit_jax.plan.space._LEAST_IMAGES", 10**6)  # In one part.
    found, _ = search(recipe(batch), "v5e:2x2", "chips")
    assert found.plan.topology == f"v5e:{slice_}"
    smaller = [name for name, *_ in compiled]
    assert smaller == sorted(smaller)


def test_slices_that_do_not_divide_the_batch_are_passed_over(compiled):
    with pytest.raises(UserError, match="fits no slice"):
        search(recipe(10**6 + 2), "v5e:2x2", "chips")
    assert {name for name, *_ in compiled} == {"v5e:2x2", "v5e:2x4"}


def test_a_mixer_keeps_what_it_has(compiled):
    model = models.get_mixer_b16_config()
    model.unlock().num_blocks = 1
    found, lines = search(recipe(64, model), "v5e:4x4", "batch")
    assert set(found.settings) == {"batch", "model.remat", "accum_steps", "mesh.fsdp"}
    assert any("remat mlp" in line for line in lines)
    assert not any("qkv" in line for line in lines)


@pytest.mark.parametrize("family", taking("images"))
def test_named_tensors_are_searched_in_every_family_that_has_them(family):
    """And they are honoured: what is kept by name is not computed again."""
    config = common.get_config().unlock()
    config.model = ConfigDict(shallow(family))
    config.pp.crop = 64
    field, values = space.remat(config)
    # The MLP of BoTNet is a convolution, which has no name; a Mixer has no attention, and what the
    # tokens of a Visual Transformer compute is too small to be kept by name.
    convolutions = ["qkv,attention"]
    own = {"botnet": convolutions, "botnet_paper": convolutions, "mixer": ["mlp"], "vt": []}
    names = own.get(family, ["qkv,attention,mlp", "qkv,attention"])
    assert values == (False, *names, True)
    variables = _variables(config.model)
    products = [_products(changed(config, {field: value}).model, variables) for value in values]
    assert products == sorted(products)
    assert len(set(products)) == len(products)


_IMAGES = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")


def _variables(config):
    """Their shapes, which do not depend on what is computed again."""
    model = model_lib.from_config(config, num_classes=3)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), _IMAGES)


def _products(config, variables):
    """How many products a gradient takes."""
    model = model_lib.from_config(config, num_classes=3)

    def loss(params, rest, x):
        return model.apply({**rest, "params": params}, x, train=False).sum()

    rest = {name: x for name, x in variables.items() if name != "params"}
    program = jax.make_jaxpr(jax.grad(loss))(variables["params"], rest, _IMAGES)
    kinds = ("dot_general", "conv_general_dilated")
    return sum(equation.primitive.name in kinds for equation in equations(program))


def test_a_batch_that_the_devices_do_not_divide_is_refused(compiled):
    with pytest.raises(UserError, match="batch=66 must be a positive multiple"):
        search(recipe(66), "v5e:4x4", "batch")
    assert not compiled


def test_without_a_known_memory_nothing_is_compiled(compiled, monkeypatch):
    monkeypatch.setattr(compiling, "limit", lambda device: None)
    with pytest.raises(UserError, match="how much memory"):
        search(recipe(64), None, "batch")
    assert not compiled


RECIPE = """
from vit_jax.configs import common, models
def get_config():
    config = common.get_config()
    config.model = models.get_ti16_config()
    config.model.unlock().transformer.num_layers = 1
    config.pp.crop, config.batch, config.batch_eval = 32, 64, 64
    return config
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return str(path)


def test_the_winner_is_a_command(file, compiled, capsys):
    arguments = ["plan", "--config", file, "--topology", "v5e:4x4", "--fit", "batch"]
    assert cli.main([*arguments, "--set", "optim=adamw"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    before, command = last.split(" train ")
    assert before == "best: vit-jax"
    config, options = main.parse(shlex.split(command))
    assert (config.optim, config.batch, config.accum_steps) == ("adamw", 16384, 1)
    assert config.model.transformer.remat is True
    assert options.workdir == "DIR"


def test_a_remat_that_was_set_is_searched_as_well(file, compiled, capsys):
    arguments = ["plan", "--config", file, "--topology", "v5e:4x4", "--fit", "batch"]
    assert cli.main([*arguments, "--set", "model.transformer.remat=False"]) == 0
    tried = {remat for _, _, _, remat, *_ in compiled}
    assert {True, "qkv,attention"} <= tried


def test_tries_are_part_of_the_json(file, compiled, capsys):
    arguments = ["plan", "--config", file, "--topology", "v5e:4x4", "--fit", "chips", "--json"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    plan = json.loads(out)
    assert plan["topology"] == "v5e:2x2"
    assert len(plan["fit"]["tries"]) == len(compiled) == err.count("\n")
    assert plan["fit"]["settings"]["batch"] == 64
