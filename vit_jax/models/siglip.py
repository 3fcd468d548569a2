"""SigLIP and SigLIP 2 at a fixed image size: two towers trained with a pairwise sigmoid loss.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (arXiv:2303.15343), and Tschannen
et al. 2025, "SigLIP 2" (arXiv:2502.14786), which changes the training and the tokenizer, and not
the model. Parameter names are big_vision's. Sizes: `vit_jax.families.siglip`.
"""

from vit_jax.models.two_towers import TwoTowerModel
from vit_jax.models.vit import VisionTransformer


class SigLIPVision(VisionTransformer):
    """The image tower: images [N, H, W, 3] to embeddings [N, D], or to logits [N, num_classes].

    A Vision Transformer without a class token, whose tokens are pooled by attention; 'gap', their
    mean, is what PaliGemma's towers are published with.

    Attributes: as in `VisionTransformer`.
    """

    classifier: str = "map"


class SigLIP(TwoTowerModel):
    """Images [N, H, W, 3] and tokens [N, L] to unit vectors, [N, D] each.

    The probability that a text belongs to an image is sigmoid(t zimg · ztxt + b), for each pair on
    its own (section 3.2). Only the text tower has a head, to the width of the image tower.

    Attributes: as in `TwoTowerModel`; training starts from t = 10 and b = -10.
    """

    temperature_init: float = 10.0
    bias_init: float | None = -10.0
