"""The highest memory of each stage of an export: forgotten when one begins, kept for the whole."""

import gc
import json
import mmap
import sys
from pathlib import Path

import pytest

from export.artifact.manifest import MANIFEST_FILE, Manifest
from export.machine.freed import return_memory
from export.machine.process_status import status_bytes
from export.machine.stage_peaks import StagePeaks
from export.report.data import report_data
from export.report.pages.report import report_document
from export.report.render.markdown import markdown
from tests.artifacts import make_artifact

MIB = 1 << 20
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


def held(size: int) -> None:
    """Take so many bytes of memory, and give them back to the system."""
    with mmap.mmap(-1, size) as memory:
        for start in range(0, size, mmap.PAGESIZE):
            memory[start] = 1


@LINUX
def test_a_stage_has_its_own_peak_and_the_whole_the_highest() -> None:
    peaks = StagePeaks()
    with peaks.of("large"):
        held(192 * MIB)
    with peaks.of("small"):
        held(8 * MIB)
    found = peaks.bytes_by_stage
    assert found is not None
    assert list(found) == ["large", "small"]
    assert found["large"] - found["small"] > 150 * MIB
    assert peaks.highest == found["large"]
    with peaks.of("small"):
        held(96 * MIB)
    again = peaks.bytes_by_stage
    assert again is not None
    assert again["small"] > found["small"] + 60 * MIB, "of a stage that comes twice, the higher"


@LINUX
def test_what_lies_between_stages_counts_for_the_whole() -> None:
    peaks = StagePeaks()
    with peaks.of("one"):
        pass
    held(192 * MIB)
    with peaks.of("two"):
        pass
    found = peaks.bytes_by_stage
    assert found is not None
    assert peaks.highest > max(found.values()) + 150 * MIB


@pytest.mark.parametrize("files", [{}, {"status": "Name: x\nVmHWM:  7 kB\n"}])
def test_where_the_system_cannot_forget_nothing_is_said_of_stages(
    tmp_path: Path, files: dict[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    peaks = StagePeaks(tmp_path)
    with peaks.of("one"):
        pass
    assert peaks.bytes_by_stage is None
    assert peaks.highest == (7 * 1024 if files else 0)
    assert not (tmp_path / "clear_refs").exists()


def test_the_report_shows_stages_where_the_manifest_has_them(tmp_path: Path) -> None:
    older = make_artifact(tmp_path / "older")
    manifest = Manifest.model_validate_json((older / MANIFEST_FILE).read_text(encoding="utf-8"))
    assert manifest.peak_memory_by_stage is None
    assert "Peak memory by stage" not in markdown(report_document(report_data(older, manifest)))
    newer = manifest.model_copy(update={"peak_memory_by_stage": {"checks": 300 * MIB}})
    text = markdown(report_document(report_data(older, newer)))
    assert "Peak memory by stage" in text
    assert "| checks | 300 |" in text
    assert json.loads(newer.model_dump_json())["peak_memory_by_stage"] == {"checks": 300 * MIB}


@LINUX
def test_an_export_tells_its_stages(tiny_artifact: Path) -> None:
    text = (tiny_artifact / MANIFEST_FILE).read_text(encoding="utf-8")
    manifest = Manifest.model_validate_json(text)
    assert manifest.peak_memory_by_stage is not None
    assert list(manifest.peak_memory_by_stage) == [
        "loading",
        "comparing the rewrite",
        "calibration and plan",
        "the original's answers",
        "running the compressed model",
        "exporting graphs",
        "checks",
    ]
    assert max(manifest.peak_memory_by_stage.values()) <= manifest.peak_memory_bytes


@LINUX
def test_memory_that_cycles_hold_in_many_blocks_goes_back_to_the_system() -> None:
    """As graphs and sessions do: in blocks that the allocator keeps, below one that stays in use."""
    return_memory()
    before = status_bytes("VmRSS") or 0
    gc.disable()
    try:
        blocks: list[object] = [bytearray(b"1") * 100_000 for _ in range(1000)]
        kept = bytearray(b"1") * 100_000
        blocks.append(blocks)
        del blocks
        assert (status_bytes("VmRSS") or 0) - before > 90e6
        return_memory()
        assert (status_bytes("VmRSS") or 0) - before < 10e6
        assert len(kept) == 100_000
    finally:
        gc.enable()
