"""What only a GPU can do: load engines, hold their memory, run them. Never run: this project had no GPU.

After the vendor's documented pattern: one execution context an engine, addresses set by name, everything on
the default stream, and a wait at the end of every call. No other streams, no CUDA graphs.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import ArtifactError, BackendError
from export.backends.tensorrt.session import Shape
from export.session.arrays import Array

DEFAULT_STREAM = 0


class CudaEngines:
    """The engines of one set on one GPU. Never run.

    Args:
        trt: the TensorRT package that built them.
        files: of engines that were checked with their sha256, by graph; each is loaded when it is first run.
        device: number of the GPU.

    Raises:
        BackendError: CUDA for Python is not installed, or the GPU cannot be used.
    """

    def __init__(self, trt: Any, files: Mapping[str, tuple[Path, str]], device: int) -> None:
        try:
            from cuda.bindings import runtime as cuda
        except ImportError:
            raise BackendError(
                "running engines needs CUDA for Python: pip install cuda-bindings, of the driver's version"
            ) from None
        self._trt, self._files, self._cuda, self._device = trt, dict(files), cuda, device
        self._addresses: list[int] = []
        self._log = trt.Logger(trt.Logger.ERROR)
        self._use_device()
        self._runtime = trt.Runtime(self._log)
        # Engines are kept: a context does not hold its own.
        self._loaded: dict[str, tuple[Any, Any]] = {}

    def allocate(self, size: int) -> int:
        """See `Device.allocate`."""
        self._use_device()
        self._addresses.append(int(self._check(self._cuda.cudaMalloc(size))))
        return self._addresses[-1]

    def write(self, address: int, array: Array) -> None:
        """See `Device.write`."""
        self._use_device()
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._cuda.cudaMemcpy(address, array.ctypes.data, array.nbytes, kind))

    def read(self, address: int, array: Array) -> None:
        """See `Device.read`."""
        self._use_device()
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self._cuda.cudaMemcpy(array.ctypes.data, address, array.nbytes, kind))

    def run(
        self,
        graph: str,
        profile: int,
        inputs: Mapping[str, tuple[int, Shape]],
        outputs: Mapping[str, int],
    ) -> Mapping[str, Shape]:
        """See `Device.run`."""
        self._use_device()
        context, (file, _) = self._context(graph), self._files[graph]
        if context.active_optimization_profile != profile:
            context.set_optimization_profile_async(profile, DEFAULT_STREAM)
            self._check(self._cuda.cudaDeviceSynchronize())
        for name, (address, shape) in inputs.items():
            if not context.set_input_shape(name, shape):
                raise BackendError(f"{file}: refuses {name} of shape {shape}")
            context.set_tensor_address(name, address)
        for name, address in outputs.items():
            context.set_tensor_address(name, address)
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in outputs}
        if not context.execute_async_v3(DEFAULT_STREAM):
            raise BackendError(f"{file}: the engine did not run; the log says why")
        self._check(self._cuda.cudaDeviceSynchronize())
        return shapes

    def _context(self, graph: str) -> Any:
        if graph not in self._loaded:
            path, digest = self._files[graph]
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                changed = f"{path}: changed since it was checked; load the artifact anew"
                raise ArtifactError([changed])
            engine = self._runtime.deserialize_cuda_engine(content)
            if engine is None:
                problem = f"{path}: TensorRT cannot load it on this GPU; build the engines anew"
                raise ArtifactError([problem])
            self._loaded[graph] = engine, engine.create_execution_context()
        return self._loaded[graph][1]

    def _use_device(self) -> None:
        """Choose the GPU for this thread; CUDA keeps the choice for each thread."""
        self._check(self._cuda.cudaSetDevice(self._device))

    def __del__(self) -> None:
        for address in getattr(self, "_addresses", ()):
            self._cuda.cudaFree(address)

    def _check(self, answer: tuple[Any, ...]) -> Any:
        """Return what a CUDA call gave.

        Raises:
            BackendError: it failed.
        """
        code, *values = answer
        if int(code) != 0:
            name = self._cuda.cudaGetErrorName(code)[1].decode()
            raise BackendError(
                f"CUDA fails with {name}; nvidia-smi shows whether the driver works and memory is free"
            )
        return values[0] if values else None
