"""Reports of an artifact: written into it by `export`, made again from it by `report`."""

from pathlib import Path

from compressor.files import write_text
from export.artifact import Artifact
from export.html_report import HTML_FILE, html_report
from export.manifest import Manifest
from export.report import REPORT_FILE, markdown_report
from export.report_data import ReportData, report_data


def write_reports(folder: Path, manifest: Manifest) -> None:
    """Write the reports into an artifact under construction."""
    data = report_data(folder, manifest)
    write_text(folder / REPORT_FILE, markdown_report(data))
    write_text(folder / HTML_FILE, html_report(data))


def read_report(path: str | Path, *, verify: bool = True) -> ReportData:
    """Return what an artifact's reports are made from.

    Raises:
        VtcompressError: the artifact is broken.
    """
    artifact = Artifact.open(Path(path), verify=verify)
    return report_data(artifact.folder, artifact.manifest)
