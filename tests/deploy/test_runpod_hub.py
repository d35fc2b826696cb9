"""What RunPod's Hub reads: of the form that it wants, about settings and models that there are, and jobs that run."""

import asyncio
import re
from importlib import metadata

import pytest

from imagegen.memory.plan import Gpu
from imagegen.model.loading import choose_model, plan
from imagegen.models import MODELS
from imagegen.runpod import handler
from imagegen.settings import Settings, variable_names
from tests.support import ROOT
from tests.support.hub_schema import BooleanInput, Hub, HubTests, NumberInput

FOLDER = ROOT / ".runpod"
HUB = Hub.model_validate_json((FOLDER / "hub.json").read_text())
TESTS = HubTests.model_validate_json((FOLDER / "tests.json").read_text())
INPUTS = {variable.key: variable.input for variable in HUB.config.env}
#: GB and compute capability of the least GPU in each pool that the form names.
GPUS = {"ADA_24": (24, (8, 9)), "ADA_32_PRO": (32, (12, 0)), "ADA_48_PRO": (48, (8, 9)), "ADA_80_PRO": (80, (9, 0))}
OFFERED = [option.value for option in INPUTS["IMAGEGEN_PRECISION"].options]


def read(monkeypatch, values):
    """The settings of a worker that the Hub has started with these values."""
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for key, value in values.items():
        shown = INPUTS.get(key)
        if isinstance(shown, BooleanInput):
            value = shown.true_value if value else shown.false_value
        monkeypatch.setenv(key, f"{value:g}" if isinstance(value, float) else value)
    return Settings(_env_file=None)


def test_the_form_asks_for_settings_and_shows_their_defaults(monkeypatch):
    assert {*INPUTS} <= {*variable_names()}
    defaults = {key: shown.default for key, shown in INPUTS.items()}
    assert defaults.pop("IMAGEGEN_MODEL") == "klein-9b"
    assert read(monkeypatch, defaults) == read(monkeypatch, {})


@pytest.mark.parametrize("key", INPUTS)
def test_what_the_form_offers_is_allowed(monkeypatch, key):
    shown = INPUTS[key]
    offered = [shown.min, shown.max] if isinstance(shown, NumberInput) else []
    offered += [True, False] if isinstance(shown, BooleanInput) else []
    offered += [option.value for option in getattr(shown, "options", None) or []]
    for value in offered:
        settings = read(monkeypatch, {key: value})
        if key == "IMAGEGEN_MODEL":
            assert settings.model in MODELS
    if isinstance(shown, NumberInput):
        for value in (shown.min - 1, shown.max + 1):
            with pytest.raises(ValueError, match=key):
                read(monkeypatch, {key: float(value)})


@pytest.mark.parametrize("preset", HUB.config.presets, ids=lambda preset: preset.name)
def test_a_preset_is_a_worker_that_starts(monkeypatch, preset):
    assert {*preset.defaults} <= {*INPUTS}
    for key, value in preset.defaults.items():
        assert value in [option.value for option in INPUTS[key].options]
    monkeypatch.setattr("imagegen.model.loading.default_device", lambda: "cuda")
    assert choose_model(read(monkeypatch, preset.defaults)) is MODELS[preset.defaults["IMAGEGEN_MODEL"]]


@pytest.mark.parametrize("pool", HUB.config.gpu_ids.split(","))
@pytest.mark.parametrize("model", [option.value for option in INPUTS["IMAGEGEN_MODEL"].options])
@pytest.mark.parametrize("precision", OFFERED)
def test_what_is_offered_has_a_plan_on_each_gpu_without_what_the_image_leaves_out(monkeypatch, pool, model, precision):
    """The Hub builds the Dockerfile, and that has no bitsandbytes."""
    assert not re.search("^bitsandbytes==", (FOLDER.parent / "locks" / "worker.txt").read_text(), re.MULTILINE)
    settings = read(monkeypatch, {"IMAGEGEN_MODEL": model, "IMAGEGEN_PRECISION": precision})
    gpu = Gpu.of(*GPUS[pool])
    chosen = plan(MODELS[model], settings, None, gpu, nf4=False)
    assert chosen.fits(gpu)
    assert precision in ("auto", chosen.transformer)


@pytest.mark.parametrize("preset", HUB.config.presets, ids=lambda preset: preset.name)
def test_a_preset_has_room_on_the_gpus_that_it_names(monkeypatch, preset):
    gigabytes = int(re.search(r"GPUs of (\d+) GB", preset.name)[1])
    named = [Gpu.of(*gpu) for gpu in GPUS.values() if gpu[0] >= gigabytes]
    assert "A100" not in preset.name  # the form's GPUs are those of all presets, and an A100 has no fp8
    for gpu in named:
        settings = read(monkeypatch, preset.defaults)
        chosen = plan(MODELS[settings.model], settings, None, gpu, nf4=False)
        assert chosen.offload in ("none", "embeddings")


def test_the_hosts_are_those_that_the_pinned_torch_runs_on():
    """torch's wheels for CUDA 13 need a driver of CUDA 13: minor versions are compatible, major ones are not."""
    wheels = {"2.13.0": "13"}
    major = wheels[re.match(r"[0-9.]+", metadata.version("torch"))[0]]
    for versions in (HUB.config.allowed_cuda_versions, TESTS.config.allowed_cuda_versions):
        assert {version.split(".")[0] for version in versions} == {major}


def test_the_disk_holds_the_largest_download_and_the_tenth_that_the_sdk_wants_free():
    assert HUB.config.container_disk_in_gb * 0.9 > 34.7  # klein-9b in bf16, whole


def test_the_hub_finds_what_it_builds_from():
    assert all((FOLDER.parent / name).is_file() for name in ("handler.py", "README.md", "Dockerfile"))


def test_the_hubs_own_tests_need_no_secret(monkeypatch):
    model = choose_model(read(monkeypatch, {"IMAGEGEN_DEVICE": "cuda", **{v.key: v.value for v in TESTS.config.env}}))
    assert not model.gated
    assert not {"HUGGING_FACE_TOKEN", "HF_TOKEN"} & {variable.key for variable in TESTS.config.env}


@pytest.mark.parametrize("test", TESTS.tests, ids=lambda test: test.name)
def test_the_hubs_own_tests_pass_here(service, monkeypatch, test):
    monkeypatch.setattr(handler, "service", lambda: service)
    output = asyncio.run(handler.handler({"id": "hub", "input": test.input}))
    assert "error" not in output, output["error"]
    pictures = output.get("images") or [picture["b64_json"] for picture in output["data"]]
    assert len(pictures) == test.input.get("num_images", 1)
    assert output["warnings"] == []
