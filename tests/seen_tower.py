"""The vision tower of an unmodified model by itself, in float64: what rules that read it see of a tile."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Seen:
    """What the unmodified tower makes of a tile, in float64; P patches, and a class token or none in front.

    Attributes:
        model: whose it is.
        layers: of the tower.
        first: 1: there is a class token; 0: there is none.
        states: hidden states [first + P, C].
        taken: what the projector takes, patch by patch, [first + P, F].
        read: what each row reads of each in the last but one layer, [H, first + P, first + P].
        key: of the patches there, [P, d], mean over heads.
        projector: of rows [K, F], or of blocks side by side.
    """

    model: Any
    layers: Any
    first: int
    states: tuple[torch.Tensor, ...]
    taken: torch.Tensor
    read: torch.Tensor
    key: torch.Tensor
    projector: Any

    @classmethod
    def of(cls, model: Any, pixels: torch.Tensor) -> "Seen":
        """Return what a model's tower, by itself, makes of pixels [1, 3, H, W]."""
        inner = model.model
        ours = "vision_tower" if hasattr(inner, "vision_tower") else "vision_model"
        tower = copy.deepcopy(getattr(inner, ours)).double()
        tower.set_attn_implementation("eager")
        encoder = getattr(tower, "encoder", tower)
        layers = encoder.layers if hasattr(encoder, "layers") else encoder.layer
        names = dict(layers[-2].named_modules())
        attention = names["self_attn" if "self_attn" in names else "attention"]
        keys: list[torch.Tensor] = []
        attention.k_proj.register_forward_hook(lambda _, __, made: keys.append(made[0]))
        with torch.inference_mode():
            out = tower(pixels.double(), output_attentions=True, output_hidden_states=True)
        asked = getattr(model.config, "vision_feature_layer", -1)
        taken = [out.hidden_states[one] for one in ([asked] if isinstance(asked, int) else asked)]
        if asked == -1:  # and what norm there is behind the layers
            taken = [out.last_hidden_state]
        first = int(any("class" in n or "cls" in n for n, _ in tower.named_parameters()))
        key = keys[0].unflatten(1, (attention.num_heads, -1)).mean(dim=1)
        projector = (
            inner.connector.modality_projection
            if hasattr(inner, "connector")
            else inner.multi_modal_projector
        )
        return cls(
            model=inner,
            layers=layers,
            first=first,
            states=tuple(state[0] for state in out.hidden_states),
            taken=torch.cat(taken, dim=-1)[0],
            read=out.attentions[-2][0],
            key=key[first:],
            projector=copy.deepcopy(projector).double(),
        )

    @property
    def side(self) -> int:
        """Patches along the side of a tile."""
        return math.isqrt(len(self.key))

    @property
    def block(self) -> int:
        """Patches along the side of a visual token."""
        config = self.model.config
        return getattr(config, "scale_factor", 0) or round(
            1 / getattr(config, "downsample_ratio", 1)
        )

    def shuffled(self, values: torch.Tensor) -> torch.Tensor:
        """Return values of patches [P, c] as the model's own code joins those of a token, [N, ...]."""
        if self.block == 1:
            return values
        if hasattr(self.model, "connector"):
            found: torch.Tensor = self.model.connector.pixel_shuffle(values[None], self.block)[0]
            return found
        grid = values.unflatten(0, (self.side, self.side))[None]
        joined = self.model.pixel_shuffle(grid, scale_factor=1 / self.block)
        return joined.reshape(-1, joined.shape[-1])

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean [N, c] over the patches of each token of values [P, c]."""
        columns = [self.shuffled(column[:, None]).mean(dim=1) for column in values.T]
        return torch.stack(columns, dim=1)

    def cosines(self) -> torch.Tensor:
        """Return the cosine of each token to the class token, or to as many of them, [N]."""
        rows, tokens = self.taken[1:], self.taken[:1].expand(len(self.key), -1)
        rows, tokens = self.shuffled(rows), self.shuffled(tokens.contiguous())
        units = (part / part.norm(dim=-1, keepdim=True) for part in (rows, tokens))
        return torch.stack(tuple(units)).prod(dim=0).sum(dim=-1)
