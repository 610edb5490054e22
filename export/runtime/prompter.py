"""From a conversation to token ids and back, by the model's own chat template and tokenizer files.

Does what `processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)` of
transformers 5 does, with jinja2 and tokenizers alone. The folder's tokenizer.json must be the one
that transformers wrote (`processor.save_pretrained`): some of its tokenizer classes rebuild what
the older tokenizer.json of a repository says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jinja2
from tokenizers import Tokenizer, models

from compressor.disk.model_json import optional_json
from compressor.disk.tokenizer_file import read_tokenizer, tokenizing
from compressor.errors import DataError, ModelError, first_line
from compressor.generation.settings import model_settings
from export.runtime.chat_template import compile_template, find_template
from export.runtime.messages import (
    Message,
    check_text,
    image_count,
    plain_messages,
    texts,
    user_message,
)
from export.runtime.template_work import limited_work

_NAMED_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# What transformers' `clean_up_tokenization` replaces, in its order.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
# How far from its end a cleaned text can still change when more follows.
_CLEAN_UP_REACH = sum(len(old) - 1 for old, _ in _CLEAN_UP)

ASKED = "What is this?"
"""A question that every chat template can ask, with a picture or without."""

_INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are no UTF-8 (yet)."""


@dataclass(frozen=True)
class Prompter:
    """A model's chat template and tokenizer; made by `from_folder`.

    Attributes:
        tokenizer: reads and writes token ids; neither truncates nor pads.
        template: the compiled chat template.
        special_tokens: what the template sees under names such as `bos_token`.
        image_token: the text that stands for an image in a rendered prompt.
        image_token_id: its token id; visual rows are where the ids of a prompt equal it.
        eos_ids: token ids that end an answer; empty if the folder names none.
        clean_up: whether decoded text loses the spaces before punctuation.
        file: of the tokenizer, for errors.
        template_file: likewise of the chat template.
    """

    tokenizer: Tokenizer
    template: jinja2.Template
    special_tokens: Mapping[str, str]
    image_token: str
    image_token_id: int
    eos_ids: tuple[int, ...]
    clean_up: bool
    file: Path
    template_file: Path

    @classmethod
    def from_folder(
        cls,
        path: Path,
        image_token: str,
        eos_ids: Sequence[int] | None = None,
    ) -> Self:
        """Return the prompter of a model folder or artifact.

        Reads tokenizer.json, tokenizer_config.json and the chat template; where answers end as
        `compressor.generation` reads it.

        Args:
            path: the folder.
            image_token: the text of the image token, such as `<image>`.
            eos_ids: token ids that end an answer, instead of what the folder says.

        Raises:
            ModelError: the tokenizer's files are missing or damaged, or have no such image token.
            DataError: there is no chat template, or it cannot be compiled.
        """
        tokenizer = _load_tokenizer(path)
        config = optional_json(path / "tokenizer_config.json")
        special_tokens = _special_tokens(path, config)
        if eos_ids is None:
            eos_ids = model_settings(path).ends
        source, template_file = find_template(path, config)
        return cls(
            tokenizer=tokenizer,
            template=compile_template(source, template_file),
            special_tokens=special_tokens,
            image_token=image_token,
            image_token_id=_image_token_id(path, tokenizer, image_token),
            eos_ids=tuple(eos_ids),
            clean_up=_cleans_up(tokenizer, config),
            file=path / "tokenizer.json",
            template_file=template_file,
        )

    def why_unasked(self, question: str, images: int = 1, *, told: str = "") -> str | None:
        """Return why the chat template cannot ask a question about so many pictures; None: it can.

        Args:
            question: of the user's turn.
            images: how many pictures stand in front of it.
            told: what a system's turn in front of it says; empty: there is none.
        """
        first = [{"role": "system", "content": told}] if told else []
        try:
            self.render([*first, user_message(question, images)])
        except DataError as error:
            # What stands behind it is for those who write a conversation.
            return error.problems[0].removeprefix("chat template: ").rpartition("; ")[0]
        return None

    def check_template(self) -> None:
        """Refuse a chat template that can ask nothing, whatever the conversation is.

        Raises:
            ModelError: names its file.
        """
        why = [
            self.why_unasked(ASKED, images, told=told)
            for told in ("", "Answer briefly.")
            for images in (1, 0)
        ]
        if all(why):
            raise ModelError(
                [
                    f"{self.template_file}: the chat template cannot ask even one question: {why[0]}; copy "
                    "the files anew, or put the template of the model's authors here"
                ]
            )

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt as text, one image token for each image.

        Args:
            messages: the conversation, oldest turn first.
            add_generation_prompt: whether the prompt ends where the model's answer begins.

        Raises:
            DataError: a message is not of the form `Message`, a text contains the image token, or
                the template fails, loses a user's text or writes another number of images.
        """
        turns = plain_messages(messages, self.image_token)
        try:
            with limited_work():
                prompt = self.template.render(
                    messages=turns,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self.special_tokens,
                )
        except Exception as error:  # a template is a program and raises what it likes
            problem = (
                f"chat template: cannot write this conversation: {first_line(error)}; check roles and "
                "turns"
            )
            raise DataError([problem]) from error
        self._check_rendered(turns, prompt)
        return prompt

    def encode(
        self,
        messages: Sequence[Message],
        pictures: Sequence[str] = (),
        *,
        add_generation_prompt: bool = True,
    ) -> tuple[int, ...]:
        """Return the conversation as token ids, each image token replaced by what stands for its picture.

        The tokenizer adds its special tokens (as a beginning token) unless the template has written
        the beginning token itself: transformers' rule.

        Args:
            messages: as in `render`.
            pictures: [I] what stands for each picture, in their order.
            add_generation_prompt: as in `render`.

        Raises:
            DataError: as `render`; or the text would be read as more or fewer image tokens.
        """
        prompt = self.render(messages, add_generation_prompt=add_generation_prompt)
        bos = self.special_tokens.get("bos_token")
        written = bos is not None and prompt.startswith(bos)
        first, *parts = prompt.split(self.image_token)
        if len(parts) != len(pictures):
            raise DataError(
                [f"messages: have {len(parts)} images, and {len(pictures)} come with them"]
            )
        expanded = first + "".join(map("".join, zip(pictures, parts, strict=True)))
        with tokenizing(self.file):
            encoded = self.tokenizer.encode(expanded, add_special_tokens=not written)
        ids: tuple[int, ...] = tuple(encoded.ids)
        found, wanted = ids.count(self.image_token_id), "".join(pictures).count(self.image_token)
        if found != wanted:
            problem = (
                f"messages: give {found} image tokens, not the {wanted} of {len(pictures)} images; a text "
                f"holds a spelling of {self.image_token!r}: remove it"
            )
            raise DataError([problem])
        return ids

    def encode_text(self, text: str, *, add_special_tokens: bool = False) -> tuple[int, ...]:
        """Return a plain text as token ids, without template.

        Raises:
            DataError: the text contains the image token or is no valid Unicode.
        """
        check_text(text, "text", self.image_token)
        with tokenizing(self.file):
            return tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are no UTF-8 become U+FFFD."""
        with tokenizing(self.file, "fails on these tokens"):
            text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        if self.clean_up:
            for old, new in _CLEAN_UP:
                text = text.replace(old, new)
        return text

    def stream(self, skip_special_tokens: bool = True) -> "TextStream":
        """Return a fresh stream that turns one answer's token ids into text as they come."""
        return TextStream(self, skip_special_tokens)

    def _check_rendered(self, turns: Sequence[dict[str, Any]], prompt: str) -> None:
        wanted = sum(image_count(turn) for turn in turns)
        found = prompt.count(self.image_token)
        if found != wanted:
            problem = (
                f"chat template: wrote {found} image tokens {self.image_token!r} for {wanted} "
                "images; put images into the user's turns, as {'type': 'image'}"
            )
            raise DataError([problem])
        # A template made for lists of blocks writes nothing at all for a plain string.
        squeezed = "".join(prompt.split())
        problems = [
            f"messages[{at}].content: the chat template lost the text {text!r}; give the content "
            "as a list: [{'type': 'text', 'text': ...}]"
            for at, turn in enumerate(turns)
            if turn["role"] == "user"
            for text in texts(turn)
            if "".join(text.split()) not in squeezed
        ]
        if problems:
            raise DataError(problems)


class TextStream:
    """Token ids in, text out as soon as it cannot change any more.

    All pieces together are `Prompter.decode` of all ids. Held back until more comes or `finish`:
    characters whose bytes are not all there, runs of byte-fallback tokens (one wrong byte turns the
    whole run into U+FFFD), and with `clean_up` the last few characters.
    """

    def __init__(self, prompter: Prompter, skip_special_tokens: bool = True) -> None:
        self._prompter = prompter
        self._skip = skip_special_tokens
        self._special = {
            token_id
            for token_id, token in prompter.tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self._ids: list[int] = []
        self._sent = ""
        # Tokens from here on are decoded together: those of the last piece, which give the decoder
        # its context (a first token loses its leading space), and those after it.
        self._context = 0
        self._settled = 0

    def push(self, token_id: int) -> str:
        """Take the next token id; return the text that is now certain, often empty."""
        self._ids.append(token_id)
        if not self._settles(token_id):
            return ""
        if self._prompter.clean_up:
            whole = self._decode(0)
            return self._send(whole[len(self._sent) : max(len(whole) - _CLEAN_UP_REACH, 0)])
        before = self._decode(self._context, self._settled)
        after = self._decode(self._context)
        if len(after) <= len(before) or after.endswith(_INCOMPLETE):
            return ""
        self._context, self._settled = self._settled, len(self._ids)
        return self._send(after[len(before) :])

    def finish(self) -> str:
        """Return the rest of the text; the stream takes no more ids after it."""
        return self._send(self._decode(0)[len(self._sent) :])

    def _settles(self, token_id: int) -> bool:
        """Whether the text before a token is final: not if the decoder skips it or reads a byte."""
        if self._skip and token_id in self._special:
            return False
        token = self._prompter.tokenizer.id_to_token(token_id)
        return token is not None and not (len(token) == 6 and token.startswith("<0x"))

    def _decode(self, start: int, end: int | None = None) -> str:
        return self._prompter.decode(self._ids[start:end], self._skip)

    def _send(self, piece: str) -> str:
        self._sent += piece
        return piece


def _load_tokenizer(path: Path) -> Tokenizer:
    file = path / "tokenizer.json"
    if not file.is_file():
        problem = f"{path}: no tokenizer.json; save the processor too (processor.save_pretrained)"
        raise ModelError([problem])
    tokenizer = read_tokenizer(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_tokens(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts of special tokens as transformers 5 collects them for its templates."""
    sources: list[Mapping[str, Any]] = [config]
    if "added_tokens_decoder" not in config:
        sources.append(optional_json(path / "special_tokens_map.json"))
    named = {f"{name}_token" for name in _NAMED_TOKENS}
    tokens: dict[str, str] = {}
    for source in sources:
        nested = [source.get("extra_special_tokens"), source.get("model_specific_special_tokens")]
        plain = {name: value for name, value in source.items() if name.endswith("_token")}
        for section in [plain, *nested]:
            for name, value in section.items() if isinstance(section, dict) else ():
                text = value.get("content") if isinstance(value, dict) else value
                if isinstance(text, str):
                    tokens[name] = text
                elif section is plain and name in named:
                    tokens.pop(name, None)
    return tokens


def _image_token_id(path: Path, tokenizer: Tokenizer, image_token: str) -> int:
    token_id = tokenizer.token_to_id(image_token) if image_token else None
    with tokenizing(path / "tokenizer.json"):
        twice = tokenizer.encode(image_token * 2, add_special_tokens=False).ids
    if token_id is None or twice != [token_id] * 2:
        problem = (
            f"{path / 'tokenizer.json'}: {image_token!r} is not one of its added tokens, so it "
            "cannot stand for images; name the model's image token or save the processor again"
        )
        raise ModelError([problem])
    return token_id


def _cleans_up(tokenizer: Tokenizer, config: Mapping[str, Any]) -> bool:
    """Whether transformers cleans decoded text up: if asked, but for BPE only if asked twice."""
    despite_bpe = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    if not config.get("clean_up_tokenization_spaces"):
        return False
    return not isinstance(tokenizer.model, models.BPE) or bool(config.get(despite_bpe))
