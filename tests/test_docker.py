"""The container's recipe names extras, files and options that there are; it is not built here."""

import re
import shlex
import tomllib
from pathlib import Path

from vtcompress.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
RECIPE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def test_its_extras_are_the_projects_and_none_brings_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r"\.whl\)\[([^]]+)\]", RECIPE)
    for extra in extras.split(","):
        packages = project["optional-dependencies"][extra]
        assert not [name for name in packages if name.startswith(("torch", "transformers"))]


def test_its_command_is_one_of_the_tools_with_options_that_it_has() -> None:
    (command,) = re.findall(r"^CMD \[(.+)\]$", RECIPE, re.MULTILINE)
    name, *arguments = [word.strip(", ") for word in shlex.split(command.replace(",", " "))]
    options = {option for given in cli.commands[name].params for option in given.opts}
    assert {word for word in arguments if word.startswith("--")} <= options


def test_it_takes_nothing_along_but_the_wheel_and_the_pins_and_is_not_root() -> None:
    kept = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert kept == ["*", "!constraints.txt", "!dist/vtcompress-*.whl"]
    assert RECIPE.index("\nUSER vtcompress\n") < RECIPE.index("\nENTRYPOINT ")
