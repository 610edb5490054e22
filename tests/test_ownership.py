"""Packages of another distribution under our names are found at start."""

import sys
from types import ModuleType

import pytest

from compressor.errors import VtcompressError
from vtcompress.ownership import check_ownership


@pytest.mark.parametrize("name", ["compressor", "export"])
def test_a_package_of_another_distribution_is_refused_with_the_remedy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = ModuleType(name)
    foreign.__file__ = f"/site-packages/{name}/__init__.py"
    monkeypatch.setitem(sys.modules, name, foreign)
    with pytest.raises(VtcompressError) as caught:
        check_ownership()
    assert f"the package '{name}' is not vtcompress's own" in str(caught.value)
    assert "an environment of its own" in str(caught.value)


def test_our_own_packages_pass() -> None:
    check_ownership()
