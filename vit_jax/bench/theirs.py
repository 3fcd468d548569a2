"""timm's side: the same architecture, batch and optimizer, in PyTorch."""

import contextlib

from vit_jax.bench.measuring import Subject
from vit_jax.errors import UserError
from vit_jax.families import registry


def subject(name: str, mode: str, batch: int, size: int, dtype: str, compiled: bool) -> Subject:
    """timm's model for our `name`, on the first GPU if there is one.

    Raises:
      UserError: where timm has no such model, or is not installed.
    """
    try:
        import timm
        import torch
    except ImportError as error:
        raise UserError('timm is needed to compare with: pip install "vit-jax[torch]"') from error
    theirs = registry.resolve(name).timm_name
    if theirs is None:
        raise UserError(f"timm has no model {name!r}")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    model = timm.create_model(theirs, num_classes=1000, img_size=size).to(device)
    model.train(mode == "train")
    images = torch.randn(batch, 3, size, size, device=device)
    if compiled:
        model = torch.compile(model)
    cast = (
        torch.autocast(device.type, dtype=torch.bfloat16)
        if dtype == "bfloat16"
        else contextlib.nullcontext()
    )

    def forward() -> None:
        with torch.inference_mode(), cast:
            model(images)

    labels = torch.eye(1000, device=device)[torch.arange(batch, device=device) % 1000]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

    def train() -> None:
        with cast:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def run() -> None:
        train() if mode == "train" else forward()
        if cuda:
            torch.cuda.synchronize()

    return Subject(
        "timm compiled" if compiled else "timm",
        run,
        lambda: torch.cuda.max_memory_allocated() if cuda else None,
    )
