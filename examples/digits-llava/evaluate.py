"""Answer the held-out questions with transformers' own LLaVA and count the exact matches.

    python evaluate.py [--model FOLDER] [--questions FILE.jsonl] [--out FILE.json]

One question per prompt, rendered by the model's own chat template; greedy generation in 32-bit
floats; prompts of equal length share a batch, so that there is no padding.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

HERE = Path(__file__).parent
BATCH = 50


def answers(folder: Path, questions: Path) -> list[dict[str, str]]:
    """Return the rows of ``questions``, each with what the model in ``folder`` says: ``said``."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    by_kind: dict[str, list[dict[str, str]]] = defaultdict(list)  # equally long prompts
    for line in questions.read_text().splitlines():
        row = json.loads(line)
        by_kind[row["kind"]].append(row)
    for rows in by_kind.values():
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            prompts = [prompt(processor, row["question"]) for row in batch]
            images = [[Image.open(questions.parent / row["image"])] for row in batch]
            inputs = processor(images=images, text=prompts, return_tensors="pt")
            produced = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
            said = processor.batch_decode(produced, skip_special_tokens=True)
            for row, text in zip(batch, said, strict=True):
                row["said"] = text.strip()
    return [row for rows in by_kind.values() for row in rows]


def prompt(processor: AutoProcessor, question: str) -> str:
    """Return the prompt of one question about one picture."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def score(rows: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """Return, per kind and overall, the number of questions, of right answers, and their ratio."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        for kind in (row["kind"], "overall"):
            hits[kind].append(row["said"] == row["answer"])
    return {
        kind: {"questions": len(each), "right": sum(each), "exact_match": sum(each) / len(each)}
        for kind, each in sorted(hits.items(), key=lambda item: item[0] == "overall")
    }


def main() -> None:
    """Read the command line, print the scores, write them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--questions", type=Path, default=HERE / "heldout.jsonl")
    parser.add_argument("--out", type=Path, help="for example heldout-results.json")
    options = parser.parse_args()
    text = json.dumps(score(answers(options.model, options.questions)), indent=2) + "\n"
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
