"""A conversation as messages: checked and copied before a chat template sees them."""

from collections.abc import Mapping, Sequence
from typing import Any

from compressor.errors import DataError

Message = Mapping[str, Any]
"""`{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]}`.

The content may be plain text instead of a list, where the model's template takes that.
"""


def user_message(question: str, images: int = 1) -> dict[str, Any]:
    """Return a user's turn: `images` pictures, then the question."""
    pictures: list[dict[str, str]] = [{"type": "image"} for _ in range(images)]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}


def plain_messages(messages: Sequence[Message], image_token: str) -> list[dict[str, Any]]:
    """Copy the messages as plain dicts, lists and strings, all a template may touch.

    Raises:
        DataError: a message is not of the form `Message`, or a text contains the image token.
    """
    if not messages:
        raise DataError(["messages: is empty; give at least one turn"])
    turns = []
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise DataError([f"{where}: must have a role and a content, and nothing else"])
        if not isinstance(message["role"], str):
            raise DataError([f"{where}.role: {message['role']!r} is not text, such as 'user'"])
        content = message["content"]
        if isinstance(content, str):
            check_text(content, f"{where}.content", image_token)
            copied: Any = str(content)
        elif isinstance(content, Sequence):
            copied = [
                _checked_block(block, f"{where}.content[{number}]", image_token)
                for number, block in enumerate(content)
            ]
        else:
            raise DataError([f"{where}.content: must be text or a list of blocks"])
        turns.append({"role": str(message["role"]), "content": copied})
    return turns


def _checked_block(block: Any, where: str, image_token: str) -> dict[str, str]:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind == "image":
        return {"type": "image"}
    if kind == "text" and isinstance(block.get("text"), str):
        check_text(block["text"], f"{where}.text", image_token)
        return {"type": "text", "text": str(block["text"])}
    allowed = "{'type': 'image'} or {'type': 'text', 'text': ...}"
    raise DataError([f"{where}: must be {allowed}, found {block!r:.80}"])


def check_text(text: str, where: str, image_token: str) -> None:
    """Refuse a text that contains the image token or is no valid Unicode.

    Args:
        text: the text.
        where: its place in the conversation, for the error.
        image_token: the text that stands for an image.

    Raises:
        DataError: says what to change.
    """
    count = text.count(image_token)
    if count:
        problem = (
            f"{where}: contains {image_token!r} {count} times, which the model would take for "
            "images: remove it or write it otherwise; pictures are given beside the text"
        )
        raise DataError([problem])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError([f"{where}: is no valid Unicode ({error.reason}); remove it"]) from error


def image_count(turn: Mapping[str, Any]) -> int:
    """Return how many images a checked turn holds."""
    content = turn["content"]
    return 0 if isinstance(content, str) else sum(block["type"] == "image" for block in content)


def texts(turn: Mapping[str, Any]) -> list[str]:
    """Return the texts of a checked turn."""
    content = turn["content"]
    if isinstance(content, str):
        return [content]
    return [block["text"] for block in content if block["type"] == "text"]
