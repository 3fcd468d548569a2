"""Everything that can be loaded: the published weights of all architectures, and where they lie."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from vit_jax.families.family import Weights
from vit_jax.families.published import Published
from vit_jax.families.registry import ModelSpec, families, registered
from vit_jax.families.sizes import recorded


@dataclasses.dataclass(frozen=True)
class Loadable:
    """Published weights of a registered model.

    Attributes:
      name: The registered name of the architecture.
      tag: Of the weights: `NAME.TAG` names them.
      address: What to load: `hf://…` where the hub's name is known, else where it was published.
      licence: Of the weights, as SPDX writes it; '' where it is not known.
      params: Numbers in parameters, with the first of the architecture's published heads.
      image_size: (height, width) in pixels; None for models of texts.
      top1: Published accuracy on ImageNet-1k in percent; None where nobody says.
    """

    name: str
    tag: str
    address: str
    licence: str
    params: int
    image_size: tuple[int, int] | None
    top1: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        size = None if self.image_size is None else list(self.image_size)
        return {**vars(self), "image_size": size}


def loadable() -> Iterator[Loadable]:
    """Each address once, by family, in the order of registration."""
    sizes, seen = recorded(), set[str]()
    for family in families().values():
        for name, architecture in family.architectures.items():
            for tag, weights in architecture.weights.items():
                address = address_of(registered()[name], tag, weights)
                if not address or address in seen:
                    continue
                seen.add(address)
                yield Loadable(
                    name=name,
                    tag=tag,
                    address=address,
                    licence=weights.licence,
                    params=sizes[name].params,
                    image_size=weights.preprocess.height_width
                    if "images" in family.inputs
                    else None,
                    top1=weights.top1,
                )


def address_of(spec: ModelSpec, tag: str, weights: Weights) -> str:
    """What to load weights from: of the hub where they are there, else as published; '' if unknown.

    Of several copies transformers' comes first: it has the `pre_logits` that timm's lacks.
    """
    if isinstance(weights, Published) and (weights.hf or weights.timm):
        return f"hf://{weights.hf or f'timm/{weights.timm}'}"
    if not weights.source and tag and spec.timm_name and weights.layout == "timm":
        return f"hf://timm/{spec.timm_name}.{tag}"
    is_repository = weights.source and "://" not in weights.source
    return f"hf://{weights.source}" if is_repository else weights.source
