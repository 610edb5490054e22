"""Asks the NVIDIA driver for its GPUs and prints JSON; a program of its own, because drivers can crash.

Needs nothing but Python: no CUDA, no TensorRT, nothing of this project.
"""

import ctypes
import json
import sys

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# CUdevice_attribute: compute capability, major and minor.
MAJOR, MINOR = 75, 76


def probe() -> dict[str, object]:
    """Return `gpus` as pairs of name and capability and the driver's CUDA version, or `error`."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError as failure:
        return {"error": f"no driver: {failure}"}
    if code := driver.cuInit(0):
        return {"error": f"the driver finds no GPU that it can use (cuInit: {code})"}
    count, version = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    driver.cuDriverGetVersion(ctypes.byref(version))
    gpus = [_gpu(driver, index) for index in range(count.value)]
    return {"gpus": gpus, "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}"}


def _gpu(driver: ctypes.CDLL, index: int) -> tuple[str, str]:
    name, device = ctypes.create_string_buffer(256), ctypes.c_int()
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    return name.value.decode(errors="replace"), f"SM{major.value}{minor.value}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()))
