"""No file that is read can run code: no pickle, no eval, and a model's own code only by flag."""

import ast
import contextlib
import hashlib
import json
import shutil
import sys

import pytest

import vtcompress
from compressor.disk.model_digest import alike, difference, same_model
from compressor.errors import VtcompressError
from compressor.families import load
from compressor.families.folder import digest
from compressor.recipe import dump_recipe, load_recipe
from tests.test_import_rules import ROOT, SOURCES, imported, parsed, relative
from vtcompress.cli.options import read_recipe

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


SEEN = []
sys.addaudithook(lambda event, arguments: [see(event, arguments) for see in SEEN])


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
        "from transformers import CLIPImageProcessor, LlavaConfig, LlavaProcessor\n"
        "class OwnConfig(LlavaConfig):\n    pass\n"
        "class OwnProcessor(LlavaProcessor):\n    pass\n"
        "class OwnImages(CLIPImageProcessor):\n    pass\n"
    )
    for name, entries in (
        ("config.json", {"AutoConfig": "own.OwnConfig", "AutoProcessor": "own.OwnProcessor"}),
        ("processor_config.json", {"AutoProcessor": "own.OwnProcessor"}),
        ("tokenizer_config.json", {"AutoProcessor": "own.OwnProcessor"}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": entries}))
    images = folder / "processor_config.json"
    content = json.loads(images.read_text())
    content["image_processor"]["auto_map"] = {"AutoImageProcessor": "own.OwnImages"}
    images.write_text(json.dumps(content))
    return folder, mark


@pytest.fixture
def ran(model_with_code, monkeypatch, tmp_path):
    """Return the model folder and a function that says whether its code ran since it was last called."""
    folder, mark = model_with_code
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))

    def since():
        there = mark.exists()
        mark.unlink(missing_ok=True)
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]  # a module that was imported does not run again
        return there

    return folder, since


def test_a_models_own_code_runs_only_by_flag(ran):
    folder, since = ran
    with contextlib.suppress(VtcompressError):
        load(str(folder))
    assert not since(), "the model's code ran without the flag"
    load(str(folder), trust_remote_code=True)
    assert since(), "the flag has no effect, so the test above proves nothing"


def only(folder, *kept):
    """Leave of a model's code what some parts of its files name."""
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        content = json.loads(path.read_text())
        for section in (content, content.get("image_processor", {})):
            found = section.pop("auto_map", {})
            if named := {key: value for key, value in found.items() if key in kept}:
                section["auto_map"] = named
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("part", ["AutoConfig", "AutoProcessor", "AutoImageProcessor"])
def test_no_part_of_a_model_runs_code_without_the_flag(ran, part):
    folder, since = ran
    only(folder, part)
    with contextlib.suppress(VtcompressError):
        load(str(folder))
    assert not since(), "the model's code ran without the flag"
    load(str(folder), trust_remote_code=True)
    assert since(), "the flag has no effect, so the test above proves nothing"


def lines_of_recipe(path, model):
    path.write_text(f"vtcompress: 1\nmodel: {{id: {model}, trust_remote_code: true}}\n")
    return path


def test_no_recipe_lets_a_models_own_code_run(ran, tmp_path):
    folder, since = ran
    only(folder, "AutoConfig", "AutoProcessor")  # a runtime cannot run an image processor's
    path = lines_of_recipe(tmp_path / "own.yaml", folder)
    with pytest.raises(VtcompressError) as caught:
        vtcompress.load_recipe(path)
    assert str(caught.value).startswith(f"{path}: model.trust_remote_code: true is not taken from")
    assert "--trust-remote-code" in str(caught.value)
    path.write_text(path.read_text().replace("true", "false"))
    recipe = vtcompress.load_recipe(path)
    vtcompress.plan(recipe)
    assert not since()
    vtcompress.plan(recipe.override({"model.trust_remote_code": True}))
    assert since()


def test_no_artifact_lets_a_models_own_code_run(ran, tiny_artifact, tmp_path):
    """Older ones hold the key as their recipe had it; the model that they were made from is not this one."""
    folder, since = ran
    only(folder, "AutoConfig", "AutoProcessor")
    artifact = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, artifact)
    recipe = artifact / "recipe.yaml"
    text = recipe.read_text()
    assert "trust_remote_code: false" in text
    allow(artifact, recipe, text.replace("trust_remote_code: false", "trust_remote_code: true"))
    assert vtcompress.validate(artifact).loss is not None
    with pytest.raises(VtcompressError, match="the plan was made for"):
        vtcompress.validate(artifact, model=str(folder))
    assert not since()
    with pytest.raises(VtcompressError, match="the plan was made for"):
        vtcompress.validate(artifact, model=str(folder), trust_remote_code=True)
    assert since()


def allow(artifact, path, text):
    """Change a file of an artifact and the manifest's sum of it, as whoever made the artifact can."""
    manifest = artifact / "manifest.json"
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    path.write_text(text)
    found = manifest.read_text()
    assert old in found
    found = found.replace(old, hashlib.sha256(path.read_bytes()).hexdigest())
    manifest.write_text(found.replace(f": {size}", f": {path.stat().st_size}"))


def test_that_code_may_run_is_written_into_no_file(tmp_path):
    recipe = load_recipe(lines_of_recipe(tmp_path / "a.yaml", "a/b"), stored=True)
    assert not recipe.model.trust_remote_code
    trusting = recipe.override({"model.trust_remote_code": True})
    assert trusting.model.trust_remote_code
    (tmp_path / "b.yaml").write_text(dump_recipe(trusting))
    assert not load_recipe(tmp_path / "b.yaml").model.trust_remote_code


@pytest.mark.parametrize("trusted", [False, True])
def test_a_hub_models_own_code_is_fetched_only_by_flag(ran, trusted, monkeypatch):
    folder, since = ran
    asked = set()

    def snapshot(_, **options):
        asked.update(options["allow_patterns"])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    load("owner/name", trust_remote_code=trusted)
    assert ("*.py" in asked) is trusted
    assert since() is trusted


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "other.safetensors"])
def test_a_configuration_names_no_weight_file(tiny_model, tmp_path, name):
    """transformers exempts one name from its own rule and reads the pickle."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    mark = tmp_path / "mark"
    (folder / name).write_bytes(b"cos\nmkdir\n(S'" + str(mark).encode() + b"'\ntR.")
    config = json.loads((folder / "config.json").read_text())
    for place in (config, config["text_config"]):
        changed = folder / "config.json"
        place["transformers_weights"] = name
        changed.write_text(json.dumps(config))
        with pytest.raises(
            VtcompressError, match=f"transformers_weights: '{name}' would have other"
        ):
            load(str(folder))
        del place["transformers_weights"]
    assert not mark.exists()


READ = ("chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json")  # fmt: skip


def test_the_digest_covers_every_file_that_is_read_and_no_other(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(READ)
    opened = set()

    def see(event, arguments):
        if (
            event == "open"
            and isinstance(arguments[0], str)
            and arguments[0].startswith(str(folder))
        ):
            opened.add(arguments[0].removeprefix(f"{folder}/"))

    before = digest(folder)
    SEEN.append(see)
    try:
        load(str(folder), known_digest=before)
    finally:
        SEEN.remove(see)
    assert opened >= set(READ) - {"model.safetensors", "tokenizer.json"}  # these are opened by Rust
    assert opened <= set(READ), "a file that the digest does not cover"
    for name in READ:
        path = folder / name
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + b" ")
        assert digest(folder) != before, name
        path.write_bytes(kept)
    for name in ("training_args.bin", "other.safetensors", "notes.txt", "own.py"):
        (folder / name).write_bytes(b"x")
    assert digest(folder) == before
    assert digest(folder, code=True) != before


def test_a_digest_of_before_is_that_of_the_same_model(tiny_model):
    """It covered configuration and weights; profiles, plans and gates of before hold it."""
    now = digest(tiny_model)
    total = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        total.update(name.encode() + hashlib.sha256((tiny_model / name).read_bytes()).digest())
    assert same_model(total.hexdigest(), now)
    assert same_model(now, now)
    assert len(set(alike([total.hexdigest(), now]))) == 1
    assert len(set(alike([now, f"{total.hexdigest()}.{'0' * 64}"]))) == 2
    assert not same_model("0" * 64, now)
    other = f"{total.hexdigest()}.{'0' * 64}"
    assert not same_model(other, now)
    assert "same weights and config.json, but other files of processor" in difference(other, now)


def test_the_flag_is_off_unless_it_is_given():
    options = dict.fromkeys(("model", "revision", "data", "samples", "seed"))
    options |= {"recipe": "identity", "settings": (), "trust_remote_code": False}
    assert not read_recipe(options).model.trust_remote_code
    assert read_recipe(options | {"trust_remote_code": True}).model.trust_remote_code
    shipped = sorted((ROOT / "recipes").glob("*.yaml"))
    assert shipped
    assert not any(load_recipe(path).model.trust_remote_code for path in shipped)
