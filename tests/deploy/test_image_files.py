"""What the image is built from and by, as far as it can be held without building: `make image-test` does the rest."""

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError

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
    ray = pins("locks/ray.txt")
    assert "ray" in ray and not set(ray) & (set(torch) | set(worker))
    for name, version in ray.items():
        assert tested.get(name, version) == version, f"{name}: run `make lock`"
    for path in ("locks/torch.txt", "locks/worker.txt", "locks/ray.txt", "deploy/vast/requirements.txt"):
        text = (ROOT / path).read_text()
        assert len(re.findall(r"==.*\\\n    --hash=sha256:", text)) == len(pins(path)), "each with its hash"


UNNEEDED = re.search(r"^UNNEEDED := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()


def test_what_nothing_imports_is_in_no_image():
    unneeded = {name for name in UNNEEDED if name != "\\"}
    assert {"websockets", "sentry-sdk", "fastapi-cloud-cli"} <= unneeded
    for path in ("locks/torch.txt", "locks/worker.txt", "locks/ray.txt"):
        assert not unneeded & set(pins(path))


def test_the_worker_and_the_server_start_without_what_is_left_out():
    """As in the image: importing one of them fails."""
    modules = {"itsdangerous", "sentry_sdk", "websockets", "fastapi_cli", "fastapi_cloud_cli", "fastar", "rignore",
               "rich_toolkit", "agent_detector", "detect_installer"}  # fmt: skip
    assert {name.replace("_", "-") for name in modules} == {name for name in UNNEEDED if name != "\\"}
    program = f"""
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {modules!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
import handler, imagegen.outputs.upload, imagegen.inputs.fetching, imagegen.runpod.worker, runpod
import runpod.serverless.modules.rp_fastapi
from imagegen.server.main import create_app
from imagegen.settings import get_settings
import uvicorn
uvicorn.Config(create_app(get_settings()), ws="none").load()
print("started")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("started\n"), done.stderr


def test_base_images_are_named_by_digest_once_somebody_could_ask_for_it():
    """`make digests` writes them; without them nothing is pushed."""
    from scripts import pin_images

    named = [
        match.groupdict() for name in pin_images.FILES for match in pin_images.IMAGE.finditer((ROOT / name).read_text())
    ]
    assert {one["name"] for one in named} == {"docker/dockerfile", "python", "image-gen"}
    checks = [step.get("run") for step in WORKFLOW["jobs"]["image"]["steps"]]
    assert checks.index("python3 scripts/pin_images.py --check") < len(checks) - 1


def test_a_digest_is_what_the_registry_says():
    from scripts import pin_images

    digest = "sha256:" + "0a" * 32

    class Registry(BaseHTTPRequestHandler):
        def do_HEAD(self):
            known = self.path in (
                "/v2/library/python/manifests/3.11-slim-bookworm",
                "/v2/docker/dockerfile/manifests/1",
            )
            self.send_response(200 if known else 404)
            self.send_header("Docker-Content-Digest", digest)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        text = "# syntax=docker/dockerfile:1\nARG BASE_IMAGE=python:3.11-slim-bookworm\nARG IMAGE=image-gen:latest\n"
        assert len(pin_images.without_digest(text)) == 2
        pinned = pin_images.pin(text, url)
        assert pinned.count(f"@{digest}\n") == 2 and "image-gen:latest\n" in pinned
        assert pin_images.without_digest(pinned) == [] and pin_images.pin(pinned, url) == pinned
        with pytest.raises(HTTPError):
            pin_images.pin("ARG BASE_IMAGE=python:none", url)
        server.shutdown()


def test_nothing_from_the_net_is_run_at_the_start_of_a_vast_worker():
    script = (ROOT / "deploy" / "vast" / "onstart.sh").read_text()
    code = "\n".join(line for line in script.splitlines() if not line.lstrip().startswith("#"))
    assert re.findall(r"https?://\S+", code.replace('"', " ")) == [
        "https://run.vast.ai}",
        "https://console.vast.ai/api/v0/sign_cert/?instance_id=$CONTAINER_ID",
    ]
    assert "git " not in code and "pip " not in code


def test_a_vast_worker_has_a_certificate_signed_for_it(tmp_path):
    """With a `curl` that signs as Vast does, and a PyWorker that looks at what there is."""
    (tmp_path / "curl").write_text(
        f'#!/bin/sh\nfor last; do :; done\necho "$last" > {tmp_path}/asked\n'
        f"openssl x509 -req -in {tmp_path}/instance.csr -signkey {tmp_path}/instance.key -out {tmp_path}/instance.crt\n"
    )
    (tmp_path / "python").write_text(
        '#!/bin/sh\n[ "$1" = -m ] || echo "started $1 $REPORT_ADDR $WORKER_PORT $USE_SSL"\n'
    )
    for name in ("curl", "python"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CERTIFICATES": str(tmp_path),
                   "IMAGEGEN_BIN": str(tmp_path), "IMAGEGEN_HOME": str(tmp_path), "PYWORKER_BIN": str(tmp_path),
                   "MODEL_LOG": str(tmp_path / "log"), "CONTAINER_ID": "7"}  # fmt: skip
    script = ROOT / "deploy" / "vast" / "onstart.sh"
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == f"started {script.parent}/worker.py https://run.vast.ai 3000 true", (
        done.stderr
    )
    assert (tmp_path / "asked").read_text().strip().endswith("?instance_id=7")
    assert (tmp_path / "instance.key").stat().st_mode & 0o777 == 0o600
    assert "BEGIN CERTIFICATE" in (tmp_path / "instance.crt").read_text()


@pytest.mark.parametrize(
    ("report", "status", "says"),
    [
        ({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, 0, "1 of 1 packages checked, 0 known"),
        (
            {
                "dependencies": [
                    {"name": "a", "version": "1", "vulns": []},
                    {"name": "torch", "skip_reason": "not on PyPI"},
                ]
            },
            0,
            "not checked: torch (not on PyPI)",
        ),
        (
            {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}]},
            1,
            "a 1: CVE-1, fixed in 2",
        ),
        ({"dependencies": [{"name": "torch", "skip_reason": "not on PyPI"}]}, 2, "0 of 1 packages checked"),
        ("no JSON", 2, "nothing was checked"),
    ],
)
def test_the_audit_says_what_it_could_not_check(report, status, says):
    text = report if isinstance(report, str) else json.dumps(report)
    program = ROOT / "scripts" / "audit_report.py"
    done = subprocess.run([sys.executable, program], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == status and says in done.stdout


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


def test_the_pages_docker_commands_name_arguments_that_there_are():
    text = (ROOT / "docs" / "image.md").read_text()
    arguments = set(re.findall(r"--build-arg (\w+)=", text))
    assert {"MODEL", "PRECISION", "TORCH_INDEX"} <= arguments
    assert arguments <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))


@pytest.mark.parametrize("name", ["image-gen", "docs"])
def test_actions_are_pinned_by_commit_and_rights_are_given_one_by_one(name):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text()
    workflow = yaml.safe_load(text)
    actions = re.findall(r"uses: (\S+)(.*)", text)
    assert len(actions) > 3
    for action, comment in actions:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert job["permissions"]
        assert job["timeout-minutes"]


def test_newer_versions_are_tried_against_what_is_used_inside_of_them():
    makefile = (ROOT / "Makefile").read_text()
    inside = set(re.search(r"^INSIDE := (.*)", makefile, re.MULTILINE)[1].split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert inside <= {re.match(r"[\w-]+", need)[0] for need in project}
    tests = re.search(r"^INSIDE_TESTS := ((?:.*\\\n)*.*)", makefile, re.MULTILINE)[1].replace("\\", "").split()
    assert all(list(ROOT.glob(path)) for path in tests)
    job = WORKFLOW["jobs"]["newest"]
    assert "schedule" in job["if"] and job["steps"][-1]["run"] == "make newest"
    for need in ("diffusers", "torchao"):  # an upgrade is somebody's decision
        assert any(re.fullmatch(rf"{need}>=[\d.]+,<[\d.]+", one) for one in project)


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
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (status, output)


def test_compose_keeps_the_weights_and_shows_the_server_to_this_machine_alone():
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["image-gen"]
    assert service["ports"] == ["127.0.0.1:7000:7000"]
    assert service["volumes"] == ["weights:/opt/huggingface"]
    assert "ENV HF_HOME=/opt/huggingface" in DOCKERFILE
    # Docker mounts it noexec by default; Triton and inductor load what they compile from HOME.
    assert service["read_only"] and service["tmpfs"] == ["/tmp:exec"]
    assert "HOME=/tmp " in DOCKERFILE
    assert "--read-only --tmpfs /tmp:exec " in (ROOT / "docs" / "image.md").read_text()


def test_compose_gives_all_settings_of_the_env_file_but_those_that_are_the_containers_own():
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["image-gen"]
    assert service["env_file"] == [{"path": ".env", "required": False}]
    image = dict(
        re.findall(r"(\w+)=(\S+)", DOCKERFILE[DOCKERFILE.index("ENV HF_HOME") : DOCKERFILE.index("COPY --from=code")])
    )
    given = service["environment"]
    assert set(given) <= set(variable_names())
    shell = {name for name, value in given.items() if value is None or value.startswith("${")}
    assert shell == {"HUGGING_FACE_TOKEN", "IMAGEGEN_MODEL", "IMAGEGEN_API_KEY"}
    # A copy of .env.example names folders and a port of this machine.
    own = {name: value for name, value in given.items() if name not in shell}
    assert {"HF_HOME", "IMAGEGEN_OUTPUT_DIR", "PORT"} <= set(own)
    assert {own[name] == image[name] for name in ("HF_HOME", "IMAGEGEN_OUTPUT_DIR")} == {True}
    assert f":{own['PORT']}" in service["ports"][0]
