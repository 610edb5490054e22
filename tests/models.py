"""Tiny seeded LLaVA folders in Hugging Face format: every tower and decoder that the family supports."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from tests.tiny_families import draw_weights

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:", "what", "is", "this", "it",
         "red", "blue", "a", "b", "c", "d", "e", "f", "g", "h", "no", "yes")  # fmt: skip
VOCAB = 48
PATCH, SIDE = 8, 32
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}"
    "{{ 'USER:' if m['role'] == 'user' else 'ASSISTANT:' }} "
    "{% if m['content'] is string %}{{ m['content'] }} {% else %}"
    "{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@dataclass(frozen=True)
class Variant:
    """One combination of tower and decoder."""

    tower: str = "clip"
    text: str = "llama"
    heads: int = 4
    kv_heads: int = 2
    layers: int = 4
    tower_layers: int = 3
    tied: bool = False
    dtype: str = "float32"
    feature_layer: Any = -2
    strategy: str = "default"
    side: int = SIDE
    text_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


VARIANTS = {
    "clip+llama": Variant(),
    "siglip+qwen2, tied, biases": Variant(
        tower="siglip", text="qwen2", tied=True, strategy="full", feature_layer=-1
    ),
    "clip+mistral, all heads": Variant(
        text="mistral", kv_heads=4, text_options={"sliding_window": None}
    ),
    "clip+llama3 rope, biases, head_dim": Variant(
        text_options={
            "rope_parameters": LLAMA3_ROPE,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 8,
        },
        feature_layer=[-2, -1],
    ),
    "siglip+qwen3, head norms, head_dim": Variant(
        tower="siglip", text="qwen3", strategy="full", text_options={"head_dim": 24}
    ),
}


def make_llava(folder: Path, variant: Variant = Variant()) -> Path:
    """Write a model folder. Weights are drawn with a standard deviation of 0.2: smaller ones hide faults."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(variant.seed)
    config = LlavaConfig(
        vision_config=_vision(variant),
        text_config=_text(variant),
        image_token_index=WORDS.index("<image>"),
        image_seq_length=(variant.side // PATCH) ** 2,
        vision_feature_layer=variant.feature_layer,
        vision_feature_select_strategy=variant.strategy,
        tie_word_embeddings=variant.tied,
    )
    model = LlavaForConditionalGeneration(config)
    draw_weights(model)
    model.generation_config.eos_token_id = WORDS.index("</s>")
    model.to(getattr(torch, variant.dtype)).save_pretrained(folder)
    _processor(variant).save_pretrained(folder)
    return folder


def _vision(variant: Variant) -> Any:
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    kind = CLIPVisionConfig if variant.tower == "clip" else SiglipVisionConfig
    return kind(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=variant.tower_layers,
        num_attention_heads=2,
        image_size=variant.side,
        patch_size=PATCH,
    )


def _text(variant: Variant) -> Any:
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    kinds = {
        "llama": LlamaConfig,
        "mistral": MistralConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
    }
    options = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": variant.layers,
        "num_attention_heads": variant.heads,
        "num_key_value_heads": variant.kv_heads,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "tie_word_embeddings": variant.tied,
        "bos_token_id": WORDS.index("<s>"),
        "eos_token_id": WORDS.index("</s>"),
        "pad_token_id": 0,
    }
    return kinds[variant.text](**(options | variant.text_options))


def _processor(variant: Variant) -> Any:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    vocabulary = {word: i for i, word in enumerate(WORDS)}
    vocabulary |= {f"w{i}": i for i in range(len(WORDS), VOCAB)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    square = {"height": variant.side, "width": variant.side}
    if variant.tower == "clip":
        images: Any = CLIPImageProcessorPil(size={"shortest_edge": variant.side}, crop_size=square)
    else:
        images = SiglipImageProcessorPil(size=square)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy=variant.strategy,
        num_additional_image_tokens=1 if variant.tower == "clip" else 0,
        chat_template=TEMPLATE,
    )


def make_picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 33)) -> Path:
    """Write a small seeded picture."""
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def make_questions(folder: Path, count: int = 6, *, answers: bool = True) -> Path:
    """Write `questions.jsonl` with pictures beside it."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        make_picture(folder / f"{i}.png", seed=i)
        row = {
            "image": f"{i}.png",
            "question": f"what is {'this' if i % 2 else 'it'}",
            "kind": "xy"[i % 2],
        }
        if answers:
            row["answer"] = WORDS[11 + i % 3]
        rows.append(json.dumps(row))
    path = folder / "questions.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
