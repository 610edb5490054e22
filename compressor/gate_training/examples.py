"""What DyVTE's gates learn from: may the visual rows of this prompt leave after this layer?

Source: "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical
Findings" (DyVTE, 2024); see `compressor.decoder.gates`.

Rule: the right answer is forced upon the original, and upon the original with the visual rows gone after
layer e. The label is 1 if more than 0.99 of the answer tokens' most likely tokens are equal and the loss on
them is below 1.03 of the original's. A gate sees the prompt alone, not the answer.

Letters: T text rows of prompt and answer, A answer tokens, C layers asked about, D hidden. Until an exit
nothing differs from the original, so one full pass serves all layers, and an exit costs text rows alone;
the tails of all layers run as one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.decoder import Decoder
from compressor.decoder.full_pass import FullPass, full_pass, text_tails
from compressor.decoder.gates import gate_input, gate_selection
from compressor.families import LoadedModel
from compressor.samples.prompts import embed, encode_answered
from compressor.samples.questions import Sample

LEAST_AGREEMENT = 0.99
MOST_LOSS = 1.03


@dataclass(frozen=True)
class Examples:
    """One prompt's examples, one for each layer asked about, in their order.

    Attributes:
        inputs: [C, 2D] what the gates read.
        labels: [C] int64, 1: the visual rows may leave after the layer.
    """

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Forced:
    """A prompt's full pass with the right answer forced upon it.

    Attributes:
        full: states of the prompt's rows and of all answer tokens but the last.
        answer: [A] tokens of the right answer, the ending one included.
    """

    full: FullPass
    answer: Tensor


def examples_of(
    model: LoadedModel, decoder: Decoder, sample: Sample, layers: Sequence[int]
) -> Examples:
    """Look at one prompt.

    Args:
        model: the original model.
        decoder: the original's, with logits of all text rows.
        sample: with a picture and an answer.
        layers: to be asked about, ascending, the last layer not among them.

    Raises:
        DataError: the picture cannot be read, or the prompt cannot be encoded.
    """
    forced = force_answer(model, decoder, sample)
    return Examples(gate_inputs(forced, layers), labels(forced, layers))


@torch.inference_mode()
def force_answer(model: LoadedModel, decoder: Decoder, sample: Sample) -> Forced:
    """Run the original over a prompt and its right answer once."""
    prompt, answer = encode_answered(model.processor, sample, model.facts)
    full = full_pass(decoder, *embed(model, prompt).call)
    return Forced(full, answer.to(full.logits.device))


@torch.inference_mode()
def gate_inputs(forced: Forced, layers: Sequence[int]) -> Tensor:
    """Return what the gates behind the layers read of the prompt [C, 2D]; no answer token is in it."""
    full = forced.full
    rows = full.text_index.shape[1] - len(forced.answer) + 1
    selection = gate_selection(full.visual_index, full.text_index[:, :rows], full.text[0].dtype)
    return torch.cat([gate_input(selection, full.text[layer + 1][:, :rows]) for layer in layers])


@torch.inference_mode()
def labels(forced: Forced, layers: Sequence[int]) -> Tensor:
    """Return for each layer [C] whether the visual rows may leave after it: 1 or 0."""
    count = len(forced.answer)
    original = forced.full.decoder.next_token_logits(
        forced.full.text[-1][:, -count:]
    )  # [1, A, vocab]
    early = exit_logits(forced, layers)  # [C, A, vocab]
    agreement = (early.argmax(-1) == original.argmax(-1)).double().mean(dim=1)
    target = forced.answer.expand(len(early), count)
    loss = answer_loss(early, target)
    allowed = MOST_LOSS * answer_loss(original, target[:1])
    return ((agreement > LEAST_AGREEMENT) & (loss < allowed)).long()


def answer_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy [C] in nats, float64, of answers [C, A] under logits [C, A, vocab]."""
    each = F.cross_entropy(logits.double().transpose(1, 2), target, reduction="none")
    return each.mean(dim=1)


@torch.inference_mode()
def exit_logits(forced: Forced, layers: Sequence[int]) -> Tensor:
    """Return the logits [C, A, vocab] at the answer tokens with the visual rows gone after each layer."""
    tails = text_tails(forced.full, [layer + 1 for layer in layers])
    return forced.full.decoder.next_token_logits(tails[:, -len(forced.answer) :])
