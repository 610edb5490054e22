"""From an artifact to the folder that a stock client loads, checked in that client where it is installed."""

from pathlib import Path

from compressor.disk.mistaken import PACK_FILE
from compressor.errors import MissingExtraError, PackError
from compressor.progress import SILENT, Progress
from export.artifact.artifact import Artifact, list_files
from export.artifact.engine_set import artifact_digest
from export.artifact.manifest import FileEntry
from export.artifact.staging import check_place, staged
from export.clients.check import self_check
from export.clients.client import Client
from export.clients.pack_file import NOT_ASKED, PackCheck, PackFile
from export.clients.packing import Packing
from export.clients.registry import find_client
from export.clients.rows import INSTEAD
from export.graphs.spec import WEIGHTS_FILE, in_order

README = "README.md"


def pack_artifact(
    path: str | Path,
    client: str,
    output: str | Path,
    *,
    overwrite: bool = False,
    check: bool = True,
    progress: Progress = SILENT,
) -> PackFile:
    """Write the folder that a stock client loads, and ask the client the same as the runtime.

    Args:
        path: the artifact.
        client: one of `export.clients.registry.CLIENTS`.
        output: folder to write.
        overwrite: replace what this tool wrote there.
        check: run the self-check, where the client is installed.
        progress: shows stages and bytes.

    Returns:
        What the folder holds, and the outcome of the self-check. Where that differs the folder is written all
        the same, and `differs` of the outcome says in what.

    Raises:
        PackError: the client cannot run this artifact; every reason.
        MissingExtraError: packages that write the folder are not installed.
        VtcompressError: the artifact is broken, or `output` cannot be written.
    """
    entry, path, output = find_client(client), Path(path), Path(output)
    check_place(output, overwrite=overwrite, sources=[path])
    artifact = Artifact.open(path, progress=progress)
    if reasons := refusals(entry, artifact):
        raise PackError(f"{path}: {client}: {reason}" for reason in reasons)
    if entry.lacking():
        raise MissingExtraError(f"packing for {client}", entry.extra)
    packing = Packing(artifact, progress)
    needed = entry.copies * _needed(artifact)
    with staged(output, overwrite=overwrite, needed_bytes=needed, sources=[path]) as folder:
        progress.say(f"writing what {client} loads")
        entry.write(packing, folder)
        (folder / README).write_text(entry.readme(packing), encoding="utf-8")
        artifact.check_unchanged()
        facts = PackFile(
            client=client,
            artifact=artifact_digest(artifact.manifest),
            dtype=artifact.manifest.dtype,
            model=artifact.manifest.model,
            pictures=artifact.manifest.picture_form,
            files={},
        )
        facts.save(folder)  # what prepares prompts reads it; files are listed when all are there
        outcome = PackCheck(not_run=NOT_ASKED)
        if check:
            progress.say(f"asking {client} and the runtime the same")
            outcome = self_check(packing, entry, folder, progress)
        progress.say("taking the files' sha256")
        facts = facts.model_copy(update={"check": outcome, "files": _files(folder)})
        facts.save(folder)
    return facts


def _files(folder: Path) -> dict[str, FileEntry]:
    return {name: entry for name, entry in list_files(folder).items() if name != PACK_FILE}


def refusals(client: Client, artifact: Artifact) -> list[str]:
    """Return why a client cannot run an artifact: what no client does, and what this one does not."""
    specs, reasons = artifact.manifest.graphs, []
    decoders = in_order(specs, "decoder")
    if len(decoders) > 1:
        reasons.append(
            f"runs one decoder graph, and this decoder has {len(decoders)}, between which a gate decides; "
            "export with the gates' `exit: dynamic` or `baked`"
        )
    if any(spec.fixed for spec in decoders):
        reasons.append(
            "has caches that grow, and these graphs write into caches of fixed size; export with "
            "export.kv_cache: growing"
        )
    if decoders[0].moves_text:
        reasons.append(
            "counts the places of a prompt itself, and here the text behind pictures stands elsewhere; "
            f"{INSTEAD}"
        )
    return reasons + client.refuses(artifact)


def _needed(artifact: Artifact) -> int:
    files = artifact.manifest.files
    names = {spec.file for spec in artifact.manifest.graphs} | {WEIGHTS_FILE}
    return sum(entry.size for name, entry in files.items() if name in names)
