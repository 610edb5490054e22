"""Recipes: what is read, what is refused and in which words, what comes back after writing."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from compressor.errors import RecipeError
from compressor.methods import METHOD_NAMES
from compressor.methods.shortv import ShortV
from compressor.methods.visual_exit import VisualExit
from compressor.methods.yopo.keys import HeadKeys
from compressor.methods.yopo.method import Yopo
from compressor.recipe import (
    RECIPE_FORMAT,
    FidelityThresholds,
    Recipe,
    dump_recipe,
    fidelity_thresholds,
    load_recipe,
    parse_recipe,
)
from compressor.schema.problems import error_lines
from compressor.schema.yaml_text import MAX_BYTES

RECIPES = Path(__file__).parent.parent / "recipes"
KNOWN = ", ".join(METHOD_NAMES)
FROZEN = ", the share of layers; 'layers' names them, 'speedup' asks for a gain"
TOP_KEYS = "vtcompress, model, calibrate, compress, image, heal, export, validate"
ON_TMP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(folder: Path, content: str | bytes) -> Recipe:
    return load_recipe(written(folder, content))


def refusal(folder: Path, content: str | bytes) -> list[str]:
    """Returns the lines of the refusal with the file's name cut off, having checked it is there."""
    path = written(folder, content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    lines = str(caught.value).split("\n")
    assert lines == list(caught.value.problems)
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


# What is read.


def test_the_shortest_recipe_is_identity_with_every_default(tmp_path):
    recipe = read(tmp_path, "vtcompress: 2\n")
    assert recipe.vtcompress == RECIPE_FORMAT == 2
    assert (recipe.model.id, recipe.model.revision, recipe.model.trust_remote_code) == (
        None,
        None,
        False,
    )
    assert (recipe.calibrate.data, recipe.calibrate.samples, recipe.calibrate.seed) == (None, 64, 0)
    assert recipe.compress == ()
    assert recipe.methods == ()
    assert recipe.export.model_dump() == {
        "targets": ("onnx",),
        "dtype": "float32",
        "weights": "float",
        "block": None,
        "kv_cache": "growing",
        "profiles": {
            "max_batch": 1,
            "max_images": 1,
            "max_text": None,
            "max_context": None,
            "compute_capabilities": None,
        },
        "image_size": None,
        "logits": "last",
        "selftest": True,
    }
    check = recipe.validation
    assert (check.data, check.samples, check.seed, check.max_new_tokens) == (None, None, 0, 32)
    assert set(check.fidelity.model_dump().values()) == {None}
    assert set(check.loss.model_dump().values()) == {None}


@pytest.mark.parametrize(
    ("body", "method"),
    [
        ("frozen: 0.6", ShortV(frozen=0.6)),
        ("frozen: 1", ShortV(frozen=1.0)),
        ("frozen: 0", ShortV(frozen=0.0)),
        ("layers: [3, 0, 1]", ShortV(layers=(3, 0, 1))),
        ("speedup: 1.8", ShortV(speedup=1.8)),
    ],
)
def test_shortv_takes_a_share_a_list_or_a_speedup(tmp_path, body, method):
    recipe = read(tmp_path, f"vtcompress: 1\ncompress:\n  - shortv: {{{body}}}\n")
    assert recipe.methods == (method,)
    assert recipe.methods[0].name == "shortv"


def test_every_shipped_recipe_loads():
    paths = sorted(RECIPES.glob("*.yaml"))
    assert len(paths) == 29
    for path in paths:
        assert load_recipe(path).vtcompress == RECIPE_FORMAT


def test_numbers_in_scientific_notation_are_numbers_and_words_stay_words(tmp_path):
    recipe = read(
        tmp_path,
        "vtcompress: 1\nmodel: {id: yes, revision: 2024-01-02}\n"
        "calibrate: {seed: 010}\nvalidate: {fidelity: {max_abs: 1e-3, max_relative: .5}}\n",
    )
    assert recipe.validation.fidelity.max_abs == 0.001
    assert recipe.validation.fidelity.max_relative == 0.5
    assert (recipe.model.id, recipe.model.revision) == ("yes", "2024-01-02")
    assert recipe.calibrate.seed == 10


def test_relative_data_is_taken_from_the_folder_of_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    written(
        tmp_path / "sub",
        "vtcompress: 1\ncalibrate: {data: ../a.jsonl}\nvalidate: {data: /b/c.jsonl}\n",
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Path("sub/x.yaml"))
    assert recipe.calibrate.data == tmp_path / "a.jsonl"
    assert recipe.validation.data == Path("/b/c.jsonl")


def test_a_model_id_is_a_folder_only_if_it_looks_like_one_or_exists(tmp_path):
    (tmp_path / "org" / "here").mkdir(parents=True)

    def model_id(text: str) -> str | None:
        return read(tmp_path, f"vtcompress: 1\nmodel: {{id: {text}}}\n").model.id

    assert model_id("org/here") == str(tmp_path / "org" / "here")
    assert model_id("org/elsewhere") == "org/elsewhere"
    assert model_id("./elsewhere") == str(tmp_path / "elsewhere")
    assert model_id("/abs/model") == "/abs/model"


def test_a_recipe_never_changes(tmp_path):
    recipe = read(tmp_path, "vtcompress: 1\n")
    with pytest.raises(ValidationError):
        recipe.export.dtype = "float16"
    assert hash(recipe) == hash(read(tmp_path, "vtcompress: 1\n"))


def test_reading_recipes_imports_no_torch():
    code = (
        "import sys, compressor.recipe; print({'torch', 'transformers', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=RECIPES.parent
    )
    assert done.stdout.strip() == "set()"


# What is refused: the values.


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "model: 3",
            "model: 3 is not allowed; a mapping with keys of: id, revision, trust_remote_code, dtype",
        ),
        ("model: {id: ''}", "model.id: '' is not allowed; a hub id or a folder, as text"),
        ("model: {id: 7}", "model.id: 7 is not allowed; a hub id or a folder, as text"),
        (
            "model: {revision: 12e3}",
            (
                "model.revision: 12000.0 is not allowed; a branch, tag or commit, "
                "in quotes if it looks "
                "like a number"
            ),
        ),
        (
            "model: {trust_remote_code: 'true'}",
            "model.trust_remote_code: 'true' is not allowed; true or false",
        ),
        (
            "model: {dtype: float64}",
            "model.dtype: 'float64' is not allowed; float32, bfloat16 or float16",
        ),
        (
            "calibrate: {data: ''}",
            "calibrate.data: '' is not allowed; the path of a .jsonl file, as text",
        ),
        (
            "calibrate: {data: [a]}",
            "calibrate.data: ['a'] is not allowed; the path of a .jsonl file, as text",
        ),
        (
            'validate: {data: "a\\ud800"}',
            "validate.data: 'a\\ud800' is not allowed; the path of a .jsonl file, as text",
        ),
        (
            "calibrate: {samples: 0}",
            "calibrate.samples: 0 is not allowed; a whole number, 1 or more",
        ),
        (
            "calibrate: {samples: 1.0}",
            "calibrate.samples: 1.0 is not allowed; a whole number, 1 or more",
        ),
        (
            "calibrate: {samples: true}",
            "calibrate.samples: true is not allowed; a whole number, 1 or more",
        ),
        (
            "calibrate: {seed: -1}",
            "calibrate.seed: -1 is not allowed; a whole number from 0 to 4294967295",
        ),
        (
            "calibrate: {seed: 4294967296}",
            "calibrate.seed: 4294967296 is not allowed; a whole number from 0 to 4294967295",
        ),
        ("compress: null", "compress: null is not allowed; a list"),
        (
            "compress: {shortv: {frozen: 1}}",
            "compress: {shortv: {frozen: 1}} is not allowed; a list: write '- shortv:' with a dash in front",
        ),
        (
            "compress: [shortv]",
            f"compress[0]: 'shortv' is not allowed; a mapping with keys of: {KNOWN}",
        ),
        (
            "compress: [{}]",
            f"compress[0]: nothing is given; give exactly one of: {KNOWN}",
        ),
        (
            "compress: [{shortv: null}]",
            "compress[0].shortv: null is not allowed; give it a value or leave the key out",
        ),
        (
            "compress: [{shortv: {}}]",
            "compress[0].shortv: nothing is given; give exactly one of: frozen, layers, speedup",
        ),
        (
            "compress: [{shortv: {frozen: 0.5, speedup: 2}}]",
            (
                "compress[0].shortv: frozen and speedup are given together; "
                "give exactly one of: frozen, layers, speedup"
            ),
        ),
        (
            "compress: [{shortv: {frozen: 0.1}}, {shortv: {frozen: 0.2}}]",
            "compress: more than one entry for: shortv; a method may appear once",
        ),
        (
            "compress: [{shrtv: {frozen: 0.1}}]",
            f"compress[0].shrtv: unknown method; did you mean 'shortv'? (known: {KNOWN})",
        ),
        (
            "compress: [{shortv: {frozn: 0.1}}]",
            (
                "compress[0].shortv.frozn: unknown key; did you mean 'frozen'? "
                "(known: frozen, layers, speedup)"
            ),
        ),
        (
            "compress: [{shortv: {frozen: 1.5}}]",
            "compress[0].shortv.frozen: 1.5 is not allowed; a number from 0 to 1" + FROZEN,
        ),
        (
            'compress: [{shortv: {frozen: "0.6"}}]',
            "compress[0].shortv.frozen: '0.6' is not allowed; a number from 0 to 1" + FROZEN,
        ),
        (
            "compress: [{shortv: {frozen: true}}]",
            "compress[0].shortv.frozen: true is not allowed; a number from 0 to 1" + FROZEN,
        ),
        (
            "compress: [{shortv: {frozen: .nan}}]",
            "compress[0].shortv.frozen: nan is not allowed; a number from 0 to 1" + FROZEN,
        ),
        (
            f"compress: [{{shortv: {{frozen: {'9' * 400}}}}}]",
            f"compress[0].shortv.frozen: {'9' * 57}... is not allowed; a number from 0 to 1"
            + FROZEN,
        ),
        (
            "compress: [{shortv: {speedup: 1}}]",
            "compress[0].shortv.speedup: 1 is not allowed; a number above 1",
        ),
        (
            "compress: [{shortv: {speedup: .inf}}]",
            "compress[0].shortv.speedup: inf is not allowed; a number above 1",
        ),
        (
            "compress: [{shortv: {layers: 3}}]",
            "compress[0].shortv.layers: 3 is not allowed; a list",
        ),
        (
            "compress: [{shortv: {layers: []}}]",
            "compress[0].shortv.layers: the list is empty; give at least one",
        ),
        (
            "compress: [{shortv: {layers: [0, -1]}}]",
            "compress[0].shortv.layers[1]: -1 is not allowed; a whole number, 0 or more",
        ),
        (
            "compress: [{shortv: {layers: [4, 2, 4, 2, 1]}}]",
            "compress[0].shortv.layers: [4, 2] listed more than once; list each once",
        ),
        (
            "export: {targets: [onx]}",
            "export.targets[0]: 'onx' is not allowed; 'onnx', 'tensorrt-rtx' or 'tensorrt'",
        ),
        ("export: {targets: []}", "export.targets: the list is empty; give at least one"),
        (
            "export: {dtype: fp16}",
            "export.dtype: 'fp16' is not allowed; 'float32', 'float16' or 'bfloat16'",
        ),
        (
            "export: {weights: int2}",
            "export.weights: 'int2' is not allowed; 'float', 'int8' or 'int4'",
        ),
        (
            "export: {weights: int4, block: 48}",
            "export.block: 48 is not allowed; 32, 64 or 128",
        ),
        (
            "export: {block: 32}",
            "export: block goes with weights: int8 or int4; float weights have no blocks",
        ),
        ("export: {logits: 1}", "export.logits: 1 is not allowed; 'last' or 'all'"),
        (
            "export: {image_size: 0}",
            "export.image_size: 0 is not allowed; a whole number, 1 or more",
        ),
        (
            "validate: {max_new_tokens: null}",
            "validate.max_new_tokens: null is not allowed; a whole number, 1 or more",
        ),
        (
            "validate: {fidelity: {max_abs: -0.1}}",
            "validate.fidelity.max_abs: -0.1 is not allowed; a number, 0 or more",
        ),
        (
            "validate: {fidelity: {min_cosine: 1.1}}",
            "validate.fidelity.min_cosine: 1.1 is not allowed; a number from -1 to 1",
        ),
        (
            "validate: {loss: {min_agreement: 2}}",
            "validate.loss.min_agreement: 2 is not allowed; a number from 0 to 1",
        ),
        (
            "exprot: {dtype: float16}",
            f"exprot: unknown key; did you mean 'export'? (known: {TOP_KEYS})",
        ),
        ("zzz: 1", f"zzz: unknown key (known: {TOP_KEYS})"),
        ("7: 1", f"7: unknown key (known: {TOP_KEYS})"),
        (
            "validation: {}",
            f"validation: unknown key; did you mean 'validate'? (known: {TOP_KEYS})",
        ),
        ('"a\\nb": 1', f"'a\\nb': unknown key (known: {TOP_KEYS})"),
        ("<<: {model: {}}", f"'<<': unknown key (known: {TOP_KEYS})"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_its_place_and_what_is(tmp_path, body, line):
    assert refusal(tmp_path, f"vtcompress: 1\n{body}\n") == [line]


@pytest.mark.parametrize("value", ["true", "1.0", "'1'", "0", "-1", "null"])
def test_a_format_version_is_one_of_two_whole_numbers(tmp_path, value):
    shown = value
    assert refusal(tmp_path, f"vtcompress: {value}\n") == [
        f"vtcompress: {shown} is not allowed; 1 or 2, the format of recipes; 2 is today's"
    ]


def test_a_recipe_keeps_its_format_when_it_is_changed_and_written(tmp_path):
    for number in (1, 2):
        recipe = read(tmp_path, f"vtcompress: {number}\ncompress: [{{shortv: {{frozen: 0.5}}}}]\n")
        changed = recipe.override({"compress.shortv.frozen": 0.6})
        assert read(tmp_path, dump_recipe(changed)).vtcompress == changed.vtcompress == number


def test_a_missing_format_version_is_asked_for(tmp_path):
    assert refusal(tmp_path, "model: {}\n") == [
        "vtcompress: missing; start the recipe with 'vtcompress: 2'"
    ]


def test_a_newer_format_asks_for_an_upgrade_and_judges_nothing_else(tmp_path):
    assert refusal(tmp_path, "vtcompress: 3\nfuture: 1\nmodel: 3\n") == [
        (
            "vtcompress: written for a newer vtcompress (format 3); "
            "this one reads up to 2: upgrade vtcompress"
        )
    ]


def test_all_problems_are_reported_at_once(tmp_path):
    lines = refusal(
        tmp_path,
        "calibrate: {samples: 0, seed: -1}\n"
        "compress:\n"
        "  - shortv: {frozen: 1.5, layers: [1, 1, true]}\n"
        "  - shortv: {speedup: 1}\n"
        "exprot: {}\n"
        "calibrate: {}\n",
    )
    assert lines == [
        "line 6: the key 'calibrate' is given twice (first on line 1); keep one",
        "vtcompress: missing; start the recipe with 'vtcompress: 2'",
        "calibrate.samples: 0 is not allowed; a whole number, 1 or more",
        "calibrate.seed: -1 is not allowed; a whole number from 0 to 4294967295",
        "compress[0].shortv.frozen: 1.5 is not allowed; a number from 0 to 1" + FROZEN,
        "compress[0].shortv.layers[2]: true is not allowed; a whole number, 0 or more",
        # The rules on a whole value come after the errors of its parts.
        "compress[0].shortv.layers: [1] listed more than once; list each once",
        (
            "compress[0].shortv: frozen and layers are given together; "
            "give exactly one of: frozen, layers, speedup"
        ),
        "compress[1].shortv.speedup: 1 is not allowed; a number above 1",
        "compress: more than one entry for: shortv; a method may appear once",
        f"exprot: unknown key; did you mean 'export'? (known: {TOP_KEYS})",
    ]


def test_a_long_value_is_shown_shortened_to_sixty_characters(tmp_path):
    (line,) = refusal(tmp_path, f"vtcompress: 1\nexport: {{dtype: {'x' * 500}}}\n")
    assert (
        line == f"export.dtype: '{'x' * 56}... is not allowed; 'float32', 'float16' or 'bfloat16'"
    )


# What is refused: the file.


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "the file is empty; start it with 'vtcompress: 2'"),
        (b"# only a comment\n", "the file is empty; start it with 'vtcompress: 2'"),
        (b"# list\n- shortv\n", "line 2: a recipe is a mapping, such as 'vtcompress: 2'"),
        (b"vtcompress\n", "line 1: a recipe is a mapping, such as 'vtcompress: 2'"),
        (b"vtcompress: 1\n# caf\xe9\n", "line 2: not UTF-8 text; save the file as UTF-8"),
        (b"vtcompress: 1\nmodel: \x01\n", "line 2: not a character of YAML text"),
        (
            b"vtcompress: 1\nmodel: [a\n",
            (
                "line 3: not valid YAML: while parsing a flow sequence, expected ',' or ']', "
                "but got '<stream end>'"
            ),
        ),
        (b"vtcompress: 1\n  a: 2\n", "line 2: not valid YAML: mapping values are not allowed here"),
        (
            b"vtcompress: 1\n---\nvtcompress: 1\n",
            (
                "line 2: not valid YAML: expected a single document in the stream, "
                "but found another document"
            ),
        ),
        (b'a: "\\U00110000"\n', "not valid YAML: a number or character code too large"),
        (b'a: "\\UFFFFFFFF"\n', "not valid YAML: a number or character code too large"),
        (
            b"vtcompress: 1\nvtcompress: 1\n",
            "line 2: the key 'vtcompress' is given twice (first on line 1); keep one",
        ),
        (
            b"vtcompress: 1\nexport:\n  dtype: float16\n  dtype: float32\n",
            "line 4: the key 'dtype' is given twice (first on line 3); keep one",
        ),
        (
            b"vtcompress: 1\n? [a]\n: 1\n",
            "line 2: a key must be a single word, not a list or a mapping",
        ),
        (b"vtcompress: &x 1\n", "line 1: an anchor (&x) is not accepted; write the value out"),
        (
            b"vtcompress: 1\nmodel: *x\n",
            "line 2: an alias (*x) is not accepted; write the value out",
        ),
        (
            b"vtcompress: !!int 1\n",
            "line 1: a tag ('tag:yaml.org,2002:int') is not accepted; write the value alone",
        ),
        (
            b"!!python/object/apply:os.getcwd []\n",
            (
                "line 1: a tag ('tag:yaml.org,2002:python/object/apply:os.getcwd') "
                "is not accepted; "
                "write the value alone"
            ),
        ),
        (b"a: " + b"[" * 5000, "line 1: nested more than 32 deep"),
        (b"#" * (MAX_BYTES + 1), "larger than 1048576 bytes; a recipe is a short text"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line(tmp_path, content, line):
    assert refusal(tmp_path, content) == [line]


def test_several_anchors_and_aliases_are_all_named_and_never_expanded(tmp_path):
    bomb = "a: &a [x, x]\n" + "".join(
        f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    lines = refusal(tmp_path, bomb)
    assert len(lines) == 9 + 16
    assert lines[0] == "line 1: an anchor (&a) is not accepted; write the value out"


def test_a_name_longer_than_the_system_takes_is_a_hub_id_and_no_crash(tmp_path):
    name = "x" * 5000
    assert read(tmp_path, f"vtcompress: 1\nmodel: {{id: {name}}}\n").model.id == name


def test_a_file_that_is_missing_or_a_folder_is_said_so(tmp_path):
    with pytest.raises(RecipeError) as missing:
        load_recipe(tmp_path / "no.yaml")
    assert str(missing.value) == f"{tmp_path}/no.yaml: no such file"
    with pytest.raises(RecipeError) as folder:
        load_recipe(tmp_path)
    assert str(folder.value).startswith(f"{tmp_path}: cannot be read: Is a directory; ")


def test_a_key_that_has_to_be_given_and_an_unforeseen_refusal_have_plain_lines_too():
    class Method(BaseModel):
        layer: int
        window: int = 1

    with pytest.raises(ValidationError) as caught:
        Method.model_validate({"window": "wide"})
    assert error_lines(caught.value, Method, "x.yaml") == (
        "x.yaml: layer: missing; it has to be given",
        "x.yaml: window: 'wide' is not allowed",
    )


# Overrides.


def test_overrides_replace_single_values_and_leave_the_recipe_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    recipe = read(tmp_path, "vtcompress: 1\nmodel: {id: org/name}\ncalibrate: {samples: 8}\n")
    changed = recipe.override(
        {
            "model.id": "model",
            "calibrate.data": Path("a.jsonl"),
            "export.dtype": "float16",
            "validate": {"loss": {"max_kl": 1}},
            "compress": [{"shortv": {"layers": [2, 1]}}],
        }
    )
    assert changed.model.id == str(tmp_path / "model")
    assert changed.calibrate.data == tmp_path / "a.jsonl"
    assert changed.calibrate.samples == 8
    assert changed.export.dtype == "float16"
    assert changed.validation.loss.max_kl == 1.0
    assert changed.methods == (ShortV(layers=(2, 1)),)
    assert recipe == read(
        tmp_path, "vtcompress: 1\nmodel: {id: org/name}\ncalibrate: {samples: 8}\n"
    )
    assert changed.override({}) == changed


def test_an_override_leaves_a_hub_id_alone_where_a_folder_has_its_name(tmp_path, monkeypatch):
    recipe = read(tmp_path, "vtcompress: 1\nmodel: {id: org/name}\n")
    (tmp_path / "elsewhere" / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert recipe.override({"export.dtype": "float16"}).model.id == "org/name"


def test_an_override_reaches_into_the_entry_of_a_method_by_its_name(tmp_path):
    recipe = read(
        tmp_path, "vtcompress: 1\ncompress: [{shortv: {frozen: 0.5}}, {dyvte: {gate_width: 8}}]\n"
    )
    changed = recipe.override({"compress.dyvte.train.steps": 3, "compress.shortv.frozen": 0.25})
    assert changed.methods[0] == ShortV(frozen=0.25)
    assert (changed.gated.train.steps, changed.gated.gate_width) == (3, 8)
    assert recipe.gated.train.steps != 3
    with pytest.raises(RecipeError, match=r"compress\[1\].dyvte.train.step: unknown key"):
        recipe.override({"compress.dyvte.train.step": 3})


CHOICES = (
    "vtcompress: 2\ncompress: [{shortv: {frozen: 0.5}}, {visual_exit: {max_kl: 0.1, first_layer: 3}}, "
    "{yopo: {heads: {threshold: 0.1, votes: 0.3}}}]\n"
)


@pytest.mark.parametrize(
    ("values", "place", "method"),
    [
        ({"compress.shortv.speedup": 1.5}, 0, ShortV(speedup=1.5)),
        ({"compress.shortv": {"layers": [1]}}, 0, ShortV(layers=(1,))),
        ({"compress": {"shortv": {"layers": [1]}}}, 0, ShortV(layers=(1,))),
        ({"compress[0].shortv.frozen": 0.25}, 0, ShortV(frozen=0.25)),
        ({"compress[0]": {"shortv": {"speedup": 2}}}, 0, ShortV(speedup=2.0)),
        (
            {"compress.shortv.frozen": None, "compress[0].shortv.speedup": 1.5},
            0,
            ShortV(speedup=1.5),
        ),
        ({"compress[1].visual_exit.layer": 4}, 1, VisualExit(layer=4)),
        ({"compress.visual_exit.max_kl": 0.2}, 1, VisualExit(max_kl=0.2, first_layer=3)),
        ({"compress.visual_exit.first_layer": None}, 1, VisualExit(max_kl=0.1)),
        ({"compress.yopo.heads.keep": 0.5}, 2, Yopo(heads=HeadKeys(keep=0.5))),
        ({"compress.yopo.heads.votes": 0.5}, 2, Yopo(heads=HeadKeys(threshold=0.1, votes=0.5))),
        ({"compress.yopo": {"heads": None, "window": 3}}, 2, Yopo(window=3)),
    ],
)
def test_of_keys_that_exclude_each_other_the_one_that_is_set_takes_the_others_away(
    tmp_path, values, place, method
):
    recipe = read(tmp_path, CHOICES)
    changed = recipe.override(values)
    assert changed.methods[place] == method
    rest = [m for i, m in enumerate(recipe.methods) if i != place]
    assert [m for i, m in enumerate(changed.methods) if i != place] == rest


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        (
            {"compress.shortv.frozen": 0.1, "compress[0].shortv.layers": [1]},
            [
                "compress[0].shortv: frozen and layers are given together; give exactly one of: frozen, "
                "layers, speedup"
            ],
        ),
        (
            {"compress.shortv.frozen": None},
            ["compress[0].shortv: nothing is given; give exactly one of: frozen, layers, speedup"],
        ),
        (
            {
                "compress[3].shortv.frozen": 0.1,
                "compress[1].shortv.frozen": 0.1,
                "export.dtype": "x",
            },
            [
                "compress[3].shortv.frozen: the recipe has 3 entries under compress (shortv, visual_exit, "
                "yopo)",
                "compress[1].shortv.frozen: compress[1] has no shortv (under compress: shortv, visual_exit, "
                "yopo); add it to a copy of the recipe",
                "export.dtype: 'x' is not allowed; 'float32', 'float16' or 'bfloat16'",
            ],
        ),
        (
            {"compress.vtw.layer": 3, "compress.dyvte.exit": "baked", "compress[0]": None},
            [
                f"compress.vtw.layer: unknown method; did you mean 'visual_exit'? (known: {KNOWN})",
                "compress.dyvte.exit: the recipe has no dyvte (under compress: shortv, visual_exit, yopo); "
                "add it to a copy of the recipe",
                "compress[0]: name the key too, such as compress[0].shortv. ...",
            ],
        ),
    ],
)
def test_overrides_that_fit_no_entry_or_say_two_things_are_named_all_at_once(
    tmp_path, values, lines
):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, CHOICES).override(values)
    assert caught.value.problems == tuple(f"override: {line}" for line in lines)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "compress: [{vtw: {layer: 3}}]",
            f"compress[0].vtw: unknown method; did you mean 'visual_exit'? (known: {KNOWN})",
        ),
        (
            "compress: [{shortv: {ratio: 0.5}}]",
            "compress[0].shortv.ratio: unknown key; did you mean 'frozen'? (known: frozen, layers, speedup)",
        ),
        (
            "model:\n\tid: x",
            "line 3: not valid YAML: while scanning for the next token, found character '\\t' that cannot "
            "start any token; indent with spaces, not with tabs",
        ),
    ],
)
def test_other_names_and_tabs_get_a_hint(tmp_path, body, line):
    assert line in refusal(tmp_path, f"vtcompress: 2\n{body}\n")


def test_errors_of_overrides_name_the_dotted_key_all_at_once(tmp_path):
    recipe = read(tmp_path, "vtcompress: 1\n")
    with pytest.raises(RecipeError) as caught:
        recipe.override(
            {
                "calibrate.samples": 0,
                "calibrate.data.x": 3,
                "validate.data": Path("a\0b"),
                "export.dtyp": "float16",
                "foo.bar": 1,
                "compress": [{"shortv": {"frozen": 2}}],
            }
        )
    assert caught.value.problems == (
        "override: calibrate.data: {x: 3} is not allowed; the path of a .jsonl file, as text",
        "override: calibrate.samples: 0 is not allowed; a whole number, 1 or more",
        "override: compress[0].shortv.frozen: 2 is not allowed; a number from 0 to 1" + FROZEN,
        (
            "override: export.dtyp: unknown key; did you mean 'dtype'? "
            "(known: targets, dtype, weights, block, kv_cache, profiles, image_size, logits, selftest)"
        ),
        "override: validate.data: 'a\\x00b' is not allowed; the path of a .jsonl file, as text",
        f"override: foo: unknown key (known: {TOP_KEYS})",
    )


# Thresholds.


def test_fidelity_limits_follow_the_dtype_unless_the_recipe_gives_them(tmp_path):
    plain = read(tmp_path, "vtcompress: 1\n")
    assert fidelity_thresholds(plain) == FidelityThresholds(1e-3, 1e-3, 0.99999)
    half = plain.override({"export.dtype": "float16"})
    assert fidelity_thresholds(half) == FidelityThresholds(0.25, 0.05, 0.999)
    given_ones = half.override({"validate.fidelity": {"max_abs": 0, "min_cosine": 0.5}})
    assert fidelity_thresholds(given_ones) == FidelityThresholds(0.0, 0.05, 0.5)


# Writing and reading back.


def test_the_resolved_recipe_starts_with_its_header_and_spells_every_key(tmp_path):
    text = dump_recipe(read(tmp_path, "vtcompress: 1\ncompress: [{shortv: {frozen: 0.5}}]\n"))
    assert text.startswith("# resolved recipe, written by vtcompress\nvtcompress: 1\nmodel:\n")
    data = yaml.safe_load(text)
    assert list(data) == TOP_KEYS.split(", ")
    assert data["compress"] == [{"shortv": {"frozen": 0.5}}]
    assert data["calibrate"] == {"data": None, "samples": 64, "seed": 0}
    assert "min_exact_match_kept" in data["validate"]["loss"]


def test_a_portable_recipe_holds_no_absolute_path(tmp_path):
    recipe = read(
        tmp_path,
        "vtcompress: 1\nmodel: {id: ./models/tiny}\ncalibrate: {data: sub/a.jsonl}\n"
        "validate: {data: /data/b.jsonl}\n",
    )
    text = dump_recipe(recipe, portable=True)
    data = yaml.safe_load(text)
    assert data["model"]["id"] == "tiny"
    assert data["calibrate"]["data"] == "a.jsonl"
    assert data["validate"]["data"] == "b.jsonl"
    assert str(tmp_path) not in text
    again = read(tmp_path, text)
    assert again.calibrate.data == tmp_path / "a.jsonl"
    hub = recipe.override({"model.id": "org/name"})
    assert yaml.safe_load(dump_recipe(hub, portable=True))["model"]["id"] == "org/name"


def test_a_portable_recipe_with_the_root_folder_names_nothing(tmp_path):
    recipe = read(tmp_path, "vtcompress: 1\nmodel: {id: /}\n")
    assert yaml.safe_load(dump_recipe(recipe, portable=True))["model"]["id"] is None


def _printable(min_size: int = 1) -> st.SearchStrategy[str]:
    characters = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))
    return st.text(characters, min_size=min_size, max_size=12)


_NAME = _printable().filter(lambda s: "/" not in s and s not in {".", ".."} and s.strip())
_PATH = st.lists(_NAME, min_size=1, max_size=3).map(lambda parts: Path("/", *parts))
_WORD = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,8}", fullmatch=True)
_SHARE = st.floats(0, 1)
_SIZE = st.floats(0, allow_infinity=False, allow_nan=False)


def _maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | strategy


_SHORTV = st.one_of(
    st.fixed_dictionaries({"frozen": _SHARE}),
    st.fixed_dictionaries(
        {"layers": st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True).map(tuple)}
    ),
    st.fixed_dictionaries({"speedup": st.floats(1, 1e300, exclude_min=True)}),
)
_RECIPE = st.fixed_dictionaries(
    {"vtcompress": st.just(1)},
    optional={
        "model": st.fixed_dictionaries(
            {},
            optional={
                "id": _maybe(st.builds("hub-{}/{}".format, _WORD, _WORD) | _PATH.map(str)),
                "revision": _maybe(
                    _printable() | st.sampled_from(["1e3", "yes", "null", "0x1", "-", "1:2"])
                ),
                "trust_remote_code": st.just(False),
                "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
            },
        ),
        "calibrate": st.fixed_dictionaries(
            {},
            optional={
                "data": _maybe(_PATH),
                "samples": st.integers(1),
                "seed": st.integers(0, 2**32 - 1),
            },
        ),
        "compress": st.tuples() | st.tuples(st.fixed_dictionaries({"shortv": _SHORTV})),
        "export": st.fixed_dictionaries(
            {},
            optional={
                "targets": st.just(("onnx",)),
                "dtype": st.sampled_from(["float32", "float16"]),
                "image_size": _maybe(st.integers(1, 4096)),
                "logits": st.sampled_from(["last", "all"]),
            },
        ),
        "validate": st.fixed_dictionaries(
            {},
            optional={
                "data": _maybe(_PATH),
                "samples": _maybe(st.integers(1)),
                "seed": st.integers(0, 2**32 - 1),
                "max_new_tokens": st.integers(1),
                "fidelity": st.fixed_dictionaries(
                    {}, optional={"max_abs": _maybe(_SIZE), "min_cosine": _maybe(st.floats(-1, 1))}
                ),
                "loss": st.fixed_dictionaries(
                    {}, optional={"max_kl": _maybe(_SIZE), "min_agreement": _maybe(_SHARE)}
                ),
            },
        ),
    },
)


@pytest.mark.parametrize(
    "text",
    [
        "1e3",
        "1.5",
        "010",
        "1_000",
        "0x1f",
        "1:30",
        "yes",
        "null",
        "~",
        "true",
        ".inf",
        "2024-01-02",
    ],
)
def test_text_that_looks_like_something_else_stays_text_when_written(tmp_path, text):
    recipe = parse_recipe({"vtcompress": 1, "model": {"revision": text}}, "test")
    assert read(tmp_path, dump_recipe(recipe)) == recipe
    assert yaml.safe_load(dump_recipe(recipe))["model"]["revision"] == text


@ON_TMP
@given(_RECIPE)
def test_any_recipe_that_is_written_reads_back_equal(tmp_path, data):
    recipe = parse_recipe(data, "test")
    text = dump_recipe(recipe)
    assert read(tmp_path, text) == recipe
    assert dump_recipe(read(tmp_path, text)) == text


@ON_TMP
@given(_RECIPE)
def test_portable_text_never_holds_a_slash_in_a_path_and_still_reads(tmp_path, data):
    recipe = parse_recipe(data, "test")
    again = read(tmp_path, dump_recipe(recipe, portable=True))
    for path, original in [
        (again.calibrate.data, recipe.calibrate.data),
        (again.validation.data, recipe.validation.data),
    ]:
        assert (path is None) == (original is None)
        assert path is None or (path.parent == tmp_path and path.name == original.name)
    assert again.methods == recipe.methods


# Robustness.

_SEEDS = [path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))]
_PIECES = [
    b"\n",
    b": ",
    b"- ",
    b"[",
    b"]",
    b"{",
    b"}",
    b"&a",
    b"*a",
    b"!!",
    b"'",
    b'"',
    b"\\U",
    b"|",
    b">",
]
_PIECES += [
    b"%YAML 9",
    b"---",
    b"...",
    b"? ",
    b"#",
    b"\t",
    b"\xff",
    b"\xef\xbb\xbf",
    b"null",
    b"-1",
    b".nan",
]


def _never_anything_but_recipe_error(folder: Path, content: bytes) -> None:
    path = written(folder, content)
    try:
        load_recipe(path)
        problems: tuple[str, ...] = ()
    except RecipeError as error:
        problems = error.problems
    assert all(line.startswith(f"{path}: ") for line in problems)
    assert all(line.isprintable() and "pydantic" not in line for line in problems)
    assert all(not line.endswith("is not allowed") for line in problems)


@ON_TMP
@given(
    st.sampled_from(_SEEDS),
    st.lists(
        st.tuples(
            st.floats(0, 1), st.integers(0, 8), st.sampled_from(_PIECES) | st.binary(max_size=3)
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_a_damaged_recipe_gives_a_recipe_error_or_a_recipe(tmp_path, content, damage):
    for place, removed, inserted in damage:
        at = math.floor(place * len(content))
        content = content[:at] + inserted + content[at + removed :]
    _never_anything_but_recipe_error(tmp_path, content)


@ON_TMP
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda s: s.encode("utf-8", "replace")))
def test_any_bytes_give_a_recipe_error(tmp_path, content):
    _never_anything_but_recipe_error(tmp_path, content)


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["shortv", "frozen", "layers", "id", "data"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@ON_TMP
@given(st.dictionaries(st.sampled_from(TOP_KEYS.split(", ")[1:]), _ANY, max_size=5))
def test_any_values_under_the_right_keys_give_a_recipe_error_or_a_recipe(tmp_path, data):
    text = yaml.safe_dump({"vtcompress": 1, **data}, allow_unicode=True)
    _never_anything_but_recipe_error(tmp_path, text.encode("utf-8", "replace"))


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "compress: {shortv: {frozen: 0.3}}",
            "compress: {shortv: {frozen: 0.3}} is not allowed; a list: write '- shortv:' with a dash in "
            "front",
        ),
        (
            "compress: [{shortv: {layers: '1,2'}}]",
            "compress[0].shortv.layers: '1,2' is not allowed; a list: write [1,2]",
        ),
    ],
)
def test_what_is_nearly_a_list_is_shown_as_one(tmp_path, body, line):
    assert refusal(tmp_path, f"vtcompress: 2\n{body}\n") == [line]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("shortv.frozen", "shortv.frozen: unknown key; did you mean 'compress.shortv.frozen'?"),
        ("compress.0.shortv.frozen", "compress.0.shortv.frozen: write compress.shortv.frozen"),
    ],
)
def test_a_key_of_an_entry_written_otherwise_is_told_how_to_write_it(tmp_path, key, said):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, CHOICES).override({key: 0.3})
    assert caught.value.problems == (f"override: {said}",)
