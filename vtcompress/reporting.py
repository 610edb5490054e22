"""Reports and model card of an artifact: written into it by `export`, made again from it by `report`."""

from pathlib import Path

from compressor.files import write_text
from compressor.paths import is_folder
from export.artifact import Artifact
from export.html_report import HTML_FILE, html_report
from export.manifest import Manifest
from export.model_card import CARD_FILE, Origin, licence_of, model_card
from export.report import REPORT_FILE, markdown_report
from export.report_data import ReportData, report_data


def origin_of(model_id: str | None, folder: Path) -> Origin:
    """Return where a model came from.

    Args:
        model_id: hub id or local folder, as the recipe has it; None if it names none.
        folder: where its files lie.
    """
    hub = model_id is not None and not is_folder(Path(model_id))
    hub = hub and not str(model_id).startswith((".", "/", "~"))
    return Origin(model_id if hub else None, licence_of(folder))


def write_reports(folder: Path, manifest: Manifest, origin: Origin) -> None:
    """Write reports and model card into an artifact under construction."""
    data = report_data(folder, manifest)
    write_text(folder / REPORT_FILE, markdown_report(data))
    write_text(folder / HTML_FILE, html_report(data))
    write_text(folder / CARD_FILE, model_card(data, origin))


def read_report(path: str | Path, *, verify: bool = True) -> ReportData:
    """Return what an artifact's reports are made from.

    Raises:
        VtcompressError: the artifact is broken.
    """
    artifact = Artifact.open(Path(path), verify=verify)
    return report_data(artifact.folder, artifact.manifest)
