"""A model folder with the files, names and shapes of llava-hf/llava-1.5-7b-hf, two layers deep.

The configuration files say what the published ones say, in their older style: what equals a default of
transformers is left out, the image processor has a file of its own, and tensors have the names from before
transformers 5. Weights are random, and the vocabulary is made up: a BPE with byte fallback, trained on text
that is generated here. Its last 62 tokens fill it to the rows of the embedding; the published tokenizer has
32,002 tokens and leaves those rows without a name.
"""

import json
import math
import random
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlavaConfig, LlavaForConditionalGeneration

LAYERS = 2
VOCAB = 32_064
IMAGE_ID, PAD_ID = 32_000, 32_001
# No tensor of the full-width model is larger, so a shard in memory is at most twice this.
SHARD_BYTES = 400 << 20
# Values are drawn in blocks of this many, which stay in a processor's cache.
BLOCK = 1 << 16

TEMPLATE = (
    "{% for message in messages %}"
    "{# A system turn has no name in front. #}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{# Pictures come first, wherever they stand in the turn. #}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

ENGLISH = (
    "USER: What is shown in this image? ASSISTANT: The image shows a red circle on a blue square.",
    "How many shapes are there, and where do they stand? There are three of them, on the left.",
    "Describe the picture in one sentence. Which colour has the largest shape? Answer with one word.",
)


def make_llava_7b(
    folder: Path,
    *,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write the folder.

    Args:
        folder: to write; made if it is not there.
        text: keys of `text_config` to change, for a narrower model.
        vision: keys of `vision_config` to change.
        seed: of weights and vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", _config(text or {}, vision or {}))
    _write(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": PAD_ID,
            "transformers_version": "4.39.3",
        },
    )
    _write_processor(folder)
    _write_tokenizer(folder, seed)
    _write_weights(folder, seed)
    return folder


def published_names(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors, by their names before transformers 5."""
    with torch.device("meta"):
        state = LlavaForConditionalGeneration(config).state_dict()
    renames = (
        (r"^lm_head", "language_model.lm_head"),
        (r"^model\.language_model", "language_model.model"),
        (r"^model\.vision_tower", "vision_tower.vision_model"),
        (r"^model\.multi_modal_projector", "multi_modal_projector"),
    )
    shapes = {}
    for name, tensor in state.items():
        for pattern, replacement in renames:
            name, found = re.subn(pattern, replacement, name)  # noqa: PLW2901
            if found:
                break
        shapes[name] = tuple(tensor.shape)
    return shapes


def make_questions_7b(folder: Path, rows: list[dict[str, Any]], name: str) -> Path:
    """Write a jsonl file; each row's `image` is drawn at its `size` (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for seed, row in enumerate(rows):
        picture = f"{Path(name).stem}-{seed}.jpg"
        draw_picture(folder / picture, row["size"], seed)
        fields = {key: value for key, value in row.items() if key != "size"}
        lines.append(json.dumps({"image": picture, **fields}))
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def draw_picture(path: Path, size: tuple[int, int], seed: int) -> Path:
    """Write a picture of a few coloured shapes, `size` is (width, height)."""
    rng = random.Random(seed)

    def colour() -> tuple[int, int, int]:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    image = Image.new("RGB", size, colour())
    draw = ImageDraw.Draw(image)
    for number in range(6):
        left, top = rng.randrange(size[0] - 20), rng.randrange(size[1] - 20)
        box = (left, top, left + rng.randrange(20, size[0]), top + rng.randrange(20, size[1]))
        (draw.ellipse if number % 2 else draw.rectangle)(box, fill=colour())
    image.save(path)
    return path


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    """What the published file says; hidden size, MLP width and heads of the decoder are defaults."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": 576,
        "image_token_index": IMAGE_ID,
        "model_type": "llava",
        "pad_token_id": PAD_ID,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "num_hidden_layers": LAYERS,
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": VOCAB,
            **text,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": LAYERS,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32_000,
            **vision,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def _write_processor(folder: Path) -> None:
    square = {"height": 336, "width": 336}
    _write(
        folder / "preprocessor_config.json",
        {
            "crop_size": square,
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "CLIPImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "processor_class": "LlavaProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 336},
        },
    )
    _write(
        folder / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    _write(folder / "chat_template.json", {"chat_template": TEMPLATE})


def _write_tokenizer(folder: Path, seed: int) -> None:
    vocabulary, merges = _vocabulary(seed)
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": IMAGE_ID, "<pad>": PAD_ID}
    fill = {f"<fill_{i}>": i for i in range(PAD_ID + 1, VOCAB)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": piece, **flags, "special": piece in special}
        for piece, i in {**special, **fill}.items()
    ]
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": side, "type_id": i}} for i, side in enumerate("AB"))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, first],
            "pair": [begin, first, {"SpecialToken": {"id": "<s>", "type_id": 1}}, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    _write(folder / "tokenizer.json", tokenizer)
    decoder = {str(token.pop("id")): token for token in added}
    _write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": decoder,
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "legacy": False,
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<pad>",
            "padding_side": "left",
            "processor_class": "LlavaProcessor",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            "trust_remote_code": False,
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
        },
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write(
        folder / "special_tokens_map.json",
        {name: {"content": piece, **flags} for name, piece in names.items()},
    )


def _vocabulary(seed: int) -> tuple[dict[str, int], list[str]]:
    """Return 32,000 pieces as Llama orders them (special, bytes, merged, letters) and the merges."""
    reserved = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    # A word keeps its leading mark, and no piece reaches over two words or into punctuation.
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=IMAGE_ID, special_tokens=reserved, show_progress=False, min_frequency=1
    )
    trained.train_from_iterator(_text(seed), trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)[len(reserved) :]
    merged = [piece for piece in pieces if len(piece) > 1]
    letters = [piece for piece in pieces if len(piece) == 1]
    # Whatever the text did not yield is filled with pieces that nothing merges into.
    room = IMAGE_ID - len(reserved) - len(pieces)
    merged += [f"~{i}~" for i in range(room)]
    names = [*reserved, *merged, *letters]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {name: i for i, name in enumerate(names)}, merges


def _text(seed: int) -> Iterator[str]:
    """Sentences of English and of made-up words, the ones in front far more often than the last."""
    rng = random.Random(seed)
    syllables = ["".join(s) for s in product("bcdfghklmnprstvz", "aeiou", ["", "n", "r", "s"])]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(30_000)]
    yield from ENGLISH * 50
    for start in range(0, len(words), 10):
        sentence = " ".join(words[start : start + 10])
        yield sentence.capitalize() + rng.choice([".", "?", "!", ", 7.", ' "so".'])
        yield " ".join(rng.choices(words[: start + 10], k=10))


def _write_weights(folder: Path, seed: int) -> None:
    config = LlavaConfig.from_pretrained(folder, local_files_only=True)
    shapes = published_names(config)
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    rng = np.random.default_rng(seed)
    places = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(
            {name: _tensor(name, shapes[name], rng) for name in names},
            folder / file,
            metadata={"format": "pt"},
        )
        places |= dict.fromkeys(names, file)
    total = 2 * sum(math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write(folder / "model.safetensors.index.json", index)


def _tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float16]:
    """Uniform draws: matrices keep the size of what they multiply, norms are around 1, biases around 0."""
    if len(shape) > 1:
        mean, deviation = 0.0, 1 / math.sqrt(math.prod(shape[1:]))
    else:
        mean, deviation = float(name.endswith("weight")), 0.1
    values, block = np.empty(math.prod(shape), np.float16), np.empty(BLOCK, np.float32)
    for start in range(0, values.size, BLOCK):
        part = values[start : start + BLOCK]
        draws = rng.random(dtype=np.float32, out=block[: part.size])
        draws -= 0.5
        draws *= deviation * math.sqrt(12)
        draws += mean
        part[:] = draws
    return values.reshape(shape)
