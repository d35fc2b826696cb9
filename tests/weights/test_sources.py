import contextlib
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from safetensors.numpy import save_file

from imagegen.engine.service import Service
from imagegen.errors import ConfigurationError
from imagegen.models import MICRO_PATH, MODELS, MULTIPLE, get_model
from imagegen.weights.sources import SMALL_DECODER, download_decoder, download_weights, find_decoder, find_weights
from tests.support import settings
from tests.support.hub import Hub, client_of, serve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_cache(root, repository, commit=COMMIT):
    folder = root / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return snapshot


def test_the_registry_holds_every_variant_with_its_licence():
    assert list(MODELS) == ["klein-9b", "klein-9b-kv", "klein-4b", "klein-base-9b", "klein-base-4b", "micro"]
    assert {name for name, spec in MODELS.items() if spec.gated} == {"klein-9b", "klein-9b-kv", "klein-base-9b"}
    for spec in MODELS.values():
        assert spec.gated == ("Non-Commercial" in spec.licence)
        assert not any(side % MULTIPLE for side in (spec.size, spec.min_size, spec.max_size))


def test_every_pipeline_class_is_diffusers_own():
    import diffusers

    assert all(hasattr(diffusers, spec.pipeline_class) for spec in MODELS.values())


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(ConfigurationError, match="klein-9c.*klein-9b, klein-9b-kv, klein-4b.*micro"):
        get_model("klein-9c")


def test_a_gated_model_without_token_says_what_to_do(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        download_weights(get_model("klein-9b"), settings(hf_home=tmp_path))
    for part in ("HUGGING_FACE_TOKEN", "https://huggingface.co/black-forest-labs/FLUX.2-klein-9B", "licence"):
        assert part in str(caught.value)


@pytest.fixture
def hub(monkeypatch):
    """The internet: what the hub was asked for, and what it answers."""
    import huggingface_hub

    hub = SimpleNamespace(calls=[], answer="", size=0)

    def answer(repository, **arguments):
        if isinstance(hub.answer, Exception):
            raise hub.answer
        if arguments.pop("dry_run", False):
            return [
                SimpleNamespace(file_size=size, will_download=needed)
                for size, needed in ((hub.size, True), (10**18, False), (None, True))
            ]
        hub.calls.append((repository, arguments))
        return hub.answer

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    return hub


def test_a_download_goes_into_the_cache_with_the_token(hub, tmp_path):
    hub.answer = str(tmp_path / "snapshot")
    spec = get_model("klein-9b")
    assert download_weights(spec, settings(hf_home=tmp_path, hugging_face_token="hf_x")) == tmp_path / "snapshot"
    ((repository, arguments),) = hub.calls
    assert repository == "black-forest-labs/FLUX.2-klein-9B"
    assert arguments["token"] == "hf_x"
    assert arguments["cache_dir"] == tmp_path / "hub"
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in arguments["allow_patterns"])
    download_weights(get_model("klein-4b"), settings(hf_home=tmp_path))
    assert hub.calls[1][1]["token"] is False  # what is free is fetched without asking who is there


def test_a_download_that_the_disk_cannot_hold_is_not_begun(hub, tmp_path):
    hub.size = 10**17
    with pytest.raises(
        ConfigurationError, match=r"klein-4b: the download needs 100000000\.0 GB and the disk of HF_HOME"
    ):
        download_weights(get_model("klein-4b"), settings(hf_home=tmp_path / "not" / "there"))
    assert not hub.calls


@pytest.mark.parametrize("on_runpod", [True, False])
def test_a_download_leaves_the_tenth_of_the_disk_that_runpods_sdk_wants(hub, tmp_path, monkeypatch, on_runpod):
    hub.size, queue = int(15e9), "http://127.0.0.1/job-take/x" if on_runpod else None
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=int(60e9), free=int(20e9)))
    monkeypatch.setattr("imagegen.weights.sources._ROOT", tmp_path)
    ours = settings(hf_home=tmp_path, queue_url=queue)
    if on_runpod:
        with pytest.raises(ConfigurationError, match=r"needs 15\.0 GB beside the 6\.0 GB that RunPod wants free"):
            download_weights(get_model("klein-4b"), ours)
    else:
        download_weights(get_model("klein-4b"), ours)
    assert len(hub.calls) == (not on_runpod)
    monkeypatch.setattr("imagegen.weights.sources._ROOT", Path("/proc"))  # the cache is on a volume, another disk
    download_weights(get_model("klein-4b"), ours)


@pytest.mark.parametrize(("status", "says"), [(403, "accept the licence at https://"), (500, "the download of")])
def test_a_failed_download_says_what_to_do_and_hides_the_token(hub, tmp_path, status, says):
    response = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))
    hub.answer = (GatedRepoError if status == 403 else HfHubHTTPError)("no, hf_canary", response=response)
    with pytest.raises(ConfigurationError, match=says) as caught:
        download_weights(get_model("klein-9b"), settings(hf_home=tmp_path, hugging_face_token="hf_canary"))
    assert "hf_canary" not in str(caught.value)


def test_weights_are_looked_for_in_order(tmp_path):
    spec = get_model("klein-9b")
    home, volume = tmp_path / "home", tmp_path / "volume"
    mine = settings(hf_home=home)
    assert find_weights(spec, mine, volume) is None
    on_volume = make_cache(volume, spec.repository)
    assert find_weights(spec, mine, volume) == on_volume
    cached = make_cache(volume / "huggingface-cache" / "hub", spec.repository)
    assert find_weights(spec, mine, volume) == cached
    baked = make_cache(home / "hub", spec.repository)
    assert find_weights(spec, mine, volume) == baked
    assert find_weights(spec, settings(hf_home=home, model_path=MICRO_PATH), volume) == MICRO_PATH


PARTS = '{"_class_name": "Flux2KleinPipeline", "vae": ["diffusers", "X"], "scheduler": ["diffusers", "Y"]}'


def test_a_snapshot_of_an_interrupted_download_is_passed_over(tmp_path):
    spec = get_model("klein-4b")
    snapshot = make_cache(tmp_path / "hub", spec.repository)
    (snapshot / "model_index.json").write_text(PARTS)

    def found():
        return find_weights(spec, settings(hf_home=tmp_path), tmp_path / "none")

    assert found() is None
    for part in ("vae", "scheduler"):
        (snapshot / part).mkdir()
        (snapshot / part / "config.json").write_text("{}")
    assert found() is None  # the vae has no weights
    save_file({"x": np.zeros(3)}, snapshot / "vae" / "a.safetensors")
    assert found() == snapshot
    index = '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}'
    (snapshot / "vae" / "model.safetensors.index.json").write_text(index)
    assert found() is None  # the second shard is missing
    save_file({"y": np.zeros(9)}, snapshot / "vae" / "b.safetensors")
    assert found() == snapshot
    whole = (snapshot / "vae" / "b.safetensors").read_bytes()
    for broken in (whole[:-1], whole + b"x", whole[:20], b"", b"\xff" * 8 + whole[8:]):
        (snapshot / "vae" / "b.safetensors").write_bytes(broken)
        assert found() is None


def test_the_log_says_where_the_weights_come_from_and_what_was_passed_over(tmp_path, caplog):
    caplog.set_level("INFO")
    spec = get_model("klein-4b")
    broken = make_cache(tmp_path / "home" / "hub", spec.repository)
    (broken / "model_index.json").write_text(PARTS)
    make_cache(tmp_path / "volume" / "huggingface-cache" / "hub", spec.repository)
    find_weights(spec, settings(hf_home=tmp_path / "home"), tmp_path / "volume")
    assert "the weights in the cache of HF_HOME are passed over: vae is missing" in caplog.text
    assert "the weights come from RunPod's cached models: " in caplog.text


def test_a_broken_snapshot_is_passed_over(tmp_path):
    spec = get_model("klein-4b")
    (make_cache(tmp_path / "hub", spec.repository) / "model_index.json").unlink()
    assert find_weights(spec, settings(hf_home=tmp_path), tmp_path / "none") is None


def test_a_model_path_that_is_no_model_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match="IMAGEGEN_MODEL_PATH.*model_index.json"):
        find_weights(get_model("klein-9b"), settings(model_path=tmp_path))


def test_micro_is_in_the_repository_and_small():
    assert find_weights(get_model("micro"), settings()) == MICRO_PATH
    assert sum(path.stat().st_size for path in MICRO_PATH.rglob("*.safetensors")) <= 8_000_000
    assert not [path for path in MICRO_PATH.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".py")]


def test_health_says_how_far_a_download_is(tmp_path, monkeypatch):
    """With the real client: 120 MB, of which half has come."""
    files = {path.relative_to(MICRO_PATH).as_posix(): path.read_bytes() for path in MICRO_PATH.rglob("*.*")}
    large = "vae/large.txt"
    hub = Hub({**files, large: bytes(120_000_000)})
    hub.halves[large] = threading.Event()
    with serve(hub) as url, client_of(url):
        service = Service(settings(model="klein-4b", hf_home=tmp_path))
        stages, note = [], service.host.note_stage

        def noted(stage):
            note(stage)
            stages.append(service.health().stage)
            if stages[-1] == "downloading the weights: 0.1 of 0.1 GB":
                hub.halves[large].set()

        monkeypatch.setattr(service.host, "note_stage", noted)
        with contextlib.suppress(ConfigurationError):  # the miniature is no klein
            service.start().result(300)
        service.close()
    assert "downloading the weights: 0.0 of 0.1 GB" in stages
    assert hub.halves[large].is_set()  # at the stage that is wanted
    assert find_weights(get_model("klein-4b"), settings(hf_home=tmp_path), tmp_path / "none") is not None


def test_the_small_decoder_is_looked_for_where_weights_are(tmp_path, caplog):
    home, volume = tmp_path / "home", tmp_path / "volume"
    mine = settings(hf_home=home, decoder="small")
    assert find_decoder(mine, volume) is None
    cached = make_cache(volume / "huggingface-cache" / "hub", SMALL_DECODER)
    assert find_decoder(mine, volume) is None
    assert "FileNotFoundError" in caplog.records[0].getMessage()  # it says why this one is passed over
    (cached / "config.json").write_text("{}")
    save_file({"x": np.zeros(3)}, cached / "diffusion_pytorch_model.safetensors")
    assert find_decoder(mine, volume) == cached
    assert find_decoder(settings(decoder=str(cached)), volume) == cached


@pytest.mark.parametrize(("name", "says"), [("large", "FileNotFoundError"), ("cut", "has 82 bytes of 88")])
def test_a_decoder_that_is_none_is_an_error(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text("{}")
    file = tmp_path / "cut" / "diffusion_pytorch_model.safetensors"
    save_file({"x": np.zeros(3)}, file)
    file.write_bytes(file.read_bytes()[:-6])
    with pytest.raises(ConfigurationError, match=f"IMAGEGEN_DECODER: it is 'small' or a folder .*{says}"):
        find_decoder(settings(decoder=name))


def test_of_the_small_decoder_only_what_is_read_is_downloaded(hub, tmp_path):
    hub.answer = str(tmp_path / "snapshot")
    assert download_decoder(settings(hf_home=tmp_path)) == tmp_path / "snapshot"
    ((repository, arguments),) = hub.calls
    assert repository == "black-forest-labs/FLUX.2-small-decoder"
    assert arguments["allow_patterns"] == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert arguments["token"] is False
