"""An artifact as a model of lmms-eval: its tasks' conversations go through the runtime, one after another.

python -m lmms_eval --model vtcompress --model_args artifact=DIR --tasks TASK --batch_size 1
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from compressor.errors import DataError, VtcompressError
from compressor.samples.pictures import Picture
from export.runtime.messages import Message
from export.runtime.runtime import Runtime
from export.runtime.sampling import AnswerKeys
from export.runtime.stops import StopText

LONGEST = 128
"""New tokens where a task says nothing."""


class CompressedLmm(lmms):  # type: ignore[misc] # lmms-eval has no types
    """Answers lmms-eval's tasks that generate text.

    Args:
        artifact: its folder.
        batch_size: 1; requests run one after another.
        device: not taken here: lmms-eval gives one to every model. The backend decides where graphs run.
        options: of `Runtime.load`: `backend`, `threads`, `precision`, `mapped`, `gpu`, `verify`.

    Raises:
        VtcompressError: as `Runtime.load`; or an option that it does not have.
    """

    is_simple = False

    def __init__(
        self,
        artifact: str,
        batch_size: int | str = 1,
        device: str | None = None,  # noqa: ARG002
        **options: Any,
    ) -> None:
        super().__init__()
        options.pop("max_batch_size", None)
        known = set(inspect.signature(Runtime.load).parameters) - {"path", "progress"}
        if strange := sorted(set(options) - known):
            options_there = ", ".join(["artifact", *sorted(known)])
            problem = (
                f"--model_args {', '.join(strange)}: no such option; there are {options_there}"
            )
            raise DataError([problem])
        if str(batch_size) != "1":
            raise DataError([f"--batch_size {batch_size}: requests run one by one; give 1"])
        self.runtime = Runtime.load(artifact, **options)

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Return the answers to conversations.

        Args:
            requests: each with the arguments (context, a function from a document to messages, the task's
                generation settings, number of the document, task, split).

        Raises:
            DataError: a conversation holds a video or sound or does not fit the model, or a task asks for
                what the runtime does not have.
        """
        answers = []
        for request in tqdm(requests, desc="vtcompress", disable=self.rank != 0):
            _, messages_of, settings, document, task, split = request.args
            messages = messages_of(self.task_dict[task][split][document])
            answers.append(self._answer(messages, settings, f"task {task}, document {document}"))
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse: the graphs give logits of the last row alone.

        Raises:
            VtcompressError: always.
        """
        raise VtcompressError(
            f"{_tasks(requests)}: asks how likely answers are, and an artifact's graphs give the logits "
            "of the last row alone; choose the task's variant that generates text"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse: no task of several rounds was tried.

        Raises:
            VtcompressError: always.
        """
        raise VtcompressError(
            f"{_tasks(requests)}: asks in several rounds, which the model `vtcompress` does not take"
        )

    def _answer(self, raw: Any, settings: Mapping[str, Any], where: str) -> GenerationResult:
        messages, pictures = conversation(ChatMessages(messages=raw).messages, where)
        options, stops = answer_options(settings, where)
        answer = self.runtime.generate_from(messages, pictures, **options)
        stop = StopText(stops)
        text = ""
        for piece in answer:
            text += stop.push(piece)
            if stop.found:
                answer.close()
        text += stop.finish()
        counts = TokenCounts(answer.figures.prompt_rows, answer.figures.tokens)
        return GenerationResult(text, counts)


def conversation(messages: Iterable[Any], where: str) -> tuple[list[Message], list[Picture]]:
    """Return lmms-eval's messages as the runtime takes them, and their pictures in order.

    Raises:
        DataError: a message holds something else than text and pictures.
    """
    turns: list[Message] = []
    pictures: list[Picture] = []
    for message in messages:
        blocks = []
        for part in message.content:
            if part.type not in ("text", "image"):
                raise DataError([f"{where}: holds {part.type}; artifacts take text and pictures"])
            if part.type == "image":
                pictures.append(part.url)
                blocks.append({"type": "image"})
            else:
                blocks.append({"type": "text", "text": part.text})
        turns.append({"role": message.role, "content": blocks})
    return turns, pictures


def answer_options(settings: Mapping[str, Any], where: str) -> tuple[AnswerKeys, tuple[str, ...]]:
    """Return a task's generation settings as the runtime's options, and the texts that end an answer.

    Raises:
        DataError: the settings ask for beams, or for something unknown.
    """
    left = {key: value for key, value in settings.items() if value is not None}
    stops = left.pop("until", ())
    options: AnswerKeys = {"max_new_tokens": int(left.pop("max_new_tokens", LONGEST))}
    draws = left.pop("do_sample", float(left.get("temperature", 0)) > 0)
    temperature, top_p = float(left.pop("temperature", 1.0)), float(left.pop("top_p", 1.0))
    if draws and temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p}
    if (beams := left.pop("num_beams", 1)) != 1:
        raise DataError([f"{where}: asks for {beams} beams; the runtime follows one"])
    # What transformers' pipelines of other models are told of pictures and caches changes no answer here.
    for harmless in ("use_cache", "image_aspect_ratio", "image_sizes"):
        left.pop(harmless, None)
    if left:
        raise DataError([f"{where}: generation_kwargs {', '.join(sorted(left))}: not known here"])
    listed = (stops,) if isinstance(stops, str) else tuple(stops)
    return options, tuple(stop for stop in listed if stop)


def _tasks(requests: Sequence[Instance]) -> str:
    return ", ".join(sorted({str(request.task_name) for request in requests})) or "a task"
