"""The image's weights: `imagegen.builder.bake` as in a build, against a hub on loopback and with the real client."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file, save_file

from imagegen.builder.bake import main
from imagegen.errors import ConfigurationError
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model
from imagegen.settings import get_settings
from imagegen.weights import manifest
from imagegen.weights.sources import find_weights
from tests.support import ROOT, settings
from tests.support.hub import CHUNK, COMMIT, Hub, client_of, serve

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SHARDS = [f"transformer/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
SECRET = "hf_canary"


def repository(folder):
    """The miniature as if it were a large model: its transformer in two files, and beside it what nobody needs."""
    files = {path.relative_to(MICRO_PATH).as_posix(): path.read_bytes() for path in MICRO_PATH.rglob("*.*")}
    (folder / "whole.safetensors").write_bytes(files.pop(WEIGHTS))
    tensors = load_file(folder / "whole.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for shard, part in zip(SHARDS, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, folder / "part", metadata={"format": "pt"})
        files[shard] = (folder / "part").read_bytes()
        weight_map |= dict.fromkeys(part, Path(shard).name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    files["transformer/diffusion_pytorch_model.safetensors.index.json"] = json.dumps(index).encode()
    files["flux-2-klein-4b.safetensors"] = b"the whole model in another layout"
    files["teaser.png"] = b"a picture"
    files["LICENSE.md"] = b"what may be done with it"
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def hub(files):
    hub = Hub(files)
    with serve(hub) as hub.url, client_of(hub.url):
        yield hub


@pytest.fixture
def bake(monkeypatch, capsys):
    """Runs the command line in this process, with its real client; returns its status, output and errors."""

    def run(home, *arguments, model="klein-4b", precision="bf16", token=None):
        for name in ("HUGGING_FACE_TOKEN", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        get_settings.cache_clear()
        command = ["bake", model, "--precision", precision, "--into", str(home), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        done = SimpleNamespace(returncode=main())
        done.stdout, done.stderr = capsys.readouterr()
        assert SECRET not in done.stdout + done.stderr
        return done

    return run


def snapshot(home, model="klein-4b"):
    return find_weights(get_model(model), settings(model=model, hf_home=home), home / "no-volume")


def test_a_model_is_baked_and_the_worker_finds_and_loads_it(hub, bake, tmp_path):
    done = bake(tmp_path)
    assert done.returncode == 0, done.stderr
    folder = snapshot(tmp_path)
    assert folder == tmp_path / "hub" / "models--black-forest-labs--FLUX.2-klein-4B" / "snapshots" / COMMIT
    with FluxPipeline(FluxConfig(get_model("micro"), folder, device="cpu")) as pipeline:
        size = {"width": 64, "height": 64}
        drawn = pipeline.generate("a circle", **size, num_inference_steps=1, guidance_scale=1.0, seed=1)
    assert drawn.image.size == (64, 64)
    fetched = {name for name, _ in hub.gets}
    assert {*SHARDS, "model_index.json"} < fetched
    assert (folder / "LICENSE.md").read_bytes() == hub.files["LICENSE.md"]
    assert not {"flux-2-klein-4b.safetensors", "teaser.png", "README.md"} & fetched
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*.*")} == {0o644}  # the worker is another user
    assert not list((tmp_path / "bake").iterdir())  # nothing of the original is left


def test_the_manifest_says_what_it_is_and_finds_what_changed(hub, bake, tmp_path):
    assert bake(tmp_path, precision="fp8").returncode == 0
    folder = snapshot(tmp_path)
    content = manifest.read(folder)
    assert {k: content[k] for k in ("model", "repository", "commit", "precision")} == {
        "model": "klein-4b",
        "repository": "black-forest-labs/FLUX.2-klein-4B",
        "commit": COMMIT,
        "precision": "fp8",
    }
    assert set(content["files"]) == {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")} - {manifest.NAME}
    assert manifest.verify(folder) == []
    with pytest.raises(ConfigurationError, match="it was baked as klein-4b"):
        find_weights(get_model("klein-9b"), settings(model="klein-9b", model_path=folder))
    again = bake(tmp_path, precision="bf16")
    assert again.returncode == 6
    assert "is baked in fp8 already" in again.stderr
    shard = folder / SHARDS[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert snapshot(tmp_path) == folder  # of the same size: the start does not read it
    command = [sys.executable, "-m", "imagegen.weights.manifest", folder]
    verified = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert verified.returncode == 1
    assert f"{SHARDS[0]} has another hash" in verified.stderr
    (folder / "tokenizer" / "tokenizer.json").unlink()
    assert snapshot(tmp_path) is None


def test_layers_are_baked_one_file_at_a_time_of_one_commit(hub, bake, tmp_path):
    """As the Dockerfile does it: what a layer wrote, the next ones leave alone."""
    counts = []
    for _ in range(6):
        assert bake(tmp_path, "--files", "1").returncode == 0
        counts.append(len(list(tmp_path.glob("hub/*/snapshots/*/*/*.safetensors"))))
        hub.commit = "f" * 40  # the branch moves on while the image is built
    assert counts == [1, 2, 3, 4, 4, 4]
    assert snapshot(tmp_path).name == COMMIT
    assert len([name for name, _ in hub.gets if name.endswith("safetensors")]) == 4


@pytest.mark.parametrize(
    ("token", "model", "status", "says"),
    [
        (None, "klein-9b", 3, "accept its licence (FLUX Non-Commercial License) at https://huggingface.co/black"),
        (f"{SECRET}_unknown", "klein-9b", 3, "the hub refuses the token"),
        (
            f"{SECRET}_unauthorized",
            "klein-9b",
            4,
            "accept the licence (FLUX Non-Commercial License) at https://huggingf",
        ),
        (f"{SECRET}_friend", "klein-9b", 0, "is baked"),
        (None, "klein-4b", 3, "the hub refuses the token, or wants one"),
    ],
)
def test_a_gated_model_wants_a_token_of_who_accepted_the_licence(hub, bake, tmp_path, token, model, status, says):
    hub.tokens = {f"{SECRET}_unauthorized": 403, f"{SECRET}_friend": 200}
    done = bake(tmp_path, token=token, model=model)
    assert done.returncode == status
    assert says in (done.stderr if status else done.stdout)
    assert len(done.stderr.splitlines()) == (1 if status else 0)


def test_the_token_of_the_builds_secret_is_taken_and_without_one_the_weights_may_stay_away(hub, bake, tmp_path):
    hub.tokens = {f"{SECRET}_friend": 200}
    secret = tmp_path / "hf_token"
    arguments = ("--token-file", str(secret), "--optional")
    done = bake(tmp_path, *arguments, model="klein-9b")
    assert done.returncode == 0
    assert "NO WEIGHTS ARE BAKED: klein-9b is gated" in done.stdout
    assert not hub.gets
    secret.write_text(f"{SECRET}_friend\n")
    assert bake(tmp_path, *arguments, model="klein-9b").returncode == 0
    assert snapshot(tmp_path, "klein-9b") is not None
    assert not any(SECRET.encode() in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p != secret)


def test_a_connection_that_is_cut_goes_on_at_its_byte(hub, bake, tmp_path):
    hub.cuts[SHARDS[1]] = cut = 10 * CHUNK
    assert bake(tmp_path).returncode == 0
    assert [asked for name, asked in hub.gets if name == SHARDS[1]] == [None, f"bytes={cut}-"]
    assert manifest.verify(snapshot(tmp_path)) == []


def test_a_run_that_broke_off_goes_on_at_its_file(hub, bake, tmp_path):
    hub.sent[SHARDS[1]] = b"x" * len(hub.files[SHARDS[1]])
    done = bake(tmp_path)
    assert done.returncode == 6
    assert f"{SHARDS[1]} came with another hash" in done.stderr
    assert snapshot(tmp_path) is None
    hub.sent.clear()
    hub.gets.clear()
    assert bake(tmp_path).returncode == 0
    assert [name for name, _ in hub.gets if name.endswith("safetensors")] == [SHARDS[1]]
    assert manifest.verify(snapshot(tmp_path)) == []


def test_a_small_file_that_is_another_is_refused_too(hub, bake, tmp_path):
    hub.sent["tokenizer/tokenizer_config.json"] = b"y" * len(hub.files["tokenizer/tokenizer_config.json"])
    done = bake(tmp_path)
    assert done.returncode == 6
    assert "tokenizer/tokenizer_config.json came with another hash" in done.stderr


def test_what_may_hold_code_is_left_out_and_a_part_of_nothing_else_is_refused(hub, bake, tmp_path):
    hub.files["transformer/pytorch_model.bin"] = hub.files["vae/hostile.py"] = b"x"
    done = bake(tmp_path)
    assert done.returncode == 0
    assert "left out, since they may hold code: transformer/pytorch_model.bin, vae/hostile.py" in done.stdout
    assert not {"transformer/pytorch_model.bin", "vae/hostile.py"} & {name for name, _ in hub.gets}
    del hub.files["vae/diffusion_pytorch_model.safetensors"]
    hub.files["vae/diffusion_pytorch_model.bin"] = b"x"
    done = bake(tmp_path / "again")
    assert done.returncode == 6
    assert "vae/diffusion_pytorch_model.bin may hold code and is refused" in done.stderr


def test_a_shard_that_the_index_names_must_be_there(hub, bake, tmp_path):
    del hub.files[SHARDS[0]]
    done = bake(tmp_path)
    assert done.returncode == 6
    assert f"{SHARDS[0]} is named by the model and not in" in done.stderr


@pytest.mark.slow  # it mounts a disk, as root, and tries four times to reach nobody
def test_a_full_disk_and_a_hub_that_is_away(hub, bake, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    try:
        done = bake(disk, "--work", str(tmp_path / "work"))
        assert done.returncode == 5
        assert "the disk is too small" in done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)
    hub.hangs_up_on.add(SHARDS[0])
    done = bake(tmp_path)
    assert done.returncode == 7
    assert "the hub did not answer" in done.stderr


@pytest.mark.parametrize("model", ["micro", "none"])
def test_what_needs_no_baking(hub, bake, tmp_path, model):
    assert bake(tmp_path, model=model, precision="fp8").returncode == 0
    assert not list(tmp_path.iterdir())


def test_the_process_ends_with_the_status(hub, tmp_path):
    """One line says why, and nothing of how it was found out."""
    hub.tokens = {}
    environment = {k: v for k, v in os.environ.items() if "TOKEN" not in k and k != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": SECRET, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "imagegen.builder.bake", "klein-9b"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert done.stderr.startswith("error: klein-9b: the hub refuses the token")
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_model_is_an_error_that_lists_the_known_ones(hub, bake, tmp_path):
    done = bake(tmp_path, model="klein-9c")
    assert done.returncode == 2
    assert "klein-9b, klein-9b-kv" in done.stderr
