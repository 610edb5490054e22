"""No file that is read can run code: no pickle, no eval, and a model's own code only by flag."""

import ast
import contextlib
import json
import shutil

import pytest
import transformers

from compressor.errors import VtcompressError
from compressor.families import load
from compressor.recipe import load_recipe
from tests.test_import_rules import ROOT, SOURCES, imported, parsed, relative
from vtcompress.cli import read_recipe

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "code",
}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "pickle.load", "pickle.loads", "yaml.load",
                   "yaml.full_load", "yaml.unsafe_load", "yaml.load_all",
                   "torch.hub.load", "os.system", "os.popen"}  # fmt: skip


def breaches(tree: ast.Module) -> list[str]:
    """What in a module could run code that stands in a file."""
    found = [name for name in imported(tree) if name.split(".")[0] in FORBIDDEN_MODULES]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {k.arg: k.value for k in node.keywords}
        if name in FORBIDDEN_CALLS:
            found.append(name)
        if name.endswith(("np.load", "numpy.load", "np.save", "numpy.save")):
            allowed = options.get("allow_pickle")
            if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                found.append(f"{name} without allow_pickle=False")
        loose = options.get("allow_pickle") or options.get("weights_only") or options.get("shell")
        if isinstance(loose, ast.Constant) and loose.value is (options.get("weights_only") is None):
            found.append(f"{name} with {ast.unparse(node)[:60]}")
    return found


def test_no_module_reads_pickles_or_runs_text():
    found = [f"{relative(p)}: {b}" for p in SOURCES for b in breaches(parsed(p))]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n  import dill as d",
        "eval('1')",
        "exec(x)",
        "torch.load(p)",
        "yaml.load(t, Loader=yaml.Loader)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "open_memmap(p, allow_pickle=True)",
        "run(x, shell=True)",
    ],
)
def test_such_a_module_would_be_seen(code):
    assert breaches(ast.parse(code))


@pytest.mark.parametrize(
    "code", ["model.eval()", "np.load(p, allow_pickle=False)", "json.load(f)", "re.compile('x')"]
)
def test_what_is_harmless_is_not_taken_for_a_breach(code):
    assert breaches(ast.parse(code)) == []


@pytest.fixture
def model_with_code(tiny_model, tmp_path):
    """A model folder whose configurations name Python code of its own, which leaves a mark when it runs."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    mark = tmp_path / "mark"
    (folder / "own.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import LlavaConfig as OwnConfig, LlavaProcessor as OwnProcessor\n"
    )
    for name, entries in (
        ("config.json", {"AutoConfig": "own.OwnConfig", "AutoProcessor": "own.OwnProcessor"}),
        ("processor_config.json", {"AutoProcessor": "own.OwnProcessor"}),
        ("tokenizer_config.json", {"AutoProcessor": "own.OwnProcessor"}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": entries}))
    return folder, mark


def test_a_models_own_code_runs_only_by_flag(model_with_code, monkeypatch, tmp_path):
    folder, mark = model_with_code
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    for kind in (transformers.LlavaConfig, transformers.LlavaProcessor):
        # Loading a model's own code marks these classes for the whole process; undone at the end.
        monkeypatch.setattr(kind, "_auto_class", None)
    with contextlib.suppress(VtcompressError):
        load(str(folder))
    assert not mark.exists(), "the model's code ran without the flag"
    load(str(folder), trust_remote_code=True)
    assert mark.exists(), "the flag has no effect, so the test above proves nothing"


def test_the_flag_is_off_unless_it_is_given():
    options = dict.fromkeys(("model", "revision", "data", "samples", "seed"))
    options |= {"recipe": "identity", "settings": (), "trust_remote_code": False}
    assert not read_recipe(options).model.trust_remote_code
    assert read_recipe(options | {"trust_remote_code": True}).model.trust_remote_code
    shipped = sorted((ROOT / "recipes").glob("*.yaml"))
    assert shipped
    assert not any(load_recipe(path).model.trust_remote_code for path in shipped)
