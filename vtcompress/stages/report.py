"""Reports and model card of an artifact: written into it by `export`, made again from it by `report`."""

from pathlib import Path

from compressor.disk.files import is_folder, write_text
from export.artifact.artifact import Artifact
from export.artifact.manifest import Manifest
from export.report.data import ReportData, report_data
from export.report.pages.model_card import CARD_FILE, Origin, licence_of, model_card
from export.report.pages.report import HTML_FILE, MARKDOWN_FILE, html_report, markdown_report


def origin_of(model_id: str | None, folder: Path) -> Origin:
    """Return where a model came from.

    Args:
        model_id: hub id or local folder, as the recipe has it; None if it names none.
        folder: holds the model's files.
    """
    hub = model_id is not None and not is_folder(Path(model_id))
    hub = hub and not str(model_id).startswith((".", "/", "~"))
    return Origin(model_id if hub else None, licence_of(folder))


def write_reports(folder: Path, manifest: Manifest, origin: Origin) -> None:
    """Write reports and model card into an artifact under construction."""
    data = report_data(folder, manifest)
    write_text(folder / MARKDOWN_FILE, markdown_report(data))
    write_text(folder / HTML_FILE, html_report(data))
    write_text(folder / CARD_FILE, model_card(data, origin))


def read_report(path: str | Path, *, verify: bool = True) -> ReportData:
    """Return what an artifact's reports are made from.

    Raises:
        VtcompressError: the artifact is broken.
    """
    artifact = Artifact.open(Path(path), verify=verify)
    return report_data(artifact.folder, artifact.manifest)
