"""A model's processor as this tool uses it: complete, and of one mind with the model's configuration.

Letters: N = visual tokens of one image; S = side of the vision tower's square input in pixels.
"""

import copy
import importlib.util
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from compressor.disk.opening import read_utf8
from compressor.disk.tokenizer_file import check_tokenizer
from compressor.errors import ModelError
from compressor.facts import ModelFacts
from compressor.families.base import Family
from compressor.families.blame import TOKENIZER, own_class
from compressor.families.guard import broken_texts, quiet, reading
from compressor.families.known import family_that_read
from compressor.families.pictures.processors import size_keys, values_of
from compressor.families.told import IMAGES, OLDER_IMAGES, PROCESSOR, image_file, saved_in

PIECES = "tokenizer.model"
TOKENIZER_FILES = ("tokenizer.json", PIECES, "vocab.*", "*.model")
VIDEOS = "video_processor"
CLASS = "processor_class"
NEEDED: Mapping[str, Mapping[str, type]] = {
    "tokenizer.json": {"model": dict, "added_tokens": list},
    "chat_template.json": {"chat_template": object},
}
"""What transformers looks up in a file without a default, and of which kind it takes it to be."""
COUNTS = {"patch_size": (1, 4096), "num_additional_image_tokens": (0, 65536)}
"""Numbers that a processor counts image tokens by, least and most: it writes as many into each prompt."""

TOKENIZER_CONFIG, LENGTH = "tokenizer_config.json", "model_max_length"

PARTS = ("tokenizer", "image_processor", "image_token")
SAVE = "save the processor with the model (processor.save_pretrained)"

PROBE = (48, 36)
"""Width and height of the blank picture that a processor is tried on; not square, and no tower's size."""


def load_processor(
    folder: Path, family: Family, config: Any, *, trust_remote_code: bool = False
) -> Any:
    """Return the processor of a model folder.

    What older versions did not save with it is taken from the model's configuration, and a chat template that
    stands in the tokenizer's files alone is the processor's too.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    _check_files(folder)
    if (folder / TOKENIZER).is_file():
        check_tokenizer(folder / TOKENIZER)
    # The model's own code is not run once for every key that may be at fault.
    again = None if trust_remote_code else partial(_read, family=family)
    # It would warn of the `config.json` of a compressed folder, which is no model's on purpose.
    with (
        quiet(),
        reading(
            folder,
            "the processor (images, tokenizer, chat template)",
            again,
            known=family.image_processors,
        ),
    ):
        processor = _read(folder, family, trust_remote_code=trust_remote_code)
    missing = [part for part in PARTS if getattr(processor, part, None) is None]
    if missing:
        problem = (
            f"{_class_place(folder)}: its processor is a {type(processor).__name__}, which has no "
            f"{', no '.join(missing)}; save the one that belongs to the model type {config.model_type!r} "
            "(processor.save_pretrained)"
        )
        raise ModelError([problem])
    if not isinstance(token := processor.image_token, str) or not token:
        where = (
            folder / PROCESSOR
            if "image_token" in saved_in(folder / PROCESSOR)
            else folder / TOKENIZER_CONFIG
        )
        raise ModelError(
            [f"{where}: image_token: {token!r:.60} is not allowed; a text: correct it"]
        )
    family.complete_processor(processor, config, saved_in(folder / PROCESSOR))
    if processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template
    return processor


def _read(folder: Path, family: Family, *, trust_remote_code: bool = False) -> Any:
    from transformers import AutoProcessor

    if (kind := family.processor_class()) is not None:
        return _without_videos(folder, kind, trust_remote_code=trust_remote_code)
    processor = AutoProcessor.from_pretrained(
        folder, trust_remote_code=trust_remote_code, local_files_only=True
    )
    if getattr(processor, IMAGES, None) is not None:
        # Where torchvision is installed, transformers takes it, and its pixels are not Pillow's, which
        # the runtime computes. The option would also go into the tokenizer, if it were given above.
        processor.image_processor = _read_images(folder, trust_remote_code=trust_remote_code)
    return processor


def _without_videos(folder: Path, kind: Any, *, trust_remote_code: bool = False) -> Any:
    """Return a processor without its part for videos, which would ask for torchvision."""
    from transformers import AutoTokenizer

    def parts(_: Any) -> list[str]:
        return [part for part in kind.get_attributes() if part != VIDEOS]

    # The same name, because `save_pretrained` writes it.
    made = type(kind.__name__, (kind,), {"get_attributes": classmethod(parts)})
    saved = saved_in(folder / PROCESSOR)
    plain = {k: v for k, v in saved.items() if isinstance(v, int | float | str | bool)}
    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=trust_remote_code, local_files_only=True
    )
    return made(
        image_processor=_read_images(folder, trust_remote_code=trust_remote_code),
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=_template(folder),
        **{key: value for key, value in plain.items() if key != CLASS},
    )


def _template(folder: Path) -> str | None:
    """The chat template that is saved beside a processor, not in its tokenizer's files."""
    if (file := folder / "chat_template.jinja").is_file():
        return read_utf8(file)
    found = saved_in(folder / "chat_template.json").get("chat_template")
    return found if isinstance(found, str) else None


def _read_images(folder: Path, *, trust_remote_code: bool = False) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(
        folder, backend="pil", trust_remote_code=trust_remote_code, local_files_only=True
    )


def saved_images(folder: Path) -> Mapping[str, Any]:
    """Return what is saved of a model folder's image processor; nothing if that is not there."""
    section = saved_in(folder / PROCESSOR).get(IMAGES)
    return section if isinstance(section, dict) else saved_in(folder / OLDER_IMAGES)


def resized(processor: Any, family: Family, image_size: int) -> Any:
    """Return a copy of a processor that makes square pictures of so many pixels."""
    changed = copy.deepcopy(processor)
    family.resize_processor(changed, image_size)
    return changed


def check_processor(processor: Any, facts: ModelFacts, folder: Path) -> None:
    """Refuse a processor that the model cannot be used with.

    Args:
        processor: complete, at the image size of the facts.
        facts: of the model.
        folder: of both, for errors.

    Raises:
        ModelError: its image token is not the configuration's, its pictures are not of the tower's size, or
            it writes another number of image tokens than the tower gives.
    """
    problems = [*_token_problems(processor, facts, folder)]
    if not problems:
        problems += _picture_problems(processor, facts, folder)
    if problems:
        raise ModelError(problems)


def _check_files(folder: Path) -> None:
    """Refuse what transformers gives another reason for, or none: files, keys and values, or a package."""
    if problems := broken_texts(folder):
        raise ModelError(problems)
    for path in (folder / name for name in NEEDED if (folder / name).is_file()):
        saved, needed = saved_in(path), NEEDED[path.name]
        wrong = [
            f"{key} {_shown(saved, key)}"
            for key, kind in needed.items()
            if not (key in saved and isinstance(saved[key], kind))
        ]
        if wrong:
            problems.append(f"{path}: {', '.join(wrong)}; copy or download the file again")
    if not any(any(folder.glob(name)) for name in TOKENIZER_FILES):
        problems.append(f"{folder}: no tokenizer.json; {SAVE}")
    elif (
        (folder / PIECES).is_file()
        and not (folder / "tokenizer.json").is_file()
        and importlib.util.find_spec("sentencepiece") is None
    ):
        problems.append(
            f"{folder / PIECES}: is a SentencePiece file without a tokenizer.json beside it, and the package "
            "sentencepiece is not installed: pip install sentencepiece, or save the processor anew "
            "(processor.save_pretrained) where it is installed"
        )
    tokenizer = folder / TOKENIZER_CONFIG
    if isinstance(length := saved_in(tokenizer).get(LENGTH), bool):
        problems.append(
            f"{tokenizer}: {LENGTH}: {json.dumps(length):.60} is not allowed; one number, 1 or more: correct "
            "it, or remove the key"
        )
    saved = saved_in(folder / PROCESSOR)
    images = saved.get(IMAGES)
    if images is not None and not isinstance(images, dict):
        problems.append(
            f"{folder / PROCESSOR}: {IMAGES} {_shown(saved, IMAGES)}, which is no section; {SAVE}"
        )
    elif images is None and not (folder / OLDER_IMAGES).is_file():
        problems.append(
            f"{folder}: no image processor: neither {PROCESSOR} with a section {IMAGES} nor "
            f"{OLDER_IMAGES}; {SAVE}"
        )
    problems += [
        f"{folder / PROCESSOR}: {key}: {saved[key]!r:.60} is not allowed; one whole number, {least} to {most}"
        ": correct it, or remove the key, and it is taken from config.json"
        for key, (least, most) in COUNTS.items()
        if saved.get(key) is not None
        and not (type(saved[key]) is int and least <= saved[key] <= most)
    ]
    problems += [
        f"{path}: {CLASS}: {named!r:.60} is not allowed; the name of a class: correct it, or remove the key"
        for path, named in _classes(folder)
        if not isinstance(named, str)
    ]
    if problems:
        raise ModelError(problems)


def _class_place(folder: Path) -> str:
    """What says which class a folder's processor is, for errors: file and key; else the folder."""
    named = next(_classes(folder), None)
    return str(folder) if named is None else f"{named[0]}: {CLASS}: {named[1]!r:.60}"


def _classes(folder: Path) -> Iterator[tuple[Path, Any]]:
    """Yield each file that names a processor's class, and what it names."""
    for path in (folder / PROCESSOR, folder / OLDER_IMAGES, folder / TOKENIZER_CONFIG):
        if (named := saved_in(path).get(CLASS)) is not None:
            yield path, named


def _shown(saved: Mapping[str, Any], key: str) -> str:
    """What stands under a key, cut at a length that fits a message."""
    return f"is {saved[key]!r:.60}" if key in saved else "is missing"


def _token_problems(processor: Any, facts: ModelFacts, folder: Path) -> list[str]:
    config, tokenizer = folder / "config.json", _tokenizer_file(folder)
    token, wanted = processor.image_token, facts.image_token_id
    family = family_that_read(facts)
    key = family.image_id_key

    def encode(copy: Path) -> None:
        _read(copy, family).tokenizer(token * 2, add_special_tokens=False)

    with quiet(), reading(folder, "an image token, by the model's tokenizer,", encode):
        found = processor.tokenizer(token * 2, add_special_tokens=False)["input_ids"]
    if len(found) != 2 or found[0] != found[1]:
        return [
            f"{tokenizer}: the image token {token!r} is not one of its tokens, so it cannot stand for "
            "images; add it as a special token and save the processor again"
        ]
    if found[0] != wanted:
        # What is beyond all tokens has no name, and a number of more than 32 bits is no id.
        holds = next((t for t, at in processor.tokenizer.get_vocab().items() if at == wanted), None)
        return [
            f"{config}: {key}: {wanted} is not the image token of the tokenizer: in {tokenizer} "
            f"{token!r} has the id {found[0]}, and {wanted} is {holds!r}; pictures would be dropped: correct "
            "the one that is wrong"
        ]
    if not 0 <= wanted < facts.decoder.vocab:
        return [
            f"{config}: {key}: {wanted} has no row in the embedding table of "
            f"{facts.decoder.vocab}, which transformers needs: give the model the missing rows "
            "(model.resize_token_embeddings) and save it again"
        ]
    return []


def _picture_problems(processor: Any, facts: ModelFacts, folder: Path) -> list[str]:
    """Try the processor on a blank picture."""
    family, file = family_that_read(facts), folder / PROCESSOR
    images, saved = image_file(folder), values_of(processor.image_processor)
    # What a model's own code makes of pictures is tried, not read.
    if type(processor.image_processor).__module__.startswith("transformers."):
        family.picture_steps(saved, images)

    def count(copy: Path) -> None:
        family.image_rows(_read(copy, family), [PROBE[::-1]], facts)

    with quiet(), reading(folder, "the number of a picture's visual tokens", count):
        wanted = family.image_rows(processor, [PROBE[::-1]], facts)[0]

    def again(copy: Path) -> None:
        _read_images(copy)([Image.new("RGB", PROBE)], return_tensors="np")

    with (
        quiet(),
        reading(
            folder,
            "a blank picture, by the model's processor,",
            again,
            known=family.image_processors,
        ),
    ):
        tried = processor(
            images=[Image.new("RGB", PROBE)],
            text=[f"{processor.image_token} "],
            return_tensors="np",
        )
        pixels, ids = family.tiles_made(tried), tried["input_ids"][0].tolist()
        height, width = pixels.shape[-2:]
    whole = facts.cell is None  # else pixels come in patches, as the family reads them
    several = facts.arrangement is None and len(pixels) != wanted // facts.tile_rows
    if whole and (pixels.ndim != 4 or several):
        kind = type(processor.image_processor).__name__
        return [
            f"{images}: image_processor_type: {kind} gives several pictures for one, which is not supported: "
            f"put {own_class(family.image_processors)} here"
        ]
    if whole and (height, width) != facts.largest_picture:
        high, wide = facts.largest_picture
        return [
            f"{images}: gives pictures of {height} x {width} pixels, but the vision tower takes {high} x "
            f"{wide}: correct {size_keys(saved)}"
        ]
    found = ids.count(facts.image_token_id)
    if found != wanted:
        keys = family.token_keys or ("what it counts them by",)
        return [
            f"{file}: gives {found} image tokens for a picture, but the vision tower and the projector of "
            f"{folder / 'config.json'} give {wanted}: correct {' or '.join(keys)}"
        ]
    return []


def _tokenizer_file(folder: Path) -> Path:
    """The file that tells a token's id, for errors."""
    fast = folder / "tokenizer.json"
    return fast if fast.is_file() else folder / "tokenizer_config.json"
