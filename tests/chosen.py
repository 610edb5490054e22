"""The unmodified model of transformers on some of its visual rows: what is claimed in front of the decoder.

All visual rows are those that the original itself puts in front of its decoder. Of each tile's the rule of a
method, written here anew, keeps some; the original's own decoder runs them with the prompt's text, at the
places that they have in the whole prompt, turn after turn.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.plan.plan import Plan
from tests.family_cases import CONVERSATIONS, NEW_TOKENS, Made
from tests.hooked import SequenceRows, hooked

Rule = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.int64]]]
"""Rows [N, D] of a tile to those that stay [K, D], and their places [K]."""


def gprune(ratio: float) -> Rule:
    """Return the released rule, as the golden cases' sheet has it."""

    def rule(f: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        units = f / np.linalg.norm(f, axis=1, keepdims=True)
        s = units @ units.T
        near = s >= 0.5
        a = np.where(near, np.exp(s / 0.03), 0.0)
        a /= a.sum(axis=1, keepdims=True)
        score = np.linalg.norm(f, axis=1) @ np.linalg.matrix_power(a, 5) / near.sum(axis=0)
        kept = np.sort(np.argsort(-score, kind="stable")[: int(ratio * len(f))])
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


def means(squares: list[list[int]], places: list[int]) -> Rule:
    """Return the rule that puts means of rows at places."""
    return lambda f: (np.stack([f[square].mean(axis=0) for square in squares]), np.array(places))


class Whole:
    """A tiny family's unmodified model on rows that a rule chooses.

    Args:
        made: the family.
        rule: of one tile.
        plan: what hooks do inside the decoder; None: nothing.
    """

    def __init__(self, made: Made, rule: Rule, plan: Plan | None = None) -> None:
        self.made, self.rule, self.plan = made, rule, plan
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
        inputs = self.made.inputs(messages)
        visual = inputs["input_ids"][0] == self.made.loaded.facts.image_token_id
        embeds = self._embeds(inputs)
        places = torch.arange(len(visual))
        stays = torch.ones(len(visual), dtype=torch.bool)
        rows = self.made.loaded.facts.tile_rows
        for tile in places[visual].reshape(-1, rows):
            found, kept = self.rule(embeds[0, tile].double().numpy())
            stays[tile] = False
            stays[tile[kept]] = True
            embeds[0, tile[kept]] = torch.from_numpy(found).float()
        embeds, places, end = embeds[:, stays], places[stays][None], len(visual)
        around: AbstractContextManager[None] = nullcontext()
        if self.plan is not None:
            rows = SequenceRows(visual[stays].numpy(), None)
            around = hooked(self.made.layers, self.plan, rows)
        begins = [int(stays[:start].sum()) for start in starts[1:]]
        turns = list(
            zip(embeds.tensor_split(begins, 1), places.tensor_split(begins, 1), strict=True)
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
                places = torch.tensor([[end + len(tokens) - 1]])
        return tokens, torch.stack(logits).numpy()

    def _embeds(self, inputs: Any) -> torch.Tensor:
        """Return the rows [1, S, D] that the original puts in front of its decoder."""
        seen = []
        hook = self.language.register_forward_pre_hook(
            lambda _, __, given: seen.append(given["inputs_embeds"].clone()), with_kwargs=True
        )
        try:
            self.original(**inputs)
        finally:
            hook.remove()
        return seen[0]
