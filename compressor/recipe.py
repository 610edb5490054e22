"""The recipe: what to compress, how, on which data, and what the result has to satisfy.

A recipe is a YAML file and, once read, a frozen value; nothing here touches a model. Its sections are in
`compressor.schema.sections`, those of the methods in `compressor.methods`.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from compressor.contract.gated import GatedMethod
from compressor.contract.healing import HealedFile, HealSection
from compressor.contract.method import Method
from compressor.contract.routed import RoutedMethod
from compressor.contract.searched import SearchedMethod
from compressor.disk.gate_file import GateFile
from compressor.disk.mistaken import mistaken
from compressor.disk.paths import at_home
from compressor.disk.router_file import RouterFile
from compressor.errors import RecipeError
from compressor.facts import ModelFacts
from compressor.methods import GATED, UNUSABLE, CompressEntry, gated, methods_clash
from compressor.recipe_override import changed, check_dotted
from compressor.schema.problems import allowed, error_lines, rule
from compressor.schema.sections import (
    CalibrateSection,
    ExportSection,
    ImageSection,
    ModelSection,
    ValidateSection,
)
from compressor.schema.values import RecipeSection, is_path, path_keys
from compressor.schema.yaml_text import dump_yaml, read_yaml

RECIPE_FORMAT: Final = 2
"""Newest version of the recipe format that this vtcompress reads.

Format 1 has the same keys. What is planned from it is what was planned then: methods are applied in the
order of the list, and ShortV's share is one of all layers. A recipe keeps its format when it is changed.
"""

Format = Annotated[
    int, Field(ge=1, le=RECIPE_FORMAT), allowed("1 or 2, the format of recipes; 2 is today's")
]

TRUST: Final = "trust_remote_code"

WEIGHTS: Final = "weights"
"""Key of the file of weights that an entry's choice in front of the decoder reads."""

RESOLVED_HEADER = "# resolved recipe, written by vtcompress\n"


class Recipe(RecipeSection):
    """A whole recipe; read one with `load_recipe`, change one with `override`.

    Attributes:
        vtcompress: version of the recipe format.
        model: the model to compress.
        calibrate: the measurement.
        compress: the methods, one each, in any order; empty: nothing is compressed (identity).
        image: how large pictures may get.
        heal: weights of the compressed decoder that were trained, or are.
        export: what is written.
        validation: the checks; `validate` in YAML and as keyword.
    """

    vtcompress: Format
    model: ModelSection = ModelSection()
    calibrate: CalibrateSection = CalibrateSection()
    compress: Annotated[tuple[CompressEntry, ...], rule(methods_clash)] = ()
    image: ImageSection = ImageSection()
    heal: HealSection = HealSection()
    export: ExportSection = ExportSection()
    # pydantic's BaseModel has a method called validate.
    validation: ValidateSection = Field(default=ValidateSection(), alias="validate")

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods of `compress` in order, without the entries around them."""
        return tuple(entry.method for entry in self.compress)

    def override(self, values: Mapping[str, Any], *, source: str = "override") -> "Recipe":
        """Returns a new recipe with some values replaced.

        Args:
            values: new values by dotted key, such as `{"export.dtype": "float16"}`; a mapping
                changes the keys in it, None sets null. An entry of `compress` goes by its method's
                name, `compress.dyvte.exit`, or as error lines have it, `compress[0].dyvte.exit`. Of keys
                that exclude each other the one that is given takes the others away. Relative paths
                start in the working folder.
            source: what error lines start with.

        Raises:
            RecipeError: no mapping; or keys that do not exist and values that are not allowed, all of them.
        """
        check_dotted(values, source)
        data: dict[str, Any] = self.model_dump(by_alias=True)
        start = Path.cwd()
        new, problems = changed(Recipe, data, values, source, lambda part: _anchored(part, start))
        return parse_recipe(new, source, problems)

    @property
    def gated(self) -> GatedMethod | None:
        """The entry whose exits gates decide on, if there is one."""
        return gated(self.methods)

    @property
    def searched(self) -> SearchedMethod | None:
        """The entry whose plan a search finds, if there is one."""
        return next((m for m in self.methods if isinstance(m, SearchedMethod)), None)

    def gate_file(self, facts: ModelFacts, model_digest: str | None) -> GateFile:
        """Returns the file of the recipe's gates; see `GatedMethod.gate_file`.

        Raises:
            GatesError: it names none, or they do not fit.
        """
        return (self.gated or GATED[0]()).gate_file(facts, model_digest)

    def router_file(
        self, facts: ModelFacts, model_digest: str | None, layers: Sequence[int]
    ) -> RouterFile | None:
        """Returns the recipe's file of routers, see `RoutedMethod.router_file`; None: no entry has any."""
        routed = (method for method in self.methods if isinstance(method, RoutedMethod))
        found = next(routed, None)
        return None if found is None else found.router_file(facts, model_digest, layers)

    def healed_file(self, model_digest: str | None, work_digest: str | None) -> HealedFile | None:
        """Returns the recipe's file of healed weights, see `HealedFile.check`; None: it names none.

        Raises:
            PlanError: the file cannot be read, or is of another model or plan.
        """
        if self.heal.file is None:
            return None
        file = HealedFile.read(self.heal.file)
        file.check(model_digest, work_digest)
        return file

    def with_healed(self, path: Path) -> "Recipe":
        """Returns the recipe with healed weights of a file, in place of what it says of a training."""
        return self.model_copy(update={"heal": HealSection(file=path)})

    def with_gates(self, path: Path) -> "Recipe":
        """Returns the recipe with the gates of its gated entry, or its routers, read from another file.

        Raises:
            RecipeError: no entry uses any.
        """
        found = next((method for method in self.methods if method.weights_key), None)
        if found is None:
            raise RecipeError(
                ["compress: no entry reads gates or routers, so there is no use for gates"]
            )
        return self._with_file(found.name, found.weights_key, path)

    def with_weights(self, path: Path) -> "Recipe":
        """Returns the recipe with the weights of its choice in front of the decoder read from another file.

        Raises:
            RecipeError: no entry reads any.
        """
        found = next((m.name for m in self.methods if WEIGHTS in type(m).model_fields), None)
        if found is None:
            raise RecipeError(
                ["compress: no entry reads weights of a projector, so there is no use for weights"]
            )
        return self._with_file(found, WEIGHTS, path)

    def _with_file(self, method: str, key: str, path: Path) -> "Recipe":
        data = self.model_dump(by_alias=True)
        for entry in data["compress"]:
            if method in entry:
                entry[method][key] = path
        return parse_recipe(_anchored(data, Path.cwd()), key)


def no_gates() -> str:
    """Returns that a recipe has no entry whose exits gates decide on, in words."""
    return f"no entry is {' or '.join(method.name for method in GATED)}"


@dataclass(frozen=True)
class FidelityThresholds:
    """Limits of export fidelity, every value settled; units as in `FidelitySection`."""

    max_abs: float
    max_relative: float
    min_cosine: float


_FIDELITY: Final[Mapping[str, FidelityThresholds]] = {
    "float32": FidelityThresholds(max_abs=1e-3, max_relative=1e-3, min_cosine=0.99999),
    "float16": FidelityThresholds(max_abs=0.25, max_relative=0.05, min_cosine=0.999),
    "bfloat16": FidelityThresholds(max_abs=2.0, max_relative=0.4, min_cosine=0.99),
}


def fidelity_thresholds(recipe: Recipe) -> FidelityThresholds:
    """Returns the limits of export fidelity; where none is given, the default of the dtype."""
    given, default = recipe.validation.fidelity, _FIDELITY[recipe.export.dtype]
    return FidelityThresholds(
        max_abs=default.max_abs if given.max_abs is None else given.max_abs,
        max_relative=default.max_relative if given.max_relative is None else given.max_relative,
        min_cosine=default.min_cosine if given.min_cosine is None else given.min_cosine,
    )


def load_recipe(path: Path, *, stored: bool = False) -> Recipe:
    """Reads a recipe file.

    `data`, and a `model.id` that is a local folder (it starts with `.` or `/`, or such a folder
    exists beside the file), are taken from the file's folder and come back absolute.

    Args:
        path: its file.
        stored: this tool wrote it, into an artifact: that the model's own code was let run then is dropped.

    Raises:
        RecipeError: the file is no readable recipe, or has a model's own code run; one line for each problem.
    """
    if (problem := mistaken(path, "recipe")) is not None:
        raise RecipeError([problem])
    data, problems = read_yaml(path)
    model = data.get("model")
    if isinstance(model, Mapping) and model.get(TRUST) is True:
        data = {**data, "model": {key: value for key, value in model.items() if key != TRUST}}
        if not stored:
            problems = (
                *problems,
                f"{path}: model.{TRUST}: true is not taken from a file, whose writer would decide what "
                "runs here; remove it, and if you trust the model's own Python code give "
                f"--trust-remote-code to the command (in Python: override({{'model.{TRUST}': True}}))",
            )
    return parse_recipe(_anchored(data, path.parent), str(path), problems)


def parse_recipe(data: Mapping[str, Any], source: str, problems: Sequence[str] = ()) -> Recipe:
    """Validates plain values (mappings, tuples, numbers, text) as a recipe.

    Args:
        data: the recipe's sections.
        source: what error lines start with.
        problems: lines about the same source that are already known; reported with what is found.

    Raises:
        RecipeError: one line for each problem, all of them; a newer format is the only one.
    """
    version = data.get("vtcompress")
    if isinstance(version, int) and version > RECIPE_FORMAT:
        newer = f"{source}: vtcompress: written for a newer vtcompress (format {version})"
        remedy = f"this one reads up to {RECIPE_FORMAT}: upgrade vtcompress"
        raise RecipeError([f"{newer}; {remedy}"])
    lines = [*UNUSABLE, *problems]
    if "vtcompress" not in data:
        lines.append(
            f"{source}: vtcompress: missing; start the recipe with 'vtcompress: {RECIPE_FORMAT}'"
        )
        data = {"vtcompress": RECIPE_FORMAT, **data}
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError([*lines, *error_lines(error, Recipe, source)]) from None
    if lines:
        raise RecipeError(lines)
    return recipe


def dump_recipe(recipe: Recipe, *, portable: bool = False) -> str:
    """Returns YAML that `load_recipe` reads back to an equal recipe, every key written out.

    Only that the model's own code may run is not kept: each command is told anew.

    Args:
        recipe: the recipe; its paths are absolute when it was loaded.
        portable: keep of every `data` file and local model folder the last name alone, so that
            the text names no folder of this machine; read back, they are looked for beside it.
    """
    data = recipe.model_dump(mode="json", by_alias=True)
    data["model"][TRUST] = False
    if portable:
        for section, key in _paths_in(data):
            value = section[key]
            if value is not None and (key != "id" or _is_folder(value)):
                section[key] = Path(os.path.normpath(value)).name or None
    return RESOLVED_HEADER + dump_yaml(data)


def _is_folder(model_id: str) -> bool:
    return model_id.startswith((".", "/"))


def _paths_in(data: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield every place in a recipe's plain values that holds a path: the mapping and the key."""
    yield from _places(data, [("model", "id"), *path_keys(Recipe)])
    entries = data.get("compress")
    for entry in entries if isinstance(entries, list | tuple) else ():
        yield from _places(entry, path_keys(CompressEntry))


def _places(data: Any, keys: Iterable[tuple[str, ...]]) -> Iterator[tuple[dict[str, Any], str]]:
    for *place, key in keys:
        part = data
        for name in place:
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict) and key in part:
            yield part, key


def _anchored(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns `data` with the paths in it made absolute, starting from `folder`."""
    copied: dict[str, Any] = _copied(data)
    for section, key in _paths_in(copied):
        if not is_path(section[key]):
            continue
        value = section[key]
        value = at_home(value) if isinstance(value, str) else value
        path = os.path.normpath(folder.absolute() / value)
        # os.path answers False for a name the system refuses; Path.is_dir raises for a long one.
        if key != "id" or _is_folder(str(value)) or os.path.isdir(path):  # noqa: PTH112
            section[key] = path
    return copied


def _copied(value: Any) -> Any:
    """Returns a copy of nested mappings and tuples, so that values in it can be changed."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value
