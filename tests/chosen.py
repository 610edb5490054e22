"""The unmodified model of transformers on some of its visual rows: what is claimed in front of the decoder.

All visual rows are those that the original itself puts in front of its decoder. Of each tile's, or of each
grid's of a picture, the rule of a method, written here anew, keeps some; rows that end lines, which are told
by being the original's own, stay. The original's own decoder runs them with the prompt's text, at the places
and positions that they have in the whole prompt, turn after turn.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from compressor.plan.plan import Plan
from tests.family_cases import CONVERSATIONS, NEW_TOKENS, Made
from tests.hooked import SequenceRows, hooked
from tests.seen_tower import Seen

Rows = NDArray[np.float64]
Choice = tuple[Rows, NDArray[np.int64]]
"""Rows [K, D] that stay, and their places [K]."""


@dataclass(frozen=True)
class Tile:
    """A tile as the unmodified model sees it.

    Attributes:
        rows: [N, D], as they come in front of its decoder.
        pixels: [1, 3, H, W]; all of the prompt, [pictures, tiles, 3, H, W] say, where grids differ.
        original: the model.
    """

    rows: Rows
    pixels: torch.Tensor
    original: Any


Rule = Callable[[Tile], Choice]


def gprune(ratio: float, of: int) -> Rule:
    """Return the released rule, as the golden cases' sheet has it; a ratio of tiles of `of` rows."""

    def rule(tile: Tile) -> Choice:
        f = tile.rows
        units = f / np.linalg.norm(f, axis=1, keepdims=True)
        s = units @ units.T
        near = s >= 0.5
        a = np.where(near, np.exp(s / 0.03), 0.0)
        a /= a.sum(axis=1, keepdims=True)
        score = np.linalg.norm(f, axis=1) @ np.linalg.matrix_power(a, 5) / near.sum(axis=0)
        kept = np.sort(np.argsort(-score, kind="stable")[: len(f) * int(ratio * of) // of])
        return f[kept], kept

    return rule


def divprune(ratio: float) -> Rule:
    """Return the rule of greatest least distances, one token after the other."""

    def rule(tile: Tile) -> Choice:
        f = tile.rows
        units = f / np.linalg.norm(f, axis=1, keepdims=True)
        distance = 1 - units @ units.T
        others = [[j for j in range(len(f)) if j != i] for i in range(len(f))]
        kept = [int(np.argmax([distance[i, rest].min() for i, rest in enumerate(others)]))]
        while len(kept) < int(ratio * len(f)):
            left = [i for i in range(len(f)) if i not in kept]
            kept.append(max(left, key=lambda i: distance[i, kept].min()))
        return f[np.sort(kept)], np.sort(kept)

    return rule


def at(places: list[int]) -> Rule:
    """Return the rule that keeps fixed places."""
    return lambda tile: (tile.rows[places], np.array(places))


def first_of(order: NDArray[np.int64], share: Fraction) -> Rule:
    """Return the rule that keeps those of a grid's places that an order of more places has first."""

    def rule(tile: Tile) -> Choice:
        rows = len(tile.rows)
        kept = np.sort([place for place in order if place < rows][: int(share * rows)])
        return tile.rows[kept], kept

    return rule


def means(squares: list[list[int]], places: list[int]) -> Rule:
    """Return the rule that puts means of rows at places."""
    return lambda tile: (
        np.stack([tile.rows[square].mean(axis=0) for square in squares]),
        np.array(places),
    )


def cls_knee(kept: int, of: int) -> Rule:
    """Return the rule of cosines to the class token, without the knee; k of tiles of `of` rows."""

    def rule(tile: Tile) -> Choice:
        cosines = class_cosines(tile)
        count = len(tile.rows) * kept // of
        places = np.sort(np.argsort(-cosines, kind="stable")[:count])
        return tile.rows[places], places

    return rule


def class_cosines(tile: Tile) -> Rows:
    """Return the cosine of each visual token to the class token of the tile that it is in, [N].

    Where rows of several tiles are arranged, each is told by what the projector makes of its patch.
    """
    if tile.pixels.dim() == 4:
        found: Rows = Seen.of(tile.original, tile.pixels).cosines().numpy()
        return found
    with torch.inference_mode():
        seen = [Seen.of(tile.original, one[None]) for one in tile.pixels.flatten(0, 1)]
        known = torch.cat([one.projector(one.taken[1:]) for one in seen])
        away = torch.cdist(torch.from_numpy(tile.rows), known)
        cosines = torch.cat([one.cosines() for one in seen])
    assert away.min(dim=1).values.max() < 1e-4
    return cosines[away.argmin(dim=1)].numpy()


def visionzip(kept: int, contextual: int) -> Rule:
    """Return VisionZip's rule in float64: attention that transformers itself gives, keys by a hook."""

    def rule(tile: Tile) -> Choice:
        seen = Seen.of(tile.original, tile.pixels)
        mean = seen.read.mean(dim=0)  # [rows that read, rows that are read]
        score = seen.means((mean[0, 1:] if seen.first else mean.mean(dim=0))[:, None])[:, 0]
        rows, key = seen.shuffled(seen.taken[seen.first :]), seen.means(seen.key)
        ranked = score.argsort(descending=True).tolist()
        dominant = sorted(ranked[: kept - contextual])
        others = sorted(ranked[kept - contextual :])
        targets = others[:: len(others) // contextual][:contextual]
        went: dict[int, list[int]] = {target: [] for target in targets}
        for place in others:
            if place not in went:
                like = [torch.cosine_similarity(key[place], key[t], dim=0) for t in targets]
                went[targets[int(torch.stack(like).argmax())]].append(place)
        made = {place: rows[place] for place in dominant}
        for target, merged in went.items():
            made[target] = rows[target] + (rows[merged].mean(dim=0) if merged else 0)
        places = sorted(made)
        projected = seen.projector(torch.stack([made[p] for p in places]))
        return projected.detach().numpy(), np.array(places)

    return rule


def wico(file: Path) -> Rule:
    """Return WiCo's rule in float64: CLIP's layer of transformers, and torch's own sliding blocks."""
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    def rule(tile: Tile) -> Choice:
        stored = {k.removeprefix("model.mm_projector."): v for k, v in load_file(file).items()}
        seen = Seen.of(tile.original, tile.pixels)
        asked = tile.original.config.vision_config.to_dict()
        keys = ("hidden_size", "num_attention_heads", "hidden_act", "layer_norm_eps")
        inner = len(stored["self_att.0.mlp.fc1.bias"])
        config = CLIPVisionConfig(**{key: asked[key] for key in keys}, intermediate_size=inner)
        config._attn_implementation = "eager"
        layer = CLIPEncoderLayer(config).double()
        own = {k.removeprefix("self_att.0."): v for k, v in stored.items() if "self_att" in k}
        layer.load_state_dict({name: tensor.double() for name, tensor in own.items()})
        rows = layer(seen.states[-3][None, seen.first :], None)
        grid = rows.transpose(1, 2).unflatten(2, (seen.side, seen.side))  # [1, C, H, W]
        window = 2 * seen.block
        blocks = torch.nn.functional.unfold(grid, window, stride=window)[0].T  # channel first
        weight, bias = (stored[f"window_proj.{x}"].double() for x in ("weight", "bias"))
        side = seen.side // seen.block
        firsts = np.arange(side**2).reshape(side, side)[::2, ::2].reshape(-1)
        return (blocks @ weight.T + bias).detach().numpy(), firsts

    return rule


class Whole:
    """A tiny family's unmodified model on rows that a rule chooses.

    Args:
        made: the family.
        rule: of one tile.
        plan: what hooks do inside the decoder; None: nothing.
        anew: rows are numbered as if no others had been there.

    Attributes:
        entered: [S] which of the rows that run are visual; None: those that are put in front are looked for.
    """

    entered: torch.Tensor | None = None

    def __init__(
        self, made: Made, rule: Rule, plan: Plan | None = None, *, anew: bool = False
    ) -> None:
        self.made, self.rule, self.plan, self.anew = made, rule, plan, anew
        self.original = made.loaded.original
        self.language = self.original
        for name in made.family.layers.split(".")[:-1]:
            self.language = getattr(self.language, name)
        barred = self.original.generation_config.suppress_tokens
        self.allowed = torch.ones(made.loaded.facts.decoder.vocab, dtype=torch.bool)
        self.allowed[barred] = False

    def answer(self, name: str) -> tuple[list[int], NDArray[np.float32]]:
        """Return the greedy tokens of the last turn of a conversation, and the logits of each."""
        messages: list[dict[str, Any]] = []
        starts = [0]
        for turn in CONVERSATIONS[name]:
            messages.append(self.made._asked(turn))
            tokens, logits = self.answered(messages, starts)
            starts.append(self.made.inputs(messages)["input_ids"].shape[1])
            text = self.made.loaded.processor.decode(tokens)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
        return tokens, logits

    @torch.inference_mode()
    def answered(
        self, messages: list[dict[str, Any]], starts: list[int]
    ) -> tuple[list[int], NDArray[np.float32]]:
        """Return what `answer` does, of the last of these turns, whose rows begin at these places."""
        self.entered = None
        inputs = self.made.inputs(messages)
        visual = inputs["input_ids"][0] == self.made.loaded.facts.image_token_id
        embeds, positions = self._given(inputs)
        stays = torch.ones(len(visual), dtype=torch.bool)
        for grid, pixels in zip(self._grids(embeds[0], visual), self._pixels(inputs), strict=False):
            asked = Tile(embeds[0, grid].double().numpy(), pixels, self.original)
            found, kept = self.rule(asked)
            stays[grid] = False
            stays[grid[kept]] = True
            embeds[0, grid[kept]] = torch.from_numpy(found).float()
        if positions is None:
            positions = torch.arange(len(visual))[None]
        embeds, places, end = embeds[:, stays], positions[..., stays], positions.max() + 1
        if self.anew:
            places, end = torch.arange(int(stays.sum()))[None], int(stays.sum())
        self.entered = visual[stays]
        around: AbstractContextManager[None] = nullcontext()
        if self.plan is not None:
            there = SequenceRows(visual[stays].numpy(), None)
            around = hooked(self.made.layers, self.plan, there)
        begins = [int(stays[:start].sum()) for start in starts[1:]]
        turns = list(
            zip(embeds.tensor_split(begins, 1), places.tensor_split(begins, -1), strict=True)
        )
        past, ran = None, 0
        tokens: list[int] = []
        logits = []
        with around:
            while len(tokens) < NEW_TOKENS:
                if turns:
                    embeds, places = turns.pop(0)
                ran += embeds.shape[1]
                out = self.language(
                    inputs_embeds=embeds,
                    position_ids=places,
                    attention_mask=torch.ones(1, ran, dtype=torch.int64),
                    past_key_values=past,
                    use_cache=True,
                )
                past = out.past_key_values
                if turns:
                    continue
                logits.append(self.original.lm_head(out.last_hidden_state[:, -1])[0])
                tokens.append(int(logits[-1].masked_fill(~self.allowed, -torch.inf).argmax()))
                embeds = self.original.get_input_embeddings()(torch.tensor([tokens[-1:]]))
                places = torch.full_like(places[..., :1], end + len(tokens) - 1)
        return tokens, torch.stack(logits).numpy()

    def _pixels(self, inputs: Any) -> Iterator[torch.Tensor]:
        """Yield the pixels [1, 3, H, W] of each tile; where grids differ, all."""
        pixels = inputs.get("pixel_values", torch.zeros(0, 3, 1, 1))
        if self.made.loaded.facts.grids_differ:
            return repeat(pixels)
        return iter(pixels.reshape(-1, 1, *pixels.shape[-3:]))

    def _grids(self, rows: torch.Tensor, visual: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the places of the rows [S, D] that the rule chooses among together."""
        facts = self.made.loaded.facts
        places = torch.arange(len(visual))[visual]
        runs = places.tensor_split(torch.nonzero(places.diff() > 1)[:, 0] + 1)
        for run in runs if len(places) else ():
            if facts.sizes_differ:
                yield run
            elif facts.arrangement is None:
                yield from run.split(facts.tile_rows)
            else:
                ends = (rows[run] == self.original.model.image_newline).all(dim=-1)
                whole = torch.arange(len(run)) < facts.tile_rows
                assert not (ends & whole).any()
                yield from (grid for grid in (run[whole], run[~whole & ~ends]) if len(grid))

    def _given(self, inputs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the rows [1, S, D] that the original puts in front of its decoder, and their positions."""
        seen = []
        hook = self.language.register_forward_pre_hook(
            lambda _, __, given: seen.append(
                (given["inputs_embeds"].clone(), given.get("position_ids"))
            ),
            with_kwargs=True,
        )
        try:
            self.original(**inputs)
        finally:
            hook.remove()
        return seen[0]
