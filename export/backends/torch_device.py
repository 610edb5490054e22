"""Where torch runs the original: checked before anything is read, in one line with the remedy."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from compressor.errors import BackendError

ON_CPU = "cpu"
AUTO = "auto"
DEVICE_HELP = (
    "Where the original runs: cpu, cuda, cuda:1, or auto: a GPU that it fits, or else several with the CPU's "
    "memory if no compressed model runs there, or else cpu."
)

MOST_OF_A_GPU = 0.7
"""Share of a GPU's free memory that weights may take if it is chosen for them; the rest is for states."""


def check_device(name: str) -> str:
    """Return a device that torch can use here, as it was given; of the CPU torch is not asked.

    Raises:
        BackendError: it is no device, or torch has none such.
    """
    if name in (ON_CPU, AUTO):
        return name
    found = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", name) if isinstance(name, str) else None
    if found is None:
        raise BackendError(
            f"`device`: {name!r:.40} is no device; give cpu, cuda, cuda:1 for the second GPU, or auto; the "
            "number of a backend's GPU is `gpu`"
        )
    import torch

    if not torch.cuda.is_available():
        raise BackendError(f"`device`: {name}: {why_no_gpu()}, or give cpu")
    count, asked = torch.cuda.device_count(), int(found[1] or 0)
    if asked >= count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise BackendError(
            f"`device`: {name}: torch sees {count} GPU{'s' if count > 1 else ''} here; give {there}, or cpu"
        )
    return name


def why_no_gpu() -> str:
    """Return that torch sees no GPU, and the remedy."""
    import torch

    remedy = "look at NVIDIA's driver with `vtcompress doctor`"
    if torch.version.cuda is None:
        remedy = f"install torch's build with CUDA (this is {torch.__version__})"
    return f"torch sees no GPU here; {remedy}"


def room_on_gpus() -> dict[str, int]:
    """Return how many bytes weights may take of each GPU, `MOST_OF_A_GPU` of what is free; the most first.

    A GPU that does not tell has none: others may have filled it.
    """
    import torch

    if not torch.cuda.is_available():
        return {}
    room = {f"cuda:{n}": _room(n) for n in range(torch.cuda.device_count())}
    return dict(sorted(room.items(), key=lambda each: -each[1]))


def _room(number: int) -> int:
    import torch

    try:
        free = torch.cuda.mem_get_info(number)[0]
    except RuntimeError:  # torch's own errors are such
        return 0
    return int(MOST_OF_A_GPU * free)


def device_for(weights: int, room: Mapping[str, int]) -> str:
    """Return the GPU with the most room where weights of so many bytes fit it, else the CPU.

    Args:
        weights: bytes.
        room: see `room_on_gpus`.
    """
    return next((gpu for gpu, most in room.items() if weights <= most), ON_CPU)


@contextmanager
def whole_float32(name: str) -> Iterator[None]:
    """Let convolutions of float32 be of float32 on a GPU: by default cuDNN rounds their factors to TF32."""
    if name == ON_CPU:
        yield
        return
    import torch

    before: bool = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
