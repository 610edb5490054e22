"""What each of transformers' image processors does where the saved configuration is silent."""

from collections.abc import Mapping
from itertools import product
from typing import Any

_CLIP_DEFAULTS: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_pad": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_TILED_DEFAULTS: Mapping[str, Any] = {
    **_CLIP_DEFAULTS,
    "size": {"height": 384, "width": 384},
    "do_center_crop": False,
    "crop_size": None,
    "crop_to_patches": False,
    "min_patches": 1,
    "max_patches": 12,
}
_SIGLIP_DEFAULTS: Mapping[str, Any] = {
    **_CLIP_DEFAULTS,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "crop_size": None,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_CUT_DEFAULTS: Mapping[str, Any] = {
    **_SIGLIP_DEFAULTS,
    "size": {"longest_edge": 4 * 364},
    "resample": 1,
    "do_image_splitting": True,
    "max_image_size": {"longest_edge": 364},
}
_CELL_DEFAULTS: Mapping[str, Any] = {
    **_CLIP_DEFAULTS,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    "do_center_crop": False,
    "crop_size": None,
    "patch_size": 14,
    "merge_size": 2,
}
_FROM_CELL_DEFAULTS: Mapping[str, Any] = {
    **_CELL_DEFAULTS,
    "size": {"shortest_edge": 384 * 384, "longest_edge": 1536 * 1536},
}
_FRAME_DEFAULTS: Mapping[str, Any] = {
    **_CLIP_DEFAULTS,
    "size": {"longest_edge": 1024},
    "do_center_crop": False,
    "crop_size": None,
    "patch_size": {"height": 16, "width": 16},
}
_FIT_DEFAULTS: Mapping[str, Any] = {
    **_CLIP_DEFAULTS,
    "image_grid_pinpoints": ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
}
_FIT_WIDE_DEFAULTS: Mapping[str, Any] = {
    **_TILED_DEFAULTS,
    "image_grid_pinpoints": tuple(product(range(384, 2305, 384), repeat=2)),
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "CLIPImageProcessor": _CLIP_DEFAULTS,
    "SiglipImageProcessor": _SIGLIP_DEFAULTS,
    "LlavaImageProcessor": _CLIP_DEFAULTS,
    "Qwen2VLImageProcessor": _CELL_DEFAULTS,
    "PaddleOCRVLImageProcessor": _FROM_CELL_DEFAULTS,
    "PixtralImageProcessor": _FRAME_DEFAULTS,
    "GotOcr2ImageProcessor": _TILED_DEFAULTS,
    "Idefics3ImageProcessor": _CUT_DEFAULTS,
    "SmolVLMImageProcessor": _CUT_DEFAULTS,
    "LlavaNextImageProcessor": _FIT_DEFAULTS,
    "LlavaOnevisionImageProcessor": _FIT_WIDE_DEFAULTS,
}
"""By the name of the processor's class."""

# It alone pads to a square by do_pad; in the others that completes a batch and needs pad_size.
PADS_TO_SQUARE = "LlavaImageProcessor"
# It alone cuts no picture of several.
SEVERAL_UNCUT = "LlavaOnevisionImageProcessor"
FROM_CELL = "PaddleOCRVLImageProcessor"
TO_CELLS = ("Qwen2VLImageProcessor", FROM_CELL)
TO_FRAME = "PixtralImageProcessor"
