"""Write what stays beside the weights: the model folder's configuration and the two question sets.

    python prepare.py --mnist FOLDER

FOLDER holds the four MNIST ``*-ubyte`` files. Calibration pictures are made of digits of the
training split, held-out pictures of digits of the test split only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from digits import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_SIZE,
    KINDS,
    MAX_DIGITS,
    MIN_DIGITS,
    PAD,
    UNK,
    VOCABULARY,
    DigitPool,
    ask,
    draw,
    load_pool,
    sample_grid,
)
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = Path(__file__).parent
PATCH = 8
VISUAL_TOKENS = (IMAGE_SIZE // PATCH) ** 2

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}{{ ' ASSISTANT:' }}
{%- elif message['role'] == 'system' %}{{ ' SYSTEM:' }}
{%- else %}{{ ' USER:' }}
{%- endif %}
{%- if message['content'] is string %}{{ ' ' + message['content'] | trim }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ ' <image>' }}
{%- elif part['type'] == 'text' %}{{ ' ' + part['text'] | trim }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- if message['role'] == 'assistant' %}{{ ' ' + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}
"""


def build_config() -> LlavaConfig:
    """Return the configuration: 4 vision layers, 20 narrow decoder layers, 64 visual tokens."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=96,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=20,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=16,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids[IMAGE],
        image_seq_length=VISUAL_TOKENS,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        architectures=["LlavaForConditionalGeneration"],
        dtype="float16",
    )


def build_processor() -> LlavaProcessor:
    """Return the processor: a word-level tokenizer and CLIP's image processor at 64 pixels."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    words = Tokenizer(WordLevel(ids, unk_token=UNK))
    words.pre_tokenizer = WhitespaceSplit()
    words.add_special_tokens(
        [AddedToken(word, special=True, normalized=False) for word in (PAD, BOS, EOS, UNK, IMAGE)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def write_model_folder(folder: Path) -> None:
    """Write everything of the model folder but its weights."""
    folder.mkdir(exist_ok=True)
    build_config().save_pretrained(folder)
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    GenerationConfig(
        do_sample=False,
        max_new_tokens=8,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
    ).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    # Written by the Pillow processor, but any image backend of transformers may read it.
    path = folder / "processor_config.json"
    path.write_text(path.read_text().replace("CLIPImageProcessorPil", "CLIPImageProcessor"))


def write_questions(
    path: Path, pool: DigitPool, images: int, kinds: tuple[tuple[str, ...], ...], seed: int
) -> None:
    """Write ``images`` pictures and their questions; picture i gets ``kinds[i % len(kinds)]``."""
    rng = np.random.default_rng(seed)
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    rows = []
    for index in range(images):
        grid = sample_grid(rng, int(rng.integers(MIN_DIGITS, MAX_DIGITS + 1)))
        name = f"{folder.name}/{index + 1:04d}.png"
        picture = Image.fromarray(draw(rng, pool, grid))
        picture.save(path.parent / name, optimize=True)
        for kind in kinds[index % len(kinds)]:
            question = ask(rng, grid, kind)
            row = {"image": name, "question": question.text, "answer": question.answer}
            rows.append(json.dumps({**row, "kind": kind}))
    path.write_text("\n".join(rows) + "\n")


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, required=True)
    mnist = parser.parse_args().mnist
    write_model_folder(HERE / "model")
    one_kind = tuple((kind,) for kind in KINDS)
    write_questions(HERE / "calibration.jsonl", load_pool(mnist, "train"), 64, one_kind, seed=1)
    write_questions(HERE / "heldout.jsonl", load_pool(mnist, "t10k"), 300, (KINDS,), seed=2)


if __name__ == "__main__":
    main()
