"""The date that chat templates are told: always the same one, so that answers do not depend on the day.

Some templates write today's date into every prompt (`strftime_now`). What was measured yesterday would then
not be what runs tomorrow, and an answer could not be had again. All prompts of a model are written on this
day: the original's, when it is measured, and the runtime's.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

PROMPT_DATE: Final = datetime(2024, 7, 26)
ASKED_BY: Final = "strftime_now"


def strftime_now(format: str) -> str:  # noqa: A002 - the name that templates may use
    """Return the date of prompts in words."""
    return PROMPT_DATE.strftime(format)


def asks_date(template: str) -> bool:
    """Return whether a chat template asks which day it is."""
    plain = re.sub(r"\{#.*?#\}", "", template, flags=re.DOTALL)
    return re.search(rf"\b{ASKED_BY}\b", plain) is not None


def template_of(processor: Any) -> str:
    """Return a processor's chat template, the default one of several; empty: it has none."""
    template = getattr(processor, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else ""


@contextmanager
def on_prompt_date(processor: Any) -> Iterator[None]:
    """Have transformers write prompts by a processor's chat template on that date too, inside."""
    from transformers.utils import chat_template_utils

    if not asks_date(template := template_of(processor)):
        yield
        return
    # Its own variables of a template hold no functions, and it compiles a text once.
    names = chat_template_utils._compile_jinja_template(template).environment.globals  # noqa: SLF001
    before = names[ASKED_BY]
    names[ASKED_BY] = strftime_now
    try:
        yield
    finally:
        names[ASKED_BY] = before
