"""Which key of a model's small files a library fails over: found by reading the folder without it."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compressor.disk.opening import read_utf8
from compressor.disk.tokenizer_file import read_tokenizer
from compressor.errors import ModelError
from compressor.families.folder import CONFIG, text_files
from compressor.families.told import IMAGES

KEYED = (
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
"""A processor's files, of which each key may be left out: transformers then goes by its own default."""

SECTIONS = (IMAGES, "vision_config", "text_config", "rope_parameters", "rope_scaling")
KIND = "model_type"
"""Key without which the rest of a section is read as another kind."""

NAMES_A_CLASS = ("image_processor_type", "processor_class", "tokenizer_class")
"""Keys that are left out last: without them, transformers may read the rest as another kind."""

TOKENIZER = "tokenizer.json"
LONGEST_VALUE = 60
DOWNLOAD_AGAIN = "copy or download the file again"
SAVE_AGAIN = "save the processor again (processor.save_pretrained)"

Attempt = Callable[[Path], Any]
Keys = tuple[str, ...]


def own_class(known: Sequence[str]) -> str:
    """Return what is put where a class of image processors is that the model does not have."""
    return " or ".join(known) or "that of the model's own"


def blamed(
    folder: Path,
    attempt: Attempt,
    say: Callable[[Exception], str],
    known: Sequence[str] = (),
    files: Sequence[str] = KEYED,
) -> list[str]:
    """Return a line for each key or file that an attempt fails over; none where keys are not at fault.

    Each key is left out by itself: the one without which the attempt succeeds on a copy is at fault. If there
    is none, they are left out one after the other until it succeeds; then each is put back, and those with
    which it fails again are at fault. `config.json` is read for itself: what is left out of it has
    transformers' default, which seldom fits the rest, so nothing more than one key is.

    Args:
        folder: of a model; it is not changed.
        attempt: what failed, for a folder that holds no weights; raises what it likes.
        say: what an exception tells.
        known: classes of image processors that the model may have.
        files: of which keys are left out.
    """
    if unread := _unread_tokenizer(folder):
        return [unread]
    lines = []
    with TemporaryDirectory() as place:
        trial = _Trial(folder, Path(place), attempt, files)
        left_out = trial.leave_one_out() or trial.leave_out()
        for name, keys, value in left_out:
            if (failure := trial.with_key(name, keys, value)) is not None:
                lines.append(f"{folder / name}: {_told(name, keys, value, say(failure), known)}")
    return lines


class _Trial:
    """A copy of a model's small files, to be read without some keys."""

    def __init__(self, folder: Path, copy: Path, attempt: Attempt, files: Sequence[str]) -> None:
        for path in text_files(folder):
            if path.parent == folder:
                shutil.copyfile(path, copy / path.name)
        self._copy, self._attempt = copy, attempt
        self._files = {name: _object(copy / name) for name in files if (copy / name).is_file()}

    def leave_one_out(self) -> list[tuple[str, Keys, Any]]:
        """Leave out the one key without which the attempt succeeds, and return it; none if there is none."""
        for name, keys in sorted(_keys(self._files), key=_names_a_class):
            section = _section(self._files[name], keys)
            value = section.pop(keys[-1])
            if self._failure() is None:
                return [(name, keys, value)]
            section[keys[-1]] = value
        return []

    def leave_out(self) -> list[tuple[str, Keys, Any]]:
        """Leave keys out until the attempt succeeds; return them, or none if it never does."""
        left_out = []
        for name, keys in sorted(_keys(self._files), key=_names_a_class):
            if name == CONFIG or keys[-1] in SECTIONS:
                continue
            left_out.append((name, keys, _section(self._files[name], keys).pop(keys[-1])))
            if self._failure() is None:
                return left_out
        return []

    def with_key(self, name: str, keys: Keys, value: Any) -> Exception | None:
        """Put a key back; where the attempt fails with it, leave it out again and return the failure."""
        section = _section(self._files[name], keys)
        section[keys[-1]] = value
        if (failure := self._failure()) is not None:
            del section[keys[-1]]
        return failure

    def _failure(self) -> Exception | None:
        for name, content in self._files.items():
            (self._copy / name).write_text(json.dumps(content), encoding="utf-8")
        try:
            self._attempt(self._copy)
        except Exception as failure:  # noqa: BLE001 - a library's, over a user's files; it is reported
            return failure
        return None


def _names_a_class(at: tuple[str, Keys]) -> bool:
    return at[1][-1] in NAMES_A_CLASS


def _told(name: str, keys: Keys, value: Any, why: str, known: Sequence[str]) -> str:
    # As other lines on an image processor's section.
    place = (": " if keys[0] == IMAGES else ".").join(keys)
    shown = f"{place}: {value!r:.{LONGEST_VALUE}} cannot be used"
    if keys[-1] == NAMES_A_CLASS[0]:  # transformers lists all that it knows, hardly any of use here
        return f"{shown}; put {own_class(known)} here"
    again = DOWNLOAD_AGAIN if name == CONFIG else SAVE_AGAIN
    return f"{shown}: {why}; correct it, or {again}"


def _unread_tokenizer(folder: Path) -> str | None:
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    try:
        read_tokenizer(path)
    except ModelError as error:
        return f"{error.problems[0]}; copy or download the file again"
    return None


def _object(path: Path) -> dict[str, Any]:
    found = json.loads(read_utf8(path))
    return found if isinstance(found, dict) else {}


def _keys(files: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Keys]]:
    for name, content in files.items():
        yield from ((name, keys) for keys in _keys_in(content))


def _keys_in(content: dict[str, Any]) -> Iterator[Keys]:
    """Yield a file's keys, and of its sections each key before the whole section."""
    for key, value in content.items():
        if key in SECTIONS and isinstance(value, dict):
            yield from ((key, *inner) for inner in _keys_in(value))
        if key != KIND:
            yield (key,)


def _section(content: dict[str, Any], keys: Keys) -> dict[str, Any]:
    for key in keys[:-1]:
        content = content[key]
    return content
