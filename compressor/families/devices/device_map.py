"""Which part of an original lies on which device, where no device of its own kind takes all of it.

The first device has all that is no layer of the decoder, vision part, token embedding and head, because this
tool's own decoder runs there and reads each layer's weights when it runs. Of the layers accelerate's device
map decides: it fills one device after the other in the order of the layers, keeps room for one more layer
on the first, and leaves what is left over in the CPU's memory.

Limitations:
    - A layer is never divided: a device whose room is less than one gets none.
    - What states of a prompt take is not counted; whoever says how much room there is leaves some for them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from compressor.families.base import LoadedModel
from compressor.families.known import family_that_read

CPU = "cpu"


@dataclass(frozen=True)
class DeviceMap:
    """Where the modules of an original lie.

    Attributes:
        first: device of all that is no layer, and of what is computed.
        list_of_layers: name of the list of the decoder's layers.
        modules: device of each module, by its name; of layers, and of the largest that have none.
        layers: how many layers lie on each device, in the order of the layers.
    """

    first: str
    list_of_layers: str
    modules: Mapping[str, str]
    layers: Mapping[str, int]

    @property
    def words(self) -> str:
        """Return how many layers lie where."""
        counts = [
            f"{count} {'in memory of the CPU' if device == CPU else f'on {device}'}"
            for device, count in self.layers.items()
        ]
        return f"layers: {', '.join(counts)}"


def device_map_of(model: LoadedModel, room: Mapping[str, int]) -> DeviceMap | None:
    """Return where the weights of an original may lie; None: they cannot be laid over these devices.

    They cannot where what is no layer, and one layer beside it, are more than the first device takes, or
    where the family does not tell which modules are the layers.

    Args:
        model: the original, on the CPU.
        room: of each device, in bytes; the first one computes. The CPU takes what is left over.
    """
    from accelerate import infer_auto_device_map

    name = family_that_read(model.facts).layers_of_decoder()
    if not name:
        return None
    layers = model.original.get_submodule(name)
    first, *_ = devices = [*room]
    held = _bytes(layers)
    left = room[first] - (_bytes(model.original) - held)
    if left < max(map(_bytes, layers)):
        return None
    # Accelerate takes numbers for devices, and fills them in that order.
    limits: dict[int | str, int] = dict(enumerate([left, *list(room.values())[1:]]))
    found = infer_auto_device_map(
        layers,
        max_memory=limits | {CPU: 2 * held},
        no_split_module_classes=[type(layer).__name__ for layer in layers],
        clean_result=False,
    )
    places = {
        f"{name}.{layer}": CPU if device == CPU else devices[device]
        for layer, device in found.items()
    }
    beside = {child: first for _, names in around(model.original, name) for child in names}
    return DeviceMap(first, name, {**beside, **places}, Counter(places.values()))


def around(original: nn.Module, name: str) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Yield the modules that a module lies in, from the outermost on, with what else lies in each by name.

    Args:
        original: the outermost.
        name: of the module in it.
    """
    module, path = original, ""
    for part in name.split("."):
        children = [child for child, _ in module.named_children() if child != part]
        children += [own for own, _ in module.named_parameters(recurse=False)]
        children += [own for own, _ in module.named_buffers(recurse=False)]
        yield module, tuple(path + child for child in children)
        module, path = module.get_submodule(part), f"{path}{part}."


def _bytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
