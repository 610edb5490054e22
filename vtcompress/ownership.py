"""`compressor` and `export` are common names; another distribution may have overwritten ours."""

import importlib

from compressor.errors import VtcompressError

OWN_PACKAGES = ("compressor", "export")


def check_ownership() -> None:
    """Refuse to run on packages of another distribution.

    Raises:
        VtcompressError: a package that we import is not ours.
    """
    for name in OWN_PACKAGES:
        module = importlib.import_module(name)
        if getattr(module, "DISTRIBUTION", None) != "vtcompress":
            where = getattr(module, "__file__", None) or "a folder without __init__.py"
            raise VtcompressError(
                f"the package {name!r} is not vtcompress's own ({where}); another distribution or a folder "
                "of that name shadows it: install vtcompress in an environment of its own"
            )
