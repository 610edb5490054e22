"""A pytest plugin: the cases of families run their graphs in ONNX Runtime on a GPU.

python -m pytest -p tests.gpu.on_cuda tests/test_family_*.py -k "without_cuts or all_cuts"
"""

from tests import family_matrix

# Before the cases are read, whose parameters these are.
family_matrix.GRAPHS_RUN = ("onnxruntime-cuda",)
