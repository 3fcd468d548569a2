"""`compare_training`: steps of an optimizer in both frameworks, in float64.

Ours is the optimizer as a run builds it, `train.optimizers.make_optimizer`. The reference's is
PyTorch's own: `torch.optim.AdamW` or `torch.optim.SGD`, the latter without weight decay, which it
adds to the gradient; with weight decay it is timm's `SGDW`, which applies it apart, as ours does.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vit_jax.errors import UserError
from vit_jax.parity.task import (
    Task,
    in_our_names,
    live_names,
    our_loss,
    their_loss,
    their_module,
)
from vit_jax.parity.tensors import TensorError, relative, tensor_errors, worst
from vit_jax.variables import arrays

if TYPE_CHECKING:
    import torch

LOSS_BAR = 1e-9
PARAMETER_BAR = 1e-8
MOMENTUM, BETAS = 0.9, (0.9, 0.999)
# What weight decay applies to, in words.
DECAYED = {
    "timm": "not to biases, tensors of one axis and what the model exempts, as timm does it",
    "all": "to all parameters",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An optimizer and how long it runs.

    Attributes:
      steps: Updates, each on a batch of its own.
      optimizer: AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with betas 0.9 and 0.999, or
        SGD with momentum 0.9.
      learning_rate: The same at every step.
      weight_decay: Apart from the gradient: a step subtracts the learning rate times it times the
        parameter.
      eps: AdamW's epsilon; SGD has none.
      decayed: A key of `DECAYED`.
    """

    steps: int
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    eps: float = 1e-8
    decayed: Literal["timm", "all"] = "timm"

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"the number of training steps must be at least 1; got {self.steps}")
        for name in ("learning_rate", "weight_decay", "eps"):
            if not 0 <= getattr(self, name) < float("inf"):
                told = name.replace("_", " ")
                raise UserError(f"the {told} must be at least 0; got {getattr(self, name)}")

    def __str__(self) -> str:
        parts = [f"{self.steps} steps of {self.optimizer}, learning rate {self.learning_rate:g}"]
        if self.optimizer == "adamw":
            parts.append(f"eps {self.eps:g}")
        where = f" ({DECAYED[self.decayed]})" if self.weight_decay else ""
        return ", ".join([*parts, f"weight decay {self.weight_decay:g}{where}"])


@dataclasses.dataclass(frozen=True)
class Training:
    """What the steps gave.

    Attributes:
      recipe: The optimizer, in words.
      losses, their_losses: Before each update.
      tensors: Every parameter after the last update, the worst first.
      num_decayed: How many of ours the weight decay applies to.
    """

    recipe: str
    losses: tuple[float, ...]
    their_losses: tuple[float, ...]
    tensors: tuple[TensorError, ...]
    num_decayed: int

    @property
    def loss_error(self) -> float:
        """The largest relative difference of a loss."""
        return max(map(relative, self.losses, self.their_losses))

    @property
    def error(self) -> float:
        """The largest error of a parameter after the last update."""
        return worst(self.tensors)

    @property
    def same(self) -> bool:
        """Whether all losses and parameters are."""
        losses = all(
            relative(*both) <= LOSS_BAR for both in zip(self.losses, self.their_losses, strict=True)
        )
        return losses and bool(self.tensors) and self.error <= PARAMETER_BAR

    @property
    def verdict(self) -> str:
        return "same" if self.same else "differs"

    @property
    def summary(self) -> dict[str, Any]:
        """JSON-ready, what is computed from the fields."""
        return {
            "error": self.error,
            "loss_error": self.loss_error,
            "verdict": self.verdict,
        }


@dataclasses.dataclass(frozen=True)
class Trained:
    """Our side of a training: the losses, the last parameters by name, and how many decay."""

    losses: tuple[float, ...]
    params: Mapping[str, np.ndarray]
    num_decayed: int


def compare_training(task: Task, recipe: Recipe) -> Training:
    """Trains both from the task's weights on its batches, one step each.

    Args:
      task: Has as many batches as the recipe has steps.
      recipe: The optimizer of both.

    Raises:
      UserError: where the optimizer of the reference is not installed.
    """
    return compared_with(task, train_ours(task, recipe), recipe)


def compared_with(task: Task, ours: Trained, recipe: Recipe) -> Training:
    """What we trained against the reference, which trains by this recipe."""
    module = their_module(task)
    losses = _train_theirs(task, module, recipe)
    trained = {name: p.detach().numpy() for name, p in module.named_parameters() if p.requires_grad}
    errors = tensor_errors(ours.params, in_our_names(task, module, trained))
    return Training(str(recipe), ours.losses, tuple(losses), errors, ours.num_decayed)


# --- weight decay ---------------------------------------------------------------------------------


def their_decayed(module: "torch.nn.Module", recipe: Recipe) -> dict[str, bool]:
    """Whether weight decay applies to each parameter that is trained, by the module's names."""
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if recipe.decayed == "all":
        return dict.fromkeys(trained, True)
    exempt: Any = getattr(module, "no_weight_decay", set)
    exempted = set(exempt())
    return {
        name: p.ndim > 1 and not name.endswith(".bias") and name not in exempted
        for name, p in trained.items()
    }


def our_decayed(task: Task, module: "torch.nn.Module", recipe: Recipe) -> list[str]:
    """Our names of what weight decay applies to, by the family's table."""
    live = live_names(task, module)
    decays = their_decayed(module, recipe)
    shapes = {n: np.zeros(tuple(p.shape)) for n, p in module.named_parameters() if n in decays}
    return [
        ours
        for ours, (theirs, _) in in_our_names(task, module, shapes).items()
        if decays[live.get(theirs, theirs)]
    ]


def _rules(chosen: Iterable[str], every: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """Rules that give 1 to the chosen names, and 0 to the others."""
    chosen, every = set(chosen), set(every)
    some = "|".join(map(re.escape, sorted(chosen)))
    rules = [(some, 1.0)] if chosen else []
    return (*rules, (".*", 0.0)) if every - chosen else tuple(rules)


# --- ours -----------------------------------------------------------------------------------------


def train_ours(task: Task, recipe: Recipe) -> Trained:
    """One step on each batch of the task, with the optimizer that a run has."""
    import jax
    import jax.numpy as jnp
    import optax

    from vit_jax.train.optimizers import make_optimizer

    with jax.enable_x64(True):
        loss, variables = our_loss(task)
        params = variables.pop("params")
        decayed = our_decayed(task, their_module(task), recipe)
        config = _run_config(task, recipe, _rules(decayed, arrays(params)))
        tx = make_optimizer(config, lambda step: jnp.asarray(recipe.learning_rate, jnp.float64))
        state, losses = tx.init(params), []

        @jax.jit
        def step(params, state, inputs, labels):
            def of_params(params):
                return loss({**variables, "params": params}, inputs, labels)

            value, gradients = jax.value_and_grad(of_params)(params)
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, value

        for inputs, labels in task.steps:
            params, state, value = step(params, state, inputs, labels)
            losses.append(float(value))
        return Trained(tuple(losses), arrays(jax.device_get(params)), len(decayed))


def _run_config(task: Task, recipe: Recipe, decay_rules: tuple[tuple[str, float], ...]) -> Any:
    """The config of a run with this optimizer, with which `make_optimizer` builds it."""
    from vit_jax.configs import common

    config = common.get_config()
    config.optim = recipe.optimizer
    config.optim_dtype = "float64"
    config.grad_norm_clip = 0.0
    config.weight_decay = recipe.weight_decay
    config.decay_rules = decay_rules
    never = tuple((pattern, True) for pattern in task.never_trained)
    config.freeze_rules = (*never, (".*", False))
    if recipe.optimizer == "adamw":
        config.optim_eps = recipe.eps
        config.optim_b1, config.optim_b2 = BETAS
    else:
        config.optim_b1 = MOMENTUM
    return config


# --- the reference --------------------------------------------------------------------------------


def _train_theirs(task: Task, module: "torch.nn.Module", recipe: Recipe) -> list[float]:
    """The losses; the module's parameters are then those after the last step.

    A parameter that the loss does not use has a gradient of zero, as in JAX, and decays. PyTorch
    by itself would leave it out.
    """
    import torch

    optimizer, losses = _optimizer(module, recipe), []
    for batch, labels in zip(task.batches, task.labels, strict=True):
        for p in module.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        loss = their_loss(task, module, batch, labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _optimizer(module: "torch.nn.Module", recipe: Recipe) -> "torch.optim.Optimizer":
    import torch

    params, groups = dict(module.named_parameters()), []
    for decays, decay in ((True, recipe.weight_decay), (False, 0.0)):
        of_group = [params[n] for n, d in their_decayed(module, recipe).items() if d == decays]
        if of_group:
            groups.append({"params": of_group, "weight_decay": decay})
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS, eps=recipe.eps)
    if not recipe.weight_decay:
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=MOMENTUM)
    try:
        from timm.optim.sgdw import SGDW
    except ImportError:
        raise UserError(
            "SGD with weight decay apart from the gradient is timm's, which is not installed: "
            'pip install "vit-jax[torch]", or set the weight decay to 0'
        ) from None
    return SGDW(groups, lr=recipe.learning_rate, momentum=MOMENTUM)
