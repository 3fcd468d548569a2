"""Makes open_clip/siglip.npz: a tiny SigLIP of open_clip 3.3.0, its tensors and what it computes.

python tests/golden/make_open_clip.py, where open_clip_torch is installed.
"""

import pathlib

import numpy as np
import open_clip.model  # pyright: ignore[reportMissingImports]
import timm
import torch

SIZE, LENGTH, VOCABULARY = (16, 24), 6, 24
IMAGE = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
VISION = {
    "timm_model_name": "vit_base_patch16_siglip_256", "timm_model_pretrained": False,
    "timm_pool": "map", "timm_proj": "none", "image_size": SIZE,
}  # fmt: skip
TEXT = {
    "context_length": LENGTH, "vocab_size": VOCABULARY, "width": 12, "heads": 2, "layers": 2,
    "mlp_ratio": 2.0, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"},
}  # fmt: skip


def main() -> None:
    build = timm.create_model

    def small(name, pretrained=False, **how):
        return build(name, img_size=SIZE, act_layer="gelu_tanh", **IMAGE, **how)

    timm.create_model = small  # open_clip gives no sizes on
    model = open_clip.model.CustomTextCLIP(16, VISION, TEXT, init_logit_bias=-10).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            is_scale = name.endswith("weight") and ("norm" in name or ".ln_" in name)
            x.copy_((is_scale + 0.3 * torch.randn(x.shape, generator=generator)).float())
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, *SIZE, 3))
    tokens = rng.integers(0, VOCABULARY, (3, LENGTH))
    with torch.no_grad():
        zimg = model.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2), normalize=True)
        ztxt = model.encode_text(torch.from_numpy(tokens), normalize=True)
        scores = model.logit_scale.exp() * zimg @ ztxt.T + model.logit_bias
    found = {f"state/{name}": x.float().numpy() for name, x in model.state_dict().items()}
    found |= {"images": images, "tokens": tokens.astype(np.int32)}
    found |= {"zimg": zimg.numpy(), "ztxt": ztxt.numpy(), "scores": scores.numpy()}
    np.savez_compressed(pathlib.Path(__file__).parent / "open_clip/siglip.npz", **found)


if __name__ == "__main__":
    main()
