"""What a request for a chat completion asks: read in full, or refused by the name of the field.

Nothing that changes an answer is left out in silence: what is not done here is refused, unless it is given
as what is done anyway (`frequency_penalty: 0`, `response_format: {"type": "text"}`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from export.server.refusal import RefusedError, bad_request
from export.server.wire.fields import JsonFields, fields_of, in_few_words, read_document

MOST_TURNS = 1000
MOST_PARTS = 1000
"""Parts of all turns together."""
MOST_CHARACTERS = 1 << 20
"""Of all texts together."""
MOST_STOPS, LONGEST_STOP = 4, 500
LEAST_TEMPERATURE = 1e-6
MOST_TEMPERATURE = 2.0
MOST_SEED = 1 << 63
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

IRRELEVANT: Final = frozenset((
    "user", "safety_identifier", "metadata", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
))  # fmt: skip
"""JsonFields that change no answer."""

ALLOWED: Final[Mapping[str, tuple[Any, ...]]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""OpenAI's fields that are not done here, and the values of each that ask for nothing."""


@dataclass(frozen=True)
class PictureUrl:
    """A picture of a turn.

    Attributes:
        url: as it was given.
        where: its place in the request.
    """

    url: str
    where: str


@dataclass(frozen=True)
class MessageTurn:
    """A message.

    Attributes:
        role: `system`, `user` or `assistant`.
        parts: texts and pictures in their order.
        where: its place in the request.
        listed: whether its content is a list of parts; else it is a text, the one part.
    """

    role: str
    parts: tuple[str | PictureUrl, ...]
    where: str
    listed: bool = True

    @property
    def content(self) -> str:
        """The place of its content."""
        return f"{self.where}.content"

    def place(self, number: int) -> str:
        """Return the place of a text among its parts."""
        return f"{self.content}[{number}].text" if self.listed else self.content


@dataclass(frozen=True)
class ChatRequest:
    """A request.

    Attributes:
        model: that was asked.
        turns: of the conversation, oldest first.
        stream: whether the answer comes in pieces.
        include_usage: whether a stream ends with its counts.
        max_tokens: of the answer; None: as many as the server allows and the model has room for.
        temperature: 0: greedy.
        top_p: as `AnswerOptions`.
        seed: of the draws; None: any.
        stops: texts before which the answer ends.
    """

    model: str
    turns: tuple[MessageTurn, ...]
    stream: bool
    include_usage: bool
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stops: tuple[str, ...]

    @property
    def pictures(self) -> tuple[PictureUrl, ...]:
        """All pictures, in their order."""
        parts = (part for turn in self.turns for part in turn.parts)
        return tuple(part for part in parts if isinstance(part, PictureUrl))


def read_request(body: bytes | bytearray, most_tokens: int) -> ChatRequest:
    """Return what a body asks.

    Args:
        body: of the request.
        most_tokens: that a request may ask for.

    Raises:
        RefusedError: it is wrong, or asks for what is not done here; names the field.
    """
    fields = read_document(body)
    model = fields.text("model")
    if model is None:
        raise bad_request("model", "is missing")
    stream = fields.flag("stream")
    temperature, top_p = _sampling(fields)
    request = ChatRequest(
        model=model,
        turns=_turns(fields),
        stream=stream,
        include_usage=_include_usage(fields, stream),
        max_tokens=_max_tokens(fields, most_tokens),
        temperature=temperature,
        top_p=top_p,
        seed=fields.whole("seed", -MOST_SEED, MOST_SEED - 1),
        stops=_stops(fields),
    )
    if (count := fields.whole("n", 1, 128)) not in (None, 1):
        raise bad_request("n", f"{count} answers are not made at once here; leave it out, or 1")
    for name, value in fields.left():
        _check_left(fields, name, value)
    fields.end()
    return request


def _check_left(fields: JsonFields, name: str, value: Any) -> None:
    if name in IRRELEVANT:
        fields.take(name)
    elif name in ALLOWED:
        fields.take(name)
        if value not in ALLOWED[name]:
            allowed = "".join(f" or {in_few_words(one)}" for one in ALLOWED[name][:1] if one != [])
            problem = f"is not done here; leave it out{allowed}"
            raise bad_request(name, problem, "unsupported_parameter")


def _sampling(fields: JsonFields) -> tuple[float, float]:
    temperature = fields.number("temperature", 0, MOST_TEMPERATURE)
    if temperature and temperature < LEAST_TEMPERATURE:
        problem = f"must be 0, or from {LEAST_TEMPERATURE:f} to {MOST_TEMPERATURE:g}"
        raise bad_request("temperature", problem)
    top_p = fields.number("top_p", 0, 1)
    if top_p == 0:
        raise bad_request("top_p", "must be above 0; for the likeliest token give temperature 0")
    if top_p is not None and top_p < 1 and temperature is None:
        # OpenAI's default is to draw, ours is not.
        raise bad_request("top_p", "does nothing without a temperature; give one as well")
    return temperature or 0.0, 1.0 if top_p is None else top_p


def _max_tokens(fields: JsonFields, most: int) -> int | None:
    older = fields.whole("max_tokens", 1, most)
    newer = fields.whole("max_completion_tokens", 1, most)
    if older is not None and newer is not None and older != newer:
        raise bad_request("max_tokens", "and max_completion_tokens differ; give one of them")
    return older if newer is None else newer


def _include_usage(fields: JsonFields, stream: bool) -> bool:
    options = fields.inner("stream_options")
    if options is None:
        return False
    if not stream:
        raise bad_request("stream_options", "is read with stream alone")
    include = options.flag("include_usage")
    options.flag("include_obfuscation")  # padding against listeners, which changes no answer
    options.end()
    return include


def _stops(fields: JsonFields) -> tuple[str, ...]:
    found = fields.take("stop")
    stops = [found] if isinstance(found, str) else found
    if stops is None:
        return ()
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise bad_request("stop", f"must be text or a list of texts, found {in_few_words(found)}")
    if len(stops) > MOST_STOPS or not all(0 < len(stop) <= LONGEST_STOP for stop in stops):
        problem = f"may be {MOST_STOPS} texts at most, each of 1 to {LONGEST_STOP} characters"
        raise bad_request("stop", problem)
    return tuple(stops)


def _turns(fields: JsonFields) -> tuple[MessageTurn, ...]:
    given = fields.entries("messages")
    if not given:
        raise bad_request("messages", "is missing or empty")
    if len(given) > MOST_TURNS:
        raise bad_request("messages", f"has more than {MOST_TURNS} messages")
    turns = tuple(
        _turn(fields_of(one, f"messages[{at}]"), f"messages[{at}]") for at, one in enumerate(given)
    )
    parts = [part for turn in turns for part in turn.parts]
    if len(parts) > MOST_PARTS:
        raise bad_request("messages", f"have more than {MOST_PARTS} parts")
    if sum(len(part) for part in parts if isinstance(part, str)) > MOST_CHARACTERS:
        raise bad_request("messages", f"have more than {MOST_CHARACTERS:,} characters of text")
    return turns


def _turn(fields: JsonFields, where: str) -> MessageTurn:
    named = fields.text("role")
    role = ROLES.get(named or "")
    if role is None:
        problem = f"{in_few_words(named)} is not one of {', '.join(ROLES)}"
        raise bad_request(f"{where}.role", problem)
    content = fields.take("content")
    place = f"{where}.content"
    if isinstance(content, str):
        parts: tuple[str | PictureUrl, ...] = (content,)
    elif isinstance(content, list) and 0 < len(content) <= MOST_PARTS:
        each = ((fields_of(one, f"{place}[{at}]"), at) for at, one in enumerate(content))
        parts = tuple(_part(inner, f"{place}[{at}]", role) for inner, at in each)
    elif isinstance(content, list):
        raise bad_request(place, f"must have 1 to {MOST_PARTS} parts")
    else:
        raise bad_request(place, f"must be text or a list of parts, found {in_few_words(content)}")
    for name in ("tool_calls", "annotations"):
        if fields.take(name) not in (None, []):
            raise bad_request(f"{where}.{name}", "is not done here; leave it out")
    fields.end()
    return MessageTurn(role, parts, where, isinstance(content, list))


def _part(fields: JsonFields, where: str, role: str) -> str | PictureUrl:
    kind = fields.text("type")
    if kind == "text":
        text = fields.text("text")
        if text is None:
            raise bad_request(f"{where}.text", "is missing")
        fields.end()
        return text
    if kind != "image_url":
        raise bad_request(
            f"{where}.type", f"{in_few_words(kind)} is neither 'text' nor 'image_url'"
        )
    if role != "user":
        raise bad_request(f"{where}.type", "pictures belong into turns of the user")
    inner = fields.inner("image_url")
    url = None if inner is None else inner.text("url")
    if inner is None or url is None:
        raise bad_request(f"{where}.image_url.url", "is missing")
    if (detail := inner.text("detail")) not in (None, "auto"):
        problem = f"{in_few_words(detail)} is not done: pictures are read as the model reads them"
        raise bad_request(f"{where}.image_url.detail", problem, "unsupported_parameter")
    inner.end()
    fields.end()
    return PictureUrl(url, f"{where}.image_url.url")


def check_model(request: ChatRequest, name: str) -> None:
    """Refuse a request for another model than the one that is here.

    Raises:
        RefusedError: names the one that is.
    """
    if request.model != name:
        problem = f"{in_few_words(request.model)} is not here; the model is {name!r}"
        raise RefusedError(404, f"model: {problem}", param="model", code="model_not_found")
