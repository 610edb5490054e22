"""A GPU that is not there: tensors on it are the CPU's, and torch's rules for two devices hold.

Everything that Python asks of torch goes through a mode, which knows the memory of each tensor that was sent
to the GPU. What is computed of such tensors lies there too, operands on both devices are refused, and so is
`numpy`, as CUDA does. So a run that forgets to send something fails as on a GPU, and one that passes gives
the CPU's values to the bit. What torch does inside of one call is not seen.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GIB = 1 << 30
# Of these some operands may lie elsewhere: they send, copy, or look.
FREE = {
    "to", "cpu", "copy_", "__get__", "__set__", "__getitem__", "__setitem__", "__repr__", "__hash__",
    "data_ptr", "untyped_storage", "is_floating_point", "stride", "storage_offset", "is_complex", "type",
    "_make_subclass", "_has_compatible_shallow_copy_type",
}  # fmt: skip


class PretendGpus(TorchFunctionMode):
    """Stands for GPUs while it is entered.

    Attributes:
        sent: devices of all that was sent, in order.
        ran: devices of what was computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[int, str] = {}
        self._held: list[Any] = []  # no other tensor gets their memory
        self.sent: list[str] = []
        self.ran: set[str] = set()

    def place(self, tensor: Tensor) -> str:
        """Return where a tensor pretends to be."""
        with torch._C.DisableTorchFunction():
            if tensor.is_meta or not tensor.numel():
                return ""
            return self._places.get(tensor.untyped_storage().data_ptr(), "cpu")

    def _put(self, tensor: Tensor, place: str) -> Tensor:
        with torch._C.DisableTorchFunction():
            if tensor.is_meta or place in ("", "cpu") or not tensor.numel():
                return tensor
            storage = tensor.untyped_storage()
            self._places[storage.data_ptr()] = place
            self._held.append(storage)
            return tensor

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = {place for t in tensors if (place := self.place(t))}
        there = places - {"cpu"}
        if func == torch.Tensor.device.__get__:
            return torch.device(min(there, default=str(func(*args))))
        if func == torch.Tensor.is_cuda.__get__:
            return bool(there)
        if name == "to" or name == "cpu":
            return self._sent(func, name, args, kwargs)
        if there and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda device type tensor to numpy")
        if name not in FREE:
            mixed = {place for t in tensors if t.dim() and (place := self.place(t))}
            if len(mixed) > 1:
                raise RuntimeError(
                    f"{name}: expected all tensors on one device, found {sorted(mixed)}"
                )
        asked = str(kwargs["device"]) if kwargs.get("device") is not None else ""
        if asked.startswith("cuda"):
            kwargs["device"] = "cpu"
            there = {_numbered(asked)}
        found = func(*args, **kwargs)
        if not there or isinstance(found, torch.Size):
            return found
        place = min(there)
        if name not in FREE:
            self.ran.add(place)
        return tree_map(
            lambda leaf: self._put(leaf, place) if isinstance(leaf, Tensor) else leaf, found
        )

    def _sent(
        self, func: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any]
    ) -> Tensor:
        tensor, *rest = args
        wanted = [*rest, kwargs.get("device"), kwargs.get("other")]
        where = "cpu" if name == "cpu" else self.place(tensor)
        for one in wanted:
            if isinstance(one, Tensor):
                where = self.place(one) or where
            elif isinstance(one, str | torch.device):
                where = _numbered(str(one))
        if where.startswith("cuda"):
            rest = ["cpu" if isinstance(one, str | torch.device) else one for one in rest]
            if kwargs.get("device") is not None:
                kwargs["device"] = "cpu"
        with torch._C.DisableTorchFunction():
            moved: Tensor = func(tensor, *rest, **kwargs)
        if where != self.place(tensor) and not moved.is_meta:
            with torch._C.DisableTorchFunction():
                moved = moved.clone() if moved.data_ptr() == tensor.data_ptr() else moved
            self.sent.append(where)
        return self._put(moved, where)


def _numbered(device: str) -> str:
    return "cuda:0" if device == "cuda" else device


@contextmanager
def pretend_gpus(patch: pytest.MonkeyPatch, *free: int) -> Iterator[PretendGpus]:
    """Let torch see a GPU for each number, which is its free memory in bytes."""
    patch.setattr("torch.cuda.is_available", lambda: bool(free))
    patch.setattr("torch.cuda.device_count", lambda: len(free))
    patch.setattr("torch.cuda.mem_get_info", lambda number: (free[number], free[number]))
    with PretendGpus() as gpus:
        yield gpus
