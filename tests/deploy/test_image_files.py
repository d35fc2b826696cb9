"""What the image is built from and by, as far as it can be held without building: `make image-test` does the rest."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from imagegen.models import MODELS
from imagegen.settings import variable_names
from tests.support import ROOT

WORKFLOW_TEXT = (ROOT / ".github" / "workflows" / "image-gen.yml").read_text()
WORKFLOW = yaml.safe_load(WORKFLOW_TEXT)
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pins(path):
    """{package: version} of a file of pins, by the names that PyPI takes for the same."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)", (ROOT / path).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_locks_hold_what_the_worker_needs_in_the_versions_that_it_is_tested_with():
    torch, worker, tested = pins("locks/torch.txt"), pins("locks/worker.txt"), pins("constraints.txt")
    assert not set(torch) & set(worker)
    cuda = {name for name in torch if name.startswith(("nvidia-", "cuda-", "triton"))}  # as torch pins them
    for name, version in {**torch, **worker}.items():
        assert name in cuda or tested.get(name) == version, f"{name}: run `make lock`"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["c2pa"]]
    names = {re.match(r"[\w-]+", need)[0].replace("_", "-").lower() for need in needed}
    assert names <= set(torch) | set(worker), "run `make lock`"
    for path in ("locks/torch.txt", "locks/worker.txt"):
        text = (ROOT / path).read_text()
        assert len(re.findall(r"==.*\\\n    --hash=sha256:", text)) == len(pins(path)), "each with its hash"


def test_the_image_takes_all_that_bake_imports():
    """Files that are named one by one, so that no other change bakes the weights again."""
    copied: set[str] = set()
    for sources in re.findall(r"^COPY ((?:imagegen/\S+ (?:\\\n *)?)+)/baker", DOCKERFILE, re.MULTILINE):
        for source in sources.replace("\\", " ").split():
            files = [ROOT / source] if (ROOT / source).is_file() else (ROOT / source).glob("*.py")
            copied |= {str(file.relative_to(ROOT)) for file in files}
    program = "import sys, imagegen.builder.bake, imagegen.builder.quantize; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    imported = {name.replace(".", "/") for name in done.stdout.split() if name.split(".")[0] == "imagegen"}
    files = {f"{name}/__init__.py" if (ROOT / name).is_dir() else f"{name}.py" for name in imported}
    assert files | {"imagegen/builder/layer.sh"} == copied


def test_the_readmes_docker_commands_name_arguments_that_there_are():
    text = (ROOT / "README.md").read_text()
    arguments = set(re.findall(r"--build-arg (\w+)=", text))
    assert {"MODEL", "PRECISION", "TORCH_INDEX"} <= arguments
    assert arguments <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))


def test_actions_are_pinned_by_commit_and_rights_are_given_one_by_one():
    actions = re.findall(r"uses: (\S+)(.*)", WORKFLOW_TEXT)
    assert len(actions) > 8
    for action, comment in actions:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
    assert WORKFLOW["permissions"] == {}
    for job in WORKFLOW["jobs"].values():
        assert job["permissions"]
        assert job["timeout-minutes"]


def test_weights_that_may_not_be_handed_on_go_to_a_package_of_their_own():
    entries = WORKFLOW["jobs"]["image"]["strategy"]["matrix"]["include"]
    assert [entry["model"] for entry in entries] == ["micro", "klein-4b", "klein-9b"]
    packages = {True: set(), False: set()}
    for entry in entries:
        closed = "Non-Commercial" in MODELS[entry["model"]].licence
        assert (entry["licence"] == "non-commercial") == closed
        packages[closed].add(entry["package"])
    assert not packages[True] & packages[False]
    pushes = [step for step in WORKFLOW["jobs"]["image"]["steps"] if step.get("uses", "").startswith("docker/")]
    assert len(pushes) == 4
    assert all(step["if"] == "steps.allowed.outputs.push == 'true'" for step in pushes)


@pytest.mark.parametrize(
    ("licence", "token", "visibility", "status", "output"),
    [
        ("MIT", "", "public", 0, "push=true\n"),
        ("non-commercial", "", "private", 0, "push=false\n"),
        ("non-commercial", "hf_x", "private", 0, "push=true\n"),
        ("non-commercial", "hf_x", "public", 1, ""),
        ("non-commercial", "hf_x", "internal", 1, ""),
        ("non-commercial", "hf_x", None, 1, ""),  # a new package could become a public one
    ],
)
def test_who_may_push(tmp_path, licence, token, visibility, status, output):
    gh = tmp_path / "gh"
    asked = 'test "$2" = /users/someone/packages/container/klein'
    gh.write_text(f"#!/bin/sh\n{asked} && " + (f"echo {visibility}\n" if visibility else "exit 1\n"))
    gh.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "LICENCE": licence, "OWNER": "someone"}
    environment |= {"HUGGING_FACE_TOKEN": token, "PACKAGE": "klein", "OWNER_TYPE": "User"}
    script = ["bash", ROOT / ".github" / "may-push.sh"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (status, output)


def test_compose_keeps_the_weights_and_shows_the_server_to_this_machine_alone():
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["image-gen"]
    assert service["ports"] == ["127.0.0.1:7000:7000"]
    assert service["volumes"] == ["weights:/opt/huggingface"]
    assert "ENV HF_HOME=/opt/huggingface" in DOCKERFILE
    # Docker mounts it noexec by default; Triton and inductor load what they compile from HOME.
    assert service["read_only"] and service["tmpfs"] == ["/tmp:exec"]
    assert "HOME=/tmp " in DOCKERFILE
    assert "--read-only --tmpfs /tmp:exec " in (ROOT / "README.md").read_text()


def test_compose_gives_all_settings_of_the_env_file_but_those_that_are_the_containers_own():
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["image-gen"]
    assert service["env_file"] == [{"path": ".env", "required": False}]
    image = dict(
        re.findall(r"(\w+)=(\S+)", DOCKERFILE[DOCKERFILE.index("ENV HF_HOME") : DOCKERFILE.index("COPY --from=code")])
    )
    given = service["environment"]
    assert set(given) <= set(variable_names())
    shell = {name for name, value in given.items() if value.startswith("${")}
    assert shell == {"HUGGING_FACE_TOKEN", "IMAGEGEN_MODEL", "IMAGEGEN_API_KEY"}
    # A copy of .env.example names folders and a port of this machine.
    own = {name: value for name, value in given.items() if name not in shell}
    assert {"HF_HOME", "IMAGEGEN_OUTPUT_DIR", "PORT"} <= set(own)
    assert {own[name] == image[name] for name in ("HF_HOME", "IMAGEGEN_OUTPUT_DIR")} == {True}
    assert f":{own['PORT']}" in service["ports"][0]
