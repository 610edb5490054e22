"""Which roles a model's chat template has, and in which form it takes their texts."""

from collections.abc import Sequence
from typing import Any

from compressor.errors import DataError
from export.runtime.messages import Message, user_message
from export.runtime.prompter import Prompter
from export.server.refusal import bad_request

_PROBE, _ASKED = "Zq7 probe", "Kx3 asked"


class TemplateRoles:
    """Roles of a chat template beside the user's; found by writing short conversations.

    Args:
        prompter: has the template.
    """

    def __init__(self, prompter: Prompter) -> None:
        self._prompter = prompter
        asked = user_message(_ASKED, 0)
        self._listed: dict[str, bool] = {}
        for role in ("system", "assistant"):
            for listed in (True, False):
                turn = {"role": role, "content": _content(_PROBE, listed=listed)}
                turns = [turn, asked] if role == "system" else [asked, turn, asked]
                if self._writes(turns):
                    self._listed[role] = listed
                    break
        if "system" in self._listed:
            content = _content(_PROBE, listed=self._listed["system"])
            texts = [
                self._text([{"role": role, "content": content}, asked])
                for role in ("system", "assistant", "user")
            ]
            if texts[0] in texts[1:]:  # it is taken for another's words
                del self._listed["system"]

    def content(self, role: str, text: str, where: str) -> Any:
        """Return the content of a turn of the system or of the assistant.

        Raises:
            RefusedError: the template has no such turns.
        """
        if role not in self._listed:
            problem = f"this model's chat template has no turns of the {role}; leave it out"
            raise bad_request(f"{where}.role", problem)
        return _content(text, listed=self._listed[role])

    def _writes(self, turns: Sequence[Message]) -> bool:
        """Whether a conversation is written, and not as the list that it is."""
        text = self._text(turns)
        return (
            text is not None
            and _PROBE in text
            and not any(f"{quote}{_PROBE}" in text for quote in "'\"")
        )

    def _text(self, turns: Sequence[Message]) -> str | None:
        try:
            return self._prompter.render(turns)
        except DataError:
            return None


def _content(text: str, *, listed: bool) -> Any:
    return [{"type": "text", "text": text}] if listed else text
