"""What the worker is made of: weights that hold no code, and packages whose licences and list are known."""

import contextlib
import json
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from imagegen.errors import ConfigurationError
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model
from imagegen.weights.sources import download_weights, find_weights
from tests.support import ROOT, settings

#: What hostile code does here: it leaves a file.
CODE = "from pathlib import Path\nPath({!r}).touch()\n"


class Hostile:
    """Unpickled, it runs code."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


def _told_to_install():
    """Each package that a page, a docstring or a message tells people to install from PyPI, and where."""
    words = re.compile(r"pip install ((?:-q |-U |--upgrade )*)([^`\n)|;&]+)")
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "*.py",
        "imagegen/**/*.py",
        "scripts/**/*.py",
        "builder/**/*.py",
        "deploy/**/*",
    ):
        for page in filter(Path.is_file, ROOT.glob(pattern)):
            if page.suffix == ".pyc":
                continue
            for match in words.finditer(page.read_text(encoding="utf-8")):
                for name in re.findall(r"(?:^|\s)[\"']?([A-Za-z][A-Za-z0-9._-]*)(?=[\[<>=~!\"'\s,.]|$)", match[2]):
                    yield name.lower().rstrip("."), f"{page.relative_to(ROOT)}: {match[0]}"


def test_nobody_is_told_to_install_what_the_project_does_not_use():
    # "imagegen" on PyPI is somebody else's package: its setup.py would run with the user's rights.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    used = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    known = {re.match(r"[A-Za-z0-9._-]+", one)[0].lower() for one in used} | {"vastai"}  # deploy/vast has its own list
    told = list(_told_to_install())
    assert told  # the pages do say so of some
    assert [place for name, place in told if name not in known] == []
    assert project["name"] != "imagegen"


@pytest.fixture
def folder(tmp_path):
    """A copy of micro to tamper with, and the file that nobody may leave."""
    shutil.copytree(MICRO_PATH, tmp_path / "model")
    return tmp_path / "model", tmp_path / "it-ran"


def load(path):
    pipeline = FluxPipeline(FluxConfig(get_model("micro"), path, device="cpu"))
    try:
        pipeline.load()
    finally:
        pipeline.unload()


def test_the_copy_as_it_is_loads(folder):
    load(folder[0])


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickled_checkpoint_is_not_opened(folder, part, kind):
    path, ran = folder
    (weights,) = (path / part).glob("*.safetensors")
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    if kind == "pickle":
        (path / part / name).write_bytes(pickle.dumps(Hostile(CODE.format(str(ran)))))
    else:  # the very weights: it is the format that is refused
        torch.save(load_file(weights), path / part / name)
    weights.unlink()
    with pytest.raises(ConfigurationError, match="weights cannot be loaded"):
        load(path)
    assert not ran.exists()


def test_a_pickle_called_safetensors_is_not_opened(folder):
    path, ran = folder
    for weights in path.glob("*/*.safetensors"):
        weights.write_bytes(pickle.dumps(Hostile(CODE.format(str(ran)))))
    with pytest.raises(ConfigurationError, match="weights cannot be loaded"):
        load(path)
    assert not ran.exists()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "scheduler", "tokenizer"])
def test_a_part_that_brings_its_own_code_is_refused(folder, part):
    """model_index.json may name a module beside the weights."""
    path, ran = folder
    code = CODE.format(str(ran)) + "class Part:\n    pass\n"
    for place in (path, path / part):
        (place / "hostile.py").write_text(code)
    index = json.loads((path / "model_index.json").read_text())
    index[part] = ["hostile", "Part"]
    (path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match="weights cannot be loaded"):
        load(path)
    assert not ran.exists()


def test_code_of_the_pipeline_and_of_configurations_is_not_run(folder):
    """What `custom_pipeline` and `trust_remote_code` would run: the folder loads as if it were not there."""
    path, ran = folder
    for place in (path, path / "text_encoder", path / "tokenizer"):
        (place / "hostile.py").write_text(CODE.format(str(ran)) + "class Part:\n    pass\n")
    (path / "pipeline.py").write_text(CODE.format(str(ran)) + "class Part:\n    pass\n")
    for name, key in (
        ("text_encoder/config.json", "AutoModelForCausalLM"),
        ("tokenizer/tokenizer_config.json", "AutoTokenizer"),
    ):
        configuration = json.loads((path / name).read_text())
        configuration["auto_map"] = {key: "hostile.Part"}
        (path / name).write_text(json.dumps(configuration))
    index = json.loads((path / "model_index.json").read_text())
    index["_class_name"] = ["hostile", "Part"]
    (path / "model_index.json").write_text(json.dumps(index))
    with contextlib.suppress(ConfigurationError):
        load(path)
    assert not ran.exists()


def test_a_chat_template_cannot_leave_its_sandbox(folder):
    path, ran = folder
    template = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch "
        + str(ran)
        + "') }}"
    )
    (path / "tokenizer" / "chat_template.jinja").write_text(template)
    with (
        FluxPipeline(FluxConfig(get_model("micro"), path, device="cpu")) as pipeline,
        pytest.raises(Exception, match="unsafe"),
    ):
        pipeline.encode_prompt("a red circle")
    assert not ran.exists()


def test_a_cache_of_pickles_counts_as_no_weights(tmp_path):
    spec = get_model("klein-4b")
    snapshot = tmp_path / "hub" / f"models--{spec.repository.replace('/', '--')}" / "snapshots" / "abc"
    shutil.copytree(MICRO_PATH, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    asked = settings(model="klein-4b", hf_home=tmp_path)
    assert find_weights(spec, asked, tmp_path / "no-volume") == snapshot
    for weights in snapshot.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    assert find_weights(spec, asked, tmp_path / "no-volume") is None


def test_nothing_but_data_is_downloaded(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def snapshot_download(*_, dry_run=False, **options):
        asked.update(options)
        return [] if dry_run else tmp_path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    download_weights(get_model("klein-4b"), settings(hf_home=tmp_path))
    endings = {pattern.rpartition(".")[2] for pattern in asked["allow_patterns"]}
    assert endings == {"json", "safetensors", "txt", "jinja"}


def make(*arguments):
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An empty environment, and the folder of its packages."""
    path = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    return str(path / "bin" / "python"), next(path.glob("lib/*/site-packages"))


@pytest.mark.slow  # its tools are installed first
@pytest.mark.parametrize(
    ("licence", "allowed"),
    [("MIT AND BSD-3-Clause", True), ("GPL-3.0-only", False), ("MIT AND AGPL-3.0-only", False), ("LGPL-2.1", False),
     ("Some-New-Licence", False)],
)  # fmt: skip
def test_a_licence_that_is_not_allowed_is_a_failure(environment, licence, allowed):
    python, packages = environment
    information = packages / "thing-1.0.dist-info"
    information.mkdir(exist_ok=True)
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: thing\nVersion: 1.0\nLicense-Expression: {licence}\n"
    )
    done = make("licences", f"AUDITED={python}")
    assert (done.returncode == 0) == allowed, done.stdout + done.stderr
    assert "thing" in done.stdout + done.stderr


@pytest.mark.slow  # its tools are installed first
def test_what_is_installed_is_allowed_and_listed():
    done = make("licences", "sbom")
    assert done.returncode == 0, done.stderr
    listed = json.loads((ROOT / "build" / "sbom.json").read_text())
    assert listed["bomFormat"] == "CycloneDX"
    versions = {component["name"].lower(): component.get("version") for component in listed["components"]}
    assert {"torch", "diffusers", "runpod", "pillow"} <= set(versions)
    assert versions["diffusers"] == diffusers.__version__
