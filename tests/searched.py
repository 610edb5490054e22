"""What tests of searches share: small models, questions, and a second way to measure a plan."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.calibration.resume import Task
from compressor.calibration.run import calibrate
from compressor.compressed import CompressedModel, compress
from compressor.contract.method import Evidence
from compressor.families import LoadedModel
from compressor.methods.auto import Auto
from compressor.plan.plan import Plan
from compressor.samples.prompts import EncodedPrompt, embed, encode_answered
from compressor.samples.questions import Sample
from compressor.search.candidates import measures_for, offering
from compressor.search.engine import SearchTerms

WHERE = "compress[0].auto"


def terms(
    samples: tuple[Sample, ...], evidence: Evidence | None = None, **keys: Any
) -> SearchTerms:
    """Return what a search is for; keys of the entry, and `seed` and `budget` of the terms."""
    own = {key: keys.pop(key) for key in ("seed", "budget", "costs") if key in keys}
    given = {"evidence": evidence or Evidence(WHERE), "seed": 0, "tokens": 4} | own
    return SearchTerms(Auto(**keys), WHERE, samples=samples, data="questions.jsonl", **given)


def evidence_of(model: LoadedModel, samples: tuple[Sample, ...], path: Path) -> Evidence:
    """Return what calibration measures for all methods that offer something."""
    measures = measures_for(offering(Auto(keep=1.0), WHERE))
    names = tuple(measure.name for measure in measures)
    profile = calibrate(model, Task.of(model.facts, model.digest, samples, "d", names), path)
    return Evidence(WHERE, measured=profile.measured(), measures=profile.measures)


def independent_kl(model: LoadedModel, plan: Plan, samples: tuple[Sample, ...]) -> float:
    """Return the mean KL(original || plan) at answers, by transformers and one question at a time."""
    small = compress(model, plan, logits="all")
    found = []
    for sample in samples:
        prompt, answer = encode_answered(model.processor, sample, model.facts)
        with torch.inference_mode():
            pictures = {k: _as_long(v, prompt.input_ids) for k, v in prompt.of_pictures.items()}
            made = model.original(input_ids=prompt.input_ids, **pictures).logits[0]
            logits = _logits_at_once(small, prompt)
            if plan.keeps():
                logits = _logits_by_steps(small, prompt, answer)
        before, after = (_log_shares(x[-len(answer) :]) for x in (made, logits))
        found.append((np.exp(before) * (before - after)).sum(axis=1).mean())
    return float(np.mean(found))


def _logits_at_once(small: CompressedModel, prompt: EncodedPrompt) -> torch.Tensor:
    """Return the logits [T, vocab] of one call."""
    *call, positions, deepstack = embed(small, prompt).call
    logits, _ = small.decoder(*call, small.decoder.empty_past(1), positions, deepstack)
    return logits[0]


def _logits_by_steps(
    small: CompressedModel, prompt: EncodedPrompt, answer: torch.Tensor
) -> torch.Tensor:
    """Return what comes behind the answer's tokens, [A, vocab], as an exported model is asked: one a call."""
    ids = prompt.input_ids
    rows = embed(small, prompt.with_ids(ids[:, : ids.shape[1] - len(answer) + 1]))
    *call, positions, deepstack = rows.call
    logits, past = small.decoder(*call, small.decoder.empty_past(1), positions, deepstack)
    found = [logits[0, -1]]
    for number, token in enumerate(answer[:-1].tolist()):
        step = rows.layout.behind(number)
        index, turned = (
            None if array is None else torch.from_numpy(array)[None]
            for array in (step.text_index, step.positions)
        )
        nothing, nowhere = rows.visual_embeds[:, :0], rows.visual_index[:, :0]
        text = small.embedding[token][None, None]
        logits, past = small.decoder(nothing, text, nowhere, index, past, turned)
        found.append(logits[0, -1])
    return torch.stack(found)


def _as_long(value: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return what is said of each token of a prompt, of the answer's too: they are of no picture."""
    missing = ids.shape[1] - value.shape[1] if value.dim() == 2 and len(value) == 1 else 0
    of_tokens = not value.is_floating_point() and 0 < missing < 8
    return torch.nn.functional.pad(value, (0, missing)) if of_tokens else value


def _log_shares(logits: torch.Tensor) -> np.ndarray:
    values = logits.double().numpy()
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))
