"""Why a model type is not supported: a line for each that transformers reads and no family here does.

`tests/test_unsupported.py` asks of every type of transformers' mapping from pictures and text to text that it
is supported or stands here, and of every type here that it is not supported.
"""

from collections.abc import Mapping, Sequence

from compressor.schema.problems import nearest

REASONS: Mapping[str, Mapping[str, str]] = {
    "its decoder is a mixture of experts": {
        "aria": "idefics3",
        "deepseek_ocr2": "paddleocr_vl",
        "dots3_note": "qwen2_5_vl",
        "ernie4_5_vl_moe": "paddleocr_vl",
        "glm4v_moe": "qwen2_5_vl",
        "kimi_k25": "qwen2_5_vl",
        "llama4": "llava_next",
        "minimax_m3_vl": "qwen2_5_vl",
        "mistral4": "lighton_ocr",
        "mistral_large4": "lighton_ocr",
        "muse_spark": "qwen3_vl",
        "qwen3_omni_moe_thinker": "qwen3_vl",
        "qwen3_vl_moe": "qwen3_vl",
        "step3p7": "internvl",
        "unlimited_ocr": "paddleocr_vl",
    },
    "its decoder has recurrent layers": {
        "glm5_next": "qwen3_vl",
        "inkling2": "llava_next",
        "inkling_mm_model": "llava_next",
        "lfm2_vl": "smolvlm",
        "lfm3_vl": "smolvlm",
        "minicpm_ocr": "paddleocr_vl",
        "minicpmv4_6": "qwen3_vl",
        "minicpmv4_7": "qwen3_vl",
        "nemotron_h_omni": "internvl",
        "qwen3_5": "qwen3_vl",
        "qwen3_5_moe": "qwen3_vl",
        "qwen4_exp": "qwen3_vl",
    },
    "its decoder reads pictures by cross attention, so they have no rows in it": {
        "blip": "llava",
        "evolla": "llava",
        "idefics": "idefics3",
        "mllama": "llava_next",
    },
    "its masks let tokens of a picture read later ones": {
        "diffusion_gemma": "llava_next",
        "gemma3": "llava_next",
        "gemma4": "llava_next",
        "gemma4_unified": "llava_next",
        "git": "llava",
        "molmo2": "llava_next",
        "paligemma": "llava",
        "pi0": "llava",
        "shieldgemma2": "llava_next",
    },
    "it is an encoder and a decoder": {
        "florence2": "smolvlm",
        "pix2struct": "paddleocr_vl",
        "pp_formulanet": "paddleocr_vl",
        "t5gemma2": "llava_next",
        "udop": "paddleocr_vl",
        "vision-encoder-decoder": "paddleocr_vl",
    },
    "its decoder is not Llama's, Mistral's or Qwen2's": {
        "aya_vision": "internvl",
        "cohere2_vision": "internvl",
        "cohere_compass": "internvl",
        "cosmos3_edge": "qwen3_vl",
        "exaone4_5": "qwen2_5_vl",
        "fuyu": "llava",
        "gemma3n": "llava_next",
        "glm46v": "qwen2_5_vl",
        "glm4v": "qwen2_5_vl",
        "glm_ocr": "paddleocr_vl",
        "glmga": "qwen2_5_vl",
        "granite4_vision": "llava_next",
        "granite_docling": "smolvlm",
        "hunyuan_vl": "qwen2_5_vl",
        "hyperclovax_vision_v2": "qwen2_5_vl",
        "muse_glimmer": "qwen3_vl",
    },
    "its pictures come as learned queries, not as rows of a grid": {
        "blip-2": "llava",
        "idefics2": "idefics3",
        "instructblip": "llava",
        "instructblipvideo": "llava",
        "kosmos-2": "llava",
        "kosmos-2.5": "paddleocr_vl",
    },
    "its pictures are tokens of a codebook": {
        "chameleon": "llava",
        "emu3": "llava",
    },
    "it takes or gives more than pictures and text": {
        "cosmos3_omni": "qwen3_vl",
        "llava_next_video": "llava_next",
        "qwen2_5_omni_thinker": "qwen2_5_vl",
        "video_llava": "llava",
    },
    "its vision tower or projector is another": {
        "deepseek_vl": "llava",
        "deepseek_vl_hybrid": "llava",
        "fast_vlm": "internvl",
        "got_ocr2": "paddleocr_vl",
        "janus": "llava",
        "mistral3": "lighton_ocr",
        "ovis2": "internvl",
        "perception_lm": "internvl",
        "pp_chart2table": "paddleocr_vl",
        "video_llama_3": "qwen2_5_vl",
    },
}
"""By reason: model types, each with the type that is nearest to it, which need not be supported either."""


def why_unsupported(model_type: str, supported: Sequence[str]) -> str:
    """Return what is said of a model type that no family reads; begins with its name.

    Args:
        model_type: as `config.json` has it.
        supported: all that families read.
    """
    for reason, types in REASONS.items():
        if model_type in types:
            near = types[model_type]
            return (
                f"model_type {model_type!r} is not supported: {reason}; the nearest supported one is "
                f"{near if near in supported else supported[0]}"
            )
    meant = nearest(model_type, supported)
    return f"model_type {model_type!r} is not supported; supported: {', '.join(supported)}{meant}"
