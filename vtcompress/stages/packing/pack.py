"""`vtcompress pack`: the folder that a stock client loads, from the artifact alone."""

from pathlib import Path

from compressor.progress import Progress
from export.clients.pack import pack_artifact
from export.clients.pack_file import PackFile
from vtcompress.console import shown


def pack(
    path: str | Path,
    client: str,
    output: str | Path,
    *,
    overwrite: bool = False,
    check: bool = True,
    progress: Progress | bool | None = None,
) -> PackFile:
    """Write the folder that a stock client loads, and ask the client the same as the runtime.

    Args:
        path: the artifact.
        client: one of `export.clients.registry.CLIENTS`.
        output: folder to write.
        overwrite: replace what this tool wrote there.
        check: run the self-check, where the client is installed.
        progress: shows stages and bytes; None: on a terminal alone.

    Returns:
        What the folder holds, and the outcome of the self-check; its `check.differs` says in what the client
        is not the runtime.

    Raises:
        PackError: the client cannot run this artifact; every reason.
        MissingExtraError: packages that write the folder are not installed.
        VtcompressError: the artifact is broken, or `output` cannot be written.
    """
    progress = shown(progress)
    return pack_artifact(path, client, output, overwrite=overwrite, check=check, progress=progress)
