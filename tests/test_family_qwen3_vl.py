"""Qwen3-VL goes through the cases of every family: its tower's inner layers give rows to the decoder's first ones."""

from tests.family_cases import FamilyCases
from tests.test_family_qwen2_vl import maker, whole
from tests.tiny_families import TinyFamily

TURNED = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_interleaved": True,
    "mrope_section": [4, 2, 2],
}


class TestQwen3Vl(FamilyCases):
    family = TinyFamily(
        "qwen3_vl",
        maker(
            "Qwen3VL",
            {
                "depth": 5,
                "hidden_size": 32,
                "intermediate_size": 64,
                "out_hidden_size": 64,
                "num_position_embeddings": 36,
                "deepstack_visual_indexes": [1, 2, 3],
            },
            head_dim=16,
            rope_parameters=TURNED,
        ),
        grid=None,
        pixels=whole,
    )
