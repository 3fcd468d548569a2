"""A small BoTNet of timm's parts: timm builds none of other sizes by name."""

from typing import Any

import numpy as np
import torch
from zoo_cases import Case

STAGES = (("conv",), ("conv", "attention"), ("attention",), ("conv", "attention"))
WIDTHS = (32, 64, 128, 256)
SMALL_BOTNET: dict[str, Any] = {"hidden_sizes": WIDTHS, "stages": STAGES}


class BoTNetCase(Case):
    """timm builds no BoTNet of other sizes by name: its parts are put together here."""

    def reference(self, *, matched: bool = True) -> torch.nn.Module:
        from timm.models.byoanet import model_cfgs
        from timm.models.byobnet import ByoBlockCfg, ByobNet

        blocks = tuple(
            tuple(
                ByoBlockCfg(
                    type={"conv": "bottle", "attention": "self_attn"}[kind],
                    d=1,
                    c=width,
                    s=2 if i > 0 and j == 0 else 1,
                    gs=0,
                    br=0.25,
                )
                for j, kind in enumerate(kinds)
            )
            for i, (kinds, width) in enumerate(zip(STAGES, WIDTHS, strict=True))
        )
        fields: dict[str, Any] = {"blocks": blocks, "act_layer": self.config["activation"]}
        module = ByobNet(
            model_cfgs["botnet26t"], num_classes=self.num_classes, img_size=self.size, **fields
        )
        state = {name: torch.from_numpy(np.array(x)) for name, x in self.state.items()}
        module.load_state_dict(state, strict=True)
        return module.eval()
