"""The unmodified model of transformers on some of its visual rows: what is claimed in front of the decoder.

All visual rows are those that the original itself puts in front of its decoder. Of each tile's, or of each
grid's of a picture, the rule of a method, written here anew, keeps some; rows that end lines, which are told
by being the original's own, stay. The original's own decoder runs them with the prompt's text, at the places
and positions that they have in the whole prompt.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.family_cases import CONVERSATIONS, NEW_TOKENS, Made

Rule = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.int64]]]
"""Rows [N, D] of a tile to those that stay [K, D], and their places [K]."""


def gprune(ratio: float, of: int) -> Rule:
    """Return the released rule, as the golden cases' sheet has it; a ratio of tiles of `of` rows."""

    def rule(f: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
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

    def rule(f: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
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
    return lambda f: (f[places], np.array(places))


def first_of(order: NDArray[np.int64], share: Fraction) -> Rule:
    """Return the rule that keeps those of a grid's places that an order of more places has first."""

    def rule(f: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        kept = np.sort([place for place in order if place < len(f)][: int(share * len(f))])
        return f[kept], kept

    return rule


def means(squares: list[list[int]], places: list[int]) -> Rule:
    """Return the rule that puts means of rows at places."""
    return lambda f: (np.stack([f[square].mean(axis=0) for square in squares]), np.array(places))


class Whole:
    """A tiny family's unmodified model on rows that a rule chooses.

    Args:
        made: the family.
        rule: of one tile.
    """

    def __init__(self, made: Made, rule: Rule) -> None:
        self.made, self.rule = made, rule
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
        for turn in CONVERSATIONS[name]:
            messages.append(self.made._asked(turn))
            tokens, logits = self.answered(messages)
            text = self.made.loaded.processor.decode(tokens)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
        return tokens, logits

    @torch.inference_mode()
    def answered(self, messages: list[dict[str, Any]]) -> tuple[list[int], NDArray[np.float32]]:
        """Return what `answer` does, of the last of these turns."""
        inputs = self.made.inputs(messages)
        visual = inputs["input_ids"][0] == self.made.loaded.facts.image_token_id
        embeds, positions = self._given(inputs)
        stays = torch.ones(len(visual), dtype=torch.bool)
        for grid in self._grids(embeds[0], visual):
            found, kept = self.rule(embeds[0, grid].double().numpy())
            stays[grid] = False
            stays[grid[kept]] = True
            embeds[0, grid[kept]] = torch.from_numpy(found).float()
        if positions is None:
            positions = torch.arange(len(visual))[None]
        embeds, places, end = embeds[:, stays], positions[..., stays], positions.max() + 1
        past, ran = None, 0
        tokens: list[int] = []
        logits = []
        while len(tokens) < NEW_TOKENS:
            ran += embeds.shape[1]
            out = self.language(
                inputs_embeds=embeds,
                position_ids=places,
                attention_mask=torch.ones(1, ran, dtype=torch.int64),
                past_key_values=past,
                use_cache=True,
            )
            past = out.past_key_values
            logits.append(self.original.lm_head(out.last_hidden_state[:, -1])[0])
            tokens.append(int(logits[-1].masked_fill(~self.allowed, -torch.inf).argmax()))
            embeds = self.original.get_input_embeddings()(torch.tensor([tokens[-1:]]))
            places = torch.full_like(places[..., :1], end + len(tokens) - 1)
        return tokens, torch.stack(logits).numpy()

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
