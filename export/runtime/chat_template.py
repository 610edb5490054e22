"""Chat templates: found in a model's folder, compiled in a sandbox with the names of transformers."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils

from compressor.disk.files import read_text
from compressor.disk.model_json import optional_json
from compressor.errors import DataError, first_line
from compressor.samples.prompt_date import strftime_now
from export.runtime.template_work import CountingSandbox, limited_work, metered

MOST_SOURCE = 256 * 1024
"""Characters of a template; the longest known ones have some thirty thousand."""


def find_template(path: Path, config: Mapping[str, Any]) -> tuple[str, Path]:
    """Return a chat template and the file that it stands in, looked for in transformers' order.

    Args:
        path: the model's folder.
        config: its tokenizer_config.json.

    Raises:
        DataError: there is none.
        ModelError: a JSON file is damaged.
    """
    older, newer = path / "chat_template.json", path / "chat_template.jinja"
    for file in (path / "processor_config.json", older):
        found = _default_template(optional_json(file).get("chat_template"))
        if found is not None:
            return found, file
    if newer.is_file():
        return read_text(newer, DataError), newer
    found = _default_template(config.get("chat_template"))
    if found is not None:
        return found, path / "tokenizer_config.json"
    problem = (
        f"{path}: no chat template (chat_template.jinja, chat_template.json or a key chat_template "
        "in processor_config.json or tokenizer_config.json); add the one of the model's authors"
    )
    raise DataError([problem])


def compile_template(source: str, file: Path) -> jinja2.Template:
    """Compile a chat template in the sandbox and with the names that transformers gives it.

    Args:
        source: text of the template.
        file: that it stands in, for the error.

    Raises:
        DataError: it is no valid template; says in which line.
    """
    if len(source) > MOST_SOURCE:
        problem = f"{file}: the chat template is longer than {MOST_SOURCE:,} characters; replace it"
        raise DataError([problem])
    environment = CountingSandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.add_filter("tojson", _to_json)
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=strftime_now,
        dict=_Dict(),
        namespace=_Namespace,
    )
    try:
        with limited_work():
            code = environment.compile(metered(environment.parse(source)))
        return jinja2.Template.from_code(environment, code, environment.make_globals(None))
    except Exception as error:  # of jinja2, and of Python's own compiler where it nests too deeply
        line = getattr(error, "lineno", None)
        problem = (
            f"{file}: line {line or '?'}: the chat template cannot be compiled: "
            f"{first_line(error)}; replace it"
        )
        raise DataError([problem]) from error


def _default_template(value: Any) -> str | None:
    """The template itself, or the one named default of several."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else None


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here it just writes them."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """jinja2's namespace without names that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # `self` is taken from args, so that a template may write namespace(self=...).
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _Namespace._check_name(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        # By the class: an attribute of the instance is one of the template's own.
        _Namespace._check_name(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")


class _Dict:
    """The `dict` a template sees: makes dictionaries and gives no way to Python's own type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's HTML escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
