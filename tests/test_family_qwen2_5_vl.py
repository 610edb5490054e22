"""Qwen2.5-VL goes through the cases of every family; edges of pictures leave windows of several sizes."""

from tests.family_cases import FamilyCases
from tests.test_family_qwen2_vl import maker, whole
from tests.tiny_families import TinyFamily

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "window_size": 32,
    "fullatt_block_indexes": [1, 3],
}


class TestQwen25Vl(FamilyCases):
    family = TinyFamily("qwen2_5_vl", maker("Qwen2_5_VL", VISION), grid=None, pixels=whole)
