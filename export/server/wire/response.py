"""The documents that answer: models, a completion, and the pieces of a stream."""

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Usage:
    """Counts of an answer.

    Attributes:
        prompt: tokens of it; a picture's are as many as it has visual rows in the prompt.
        completion: tokens of the answer, the ending one included.
        cached: of the prompt's, those that did not run.
    """

    prompt: int
    completion: int
    cached: int

    @property
    def document(self) -> dict[str, Any]:
        """OpenAI's form."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True)
class Completion:
    """One answer's documents.

    Attributes:
        model: its name.
        include_usage: whether the stream ends with its counts.
        identity: of the answer.
        created: seconds since 1970.
    """

    model: str
    include_usage: bool = False
    identity: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, reason: FinishReason, usage: Usage) -> dict[str, Any]:
        """Return the document of the whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return self._document("chat.completion", [choice]) | {"usage": usage.document}

    def begin(self) -> bytes:
        """Return the first event of a stream, which has the role."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def piece(self, text: str) -> bytes:
        """Return the event of a piece of text."""
        return self._chunk({"content": text})

    def end(self, reason: FinishReason, usage: Usage) -> bytes:
        """Return the last events of a stream."""
        found = self._chunk({}, reason)
        if self.include_usage:
            last = self._document("chat.completion.chunk", []) | {"usage": usage.document}
            found += event(last)
        return found + DONE

    def _chunk(self, delta: dict[str, Any], reason: FinishReason | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        document = self._document("chat.completion.chunk", [choice])
        return event(document | ({"usage": None} if self.include_usage else {}))

    def _document(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self.identity,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def event(document: Any) -> bytes:
    """Return a server-sent event of a document."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode(errors="replace")


def model_document(name: str, created: int) -> dict[str, Any]:
    """Return what `/v1/models` says of a model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "vtcompress"}
