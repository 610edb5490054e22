"""The one guard around every call into a library on a user's model folder.

Whatever transformers, safetensors or the hub's client raise there becomes a `ModelError`, a line a problem.
Only the library's call stands inside it, so that faults of our own keep their traceback.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from compressor.disk.opening import most_bytes, open_regular, read_utf8, why_unread
from compressor.disk.paths import leads_out, unusable
from compressor.errors import ENDINGS, ModelError, VtcompressError, first_line
from compressor.families.blame import KEYED, Attempt, blamed
from compressor.families.folder import CONFIG, TEXTS, text_files, weight_files

LFS_HEADER = b"version https://git-lfs.github.com/spec/"
"""What a file begins with that stands for another one that Git LFS has not fetched."""

# Packages that a tokenizer may need, by what a message or a file in the folder says.
PACKAGES = ("sentencepiece", "protobuf", "tiktoken", "torchvision", "accelerate")


@contextmanager
def reading(
    folder: Path, what: str, attempt: Attempt | None = None, *, known: Sequence[str] = ()
) -> Iterator[None]:
    """Turn whatever a library raises over `folder` into a `ModelError`; the original is its cause.

    Args:
        folder: the user's model folder, named in the message.
        what: is being read, e.g. `the weights`.
        attempt: does it again for a copy without weights, to find the keys at fault; None: not sought.
        known: classes of image processors that the model may have, for errors.

    Raises:
        ModelError: names the file, and the key, at fault where one is found, otherwise the library's reason.
    """
    try:
        yield
    except (*ENDINGS, VtcompressError):
        raise
    except BaseException as failure:
        why = reason(failure, folder)
        found = broken_files(folder)
        # Neither a package that is missing nor the memory is a key's fault.
        keyed = isinstance(failure, KeyError) or why == _plain(failure)
        if not found and attempt is not None and keyed:
            files = (CONFIG,) if what == CONFIG else KEYED
            found = blamed(folder, attempt, lambda error: reason(error, folder), known, files)
        place = folder / what if what in TEXTS else f"{folder}: {what}"
        raise ModelError(found or [f"{place} cannot be read: {why}"]) from failure


@contextmanager
def using(where: str) -> Iterator[None]:
    """Turn whatever a library raises over a part of a configuration into a `ModelError`; as `reading`.

    Args:
        where: the part, as in other lines on it.

    Raises:
        ModelError: the part and the library's reason.
    """
    try:
        yield
    except (*ENDINGS, VtcompressError):
        raise
    except BaseException as failure:
        problem = (
            f"{where}: transformers cannot use it: {type(failure).__name__}: {first_line(failure)}"
        )
        raise ModelError([problem]) from failure


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars, tables and warnings out of our own output."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def broken_files(folder: Path) -> list[str]:
    """Return a line for each file that is read of a model folder and cannot be what its name says; cheap.

    Git LFS pointers, JSON and templates that are no text, safetensors files whose header or length is wrong,
    files without permission. Weights that are not there are not missed: facts are read without them.
    """
    return broken_texts(folder) + broken_weight_files(folder)


def broken_texts(folder: Path) -> list[str]:
    """Return the lines of `broken_files` on configuration, processor and tokenizer."""
    try:
        return [line for path in text_files(folder) if (line := broken(path, folder))]
    except OSError as failure:
        return [f"{folder}: {failure.strerror}; make the folder readable"]


def broken_weight_files(folder: Path) -> list[str]:
    """Return the lines of `broken_files` on weights."""
    try:
        return [line for path in weight_files(folder) if (line := broken(path, folder))]
    except (ModelError, OSError):
        return []


def broken(path: Path, folder: Path) -> str | None:
    """Return what is wrong with one file of a model folder, None if nothing is seen."""
    if (reason := unusable(path)) is not None:
        return f"{path}: {reason}"
    # Weights may lie where there is room for them: nothing but tensors of the model's names is read there.
    if path.suffix != ".safetensors" and leads_out(path, folder):
        return f"{path}: a link to a file outside the model's folder; put a copy of that file here"
    try:
        with open_regular(path, most_bytes(path.name)) as stream:
            head = stream.read(len(LFS_HEADER))
    except FileNotFoundError:
        return f"{path}: a link to a file that is gone; fetch or copy the model again"
    except OSError as failure:
        return f"{path}: {why_unread(failure)}"
    if head == LFS_HEADER:
        return (
            f"{path}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull` in the model's "
            "folder, or download the model again"
        )
    if path.suffix == ".safetensors":
        return broken_weights(path)
    if path.suffix in {".json", ".jinja"}:
        return _broken_text(path)
    return None


def broken_weights(path: Path) -> str | None:
    """Return what is wrong with a safetensors file, as its header and length tell; None: nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            return None
    except (SafetensorError, OSError, ValueError) as failure:
        return (
            f"{path}: broken or cut off ({path.stat().st_size:,} bytes): {first_line(failure)}; copy or "
            "download the file again"
        )


def _broken_text(path: Path) -> str | None:
    try:
        text = read_utf8(path)
        value = json.loads(text) if path.suffix == ".json" else None
    except UnicodeDecodeError:
        return f"{path}: not UTF-8 text; copy or download the file again"
    except (ValueError, RecursionError) as failure:
        return f"{path}: not JSON: {first_line(failure)}; mend it, or copy or download it again"
    if path.name in TEXTS and path.suffix == ".json" and not isinstance(value, dict):
        return (
            f"{path}: not a JSON object with keys, but a {type(value).__name__}; copy or download the file "
            "again"
        )
    return None


def reason(failure: BaseException, folder: Path) -> str:
    """Return one line: what a library's exception says, and what to do where that is known."""
    text = str(failure)
    if "tiktoken" in text and (folder / "tokenizer.model").is_file():
        # transformers tries its second reader when the first one's package is missing, and names that one.
        if find_spec("sentencepiece") is not None:
            return (
                "tokenizer.model is no SentencePiece file that can be read: copy or download it again, or "
                "put the model's tokenizer.json beside it"
            )
        return (
            "tokenizer.model is a SentencePiece file, and the package `sentencepiece` is not installed: "
            "pip install sentencepiece protobuf, or put the model's tokenizer.json beside it"
        )
    package = next((p for p in PACKAGES if p in text.lower()), None)
    if package is not None and (isinstance(failure, ImportError) or "install" in text):
        return f"the package `{package}` is not installed: pip install {package}"
    if isinstance(failure, MemoryError):
        return "there is not enough memory for it"
    if isinstance(failure, RecursionError):
        return "it is nested too deeply to be read"
    if isinstance(failure, KeyError):
        return f"the key {text} is missing"
    return _plain(failure)


def _plain(failure: BaseException) -> str:
    named = "" if isinstance(failure, (OSError, ValueError)) else f"{type(failure).__name__}: "
    return named + first_line(failure)
