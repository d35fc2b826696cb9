"""LoRA adapters per job, through the whole service: names, errors, answers, and no trace in the jobs after it."""

import asyncio
import json
import shutil

import pytest
import torch
from PIL import ExifTags

from imagegen.contract.requests import parse_job
from imagegen.engine import lora_sources
from imagegen.engine.service import Service
from imagegen.errors import BadLora, ConfigurationError, ImageGenError, InvalidInput
from tests.support import settings
from tests.support.images import from_base64, scene, to_base64
from tests.support.loras import KLEIN, MICRO, SHIPPED, random_tensors, save

LAYER = "single_transformer_blocks.0.attn.to_out"
SMALL = {"prompt": "a red circle on a blue background", "seed": 4, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped adapters, and some that cannot be used."""
    folder = tmp_path_factory.mktemp("loras")
    for name in ("frame", "ring"):
        shutil.copy(SHIPPED / f"{name}.safetensors", folder)
    nan = random_tensors(names=["proj_out"])
    nan["transformer.proj_out.lora_A.weight"][0, 0] = float("nan")
    save(nan, folder / "nan.safetensors")
    save(random_tensors(1, KLEIN, ["x_embedder"]), folder / "other.safetensors")
    (folder / "pickle.safetensors").write_bytes(b"\x80\x04K\x01.")
    (folder / "short.safetensors").write_bytes((SHIPPED / "frame.safetensors").read_bytes()[:-5])
    save(random_tensors(12), folder / "wide.safetensors")
    layer = random_tensors(names=[LAYER])
    save({name: value for name, value in layer.items() if "lora_A" in name}, folder / "pair.safetensors")
    save({name: value[:, :3] for name, value in layer.items()}, folder / "shape.safetensors")
    save(random_tensors(4096, names=["proj_out"], dtype=torch.float16), folder / "rank.safetensors")
    save(layer | {f"transformer.{LAYER}.dora_scale": torch.zeros(2)}, folder / "dora.safetensors")
    save(layer | {"lora_te1_x.lora_down.weight": torch.zeros(2, 2)}, folder / "text.safetensors")
    with (folder / "huge.safetensors").open("wb") as stream:
        stream.truncate(5 * 10**9)  # sparse
    return folder


@pytest.fixture(scope="module")
def worker(folder):
    running = Service(settings(loras=str(folder), lora_rank=16, lora_hosts="*.example.com"))
    running.start().result()
    yield running
    running.close()


@pytest.fixture(scope="module")
def bare(service):
    return run(service).images


def run(service, **fields):
    return asyncio.run(service.run(parse_job({**SMALL, **fields})))


def fault_of(service, loras):
    with pytest.raises(ImageGenError) as caught:
        run(service, loras=loras)
    return caught.value


def test_the_answer_and_the_image_s_record_name_the_adapters(worker, bare):
    loras = [{"name": "frame", "scale": 0.75}, {"name": "ring"}]
    answer = run(worker, loras=loras)
    used = [{"name": "frame", "scale": 0.75}, {"name": "ring", "scale": 1.0}]
    assert [one.model_dump() for one in answer.loras] == used
    record = from_base64(answer.images[0]).getexif()[ExifTags.Base.ImageDescription]
    assert json.loads(record)["loras"] == used
    assert answer.images != bare
    assert run(worker, loras=loras).images == answer.images


def test_edits_take_adapters_too(worker):
    image = to_base64(scene("circle", "red", "blue"))
    plain, styled = (
        run(worker, prompt="make the circle green", images=[image], loras=loras) for loras in ([], [{"name": "frame"}])
    )
    assert plain.images != styled.images


def test_a_job_without_adapters_says_nothing_of_them(worker, bare):
    answer = run(worker)
    assert answer.loras == []
    assert answer.images == bare
    assert b"loras" not in from_base64(answer.images[0]).info["exif"]


@pytest.mark.parametrize(
    ("loras", "kind", "message"),
    [
        ([{"name": "brand"}], InvalidInput, "'brand' is not known; known are dora, frame, huge, nan, other"),
        ([{"name": "nan"}], BadLora, "proj_out holds values that are not finite"),
        ([{"name": "../frame"}], InvalidInput, "'../frame' is not known"),
        ([{"name": "frame.safetensors"}], InvalidInput, "'frame.safetensors' is not known"),
        ([{"name": "/etc/passwd"}], InvalidInput, "'/etc/passwd' is not known"),
        ([{"name": "a\nb\x00"}], InvalidInput, "'a\\nb\\x00' is not known"),
        ([{"name": "pair"}], BadLora, "lacks its up matrix"),
        ([{"name": "shape"}], BadLora, "micro takes (rank, 512) and (128, rank)"),
        ([{"name": "rank"}], BadLora, "has rank 4096; 16 is allowed"),
        ([{"name": "huge"}], BadLora, "has 5000 MB; "),
        ([{"name": "dora"}], BadLora, "is a DoRA, which is not supported; LoRA is"),
        ([{"name": "text"}], BadLora, "is an adapter of the text encoder, which is not supported; LoRA is"),
        ([{"name": "other"}], BadLora, "is an adapter of klein-9b, and micro is served"),
        ([{"name": "pickle"}], BadLora, "is a pickle"),
        ([{"name": "short"}], BadLora, " bytes of "),
        ([{"name": "frame"}, {"name": "wide"}], InvalidInput, "ranks are together 17; 16 are allowed"),
        ([{"url": "http://a.example.com/x"}], BadLora, "LoRAs are not fetched from there"),
        ([{"url": "https://example.org/x?secret"}], BadLora, "LoRAs are not fetched from there"),
        ([{"url": "https://169.254.169.254/x"}], BadLora, "LoRAs are not fetched from there"),
        ([{"url": "https://no-such-host.example.com/x"}], BadLora, "its host has no public address"),
    ],
)
def test_what_cannot_be_used_is_a_typed_error_and_the_next_job_is_as_ever(worker, bare, loras, kind, message):
    error = fault_of(worker, loras)
    assert type(error) is kind
    assert message in error.message
    assert error.field.startswith("loras")
    assert "secret" not in error.message
    assert run(worker).images == bare


@pytest.mark.parametrize(
    ("loras", "field", "message"),
    [
        (3, "loras", "must be a list, and not 3"),
        ("{", "loras", "is not JSON, such as"),
        ([{"scale": 1}], "loras[0]", "has a name or a url"),
        ([{"name": "a", "url": "b"}], "loras[0]", "has a name or a url, and not both"),
        ([{"name": "a", "scale": 4.5}], "loras[0].scale", "4.5 is out of bounds (-4 to 4)"),
        ([{"name": "a", "scale": float("nan")}], "loras[0].scale", "nan is out of bounds"),
        ([{"name": "a", "scale": float("inf")}], "loras[0].scale", "inf is out of bounds"),
        ([{"name": "a", "scale": 1e400}], "loras[0].scale", "inf is out of bounds"),
        ([{"name": "a", "scale": "much"}], "loras[0].scale", "must be a number"),
        ([{"name": "a", "scale": "0.8"}], "loras[0].scale", "must be a number"),
        ([{"name": "a", "scale": True}], "loras[0].scale", "must be a number"),
        ([{"name": "a", "scale": [1]}], "loras[0].scale", "must be a number"),
        ("frame", "loras", "is not JSON"),
        ({"name": "a"}, "loras", "must be a list"),
        (["frame"], "loras[0]", ""),
        ([{"name": "a" * 129}], "loras[0].name", "128"),
        ([{"url": "https://" + "a" * 8192}], "loras[0].url", "8192"),
        ([{"name": "b"}, {"name": 3}], "loras[1].name", "must be a string"),
        ([{"name": "a", "weight": 1}], "loras[0].weight", "allowed are name, url, scale"),
        ([{"name": "a"}, {"name": "a", "scale": 0.5}], "loras", "one comes twice"),
        ([{"name": str(i)} for i in range(5)], "loras", "5 LoRAs were received; 4 are allowed"),
    ],
)
def test_a_field_at_fault_is_named(loras, field, message):
    with pytest.raises(InvalidInput) as caught:
        parse_job({**SMALL, "loras": loras})
    assert caught.value.field == field
    assert message in caught.value.message


def test_the_operator_s_bound_on_their_number(worker):
    few = Service(settings(loras=str(SHIPPED), max_loras=1))
    with pytest.raises(InvalidInput, match="2 LoRAs are too many here"):
        asyncio.run(few.run(parse_job({**SMALL, "loras": [{"name": "frame"}, {"name": "ring"}]})))
    few.close()


def test_where_the_feature_is_off_no_name_is_known(service):
    assert "known are none" in fault_of(service, [{"name": "frame"}]).message


def test_jobs_at_once_with_and_without_adapters_are_each_as_if_alone(worker, bare):
    kinds = [[], [{"name": "frame"}], [], [{"name": "ring"}], [{"name": "frame"}], [{"name": "nan"}], []]
    alone = [None if kind == [{"name": "nan"}] else run(worker, loras=kind).images for kind in kinds]

    async def together():
        jobs = (worker.run(parse_job({**SMALL, "loras": kind})) for kind in kinds)
        return await asyncio.gather(*jobs, return_exceptions=True)

    answers = asyncio.run(together())
    assert [getattr(answer, "images", None) for answer in answers] == alone
    assert alone[0] == bare


def test_a_cancelled_job_leaves_no_trace(worker, bare):
    async def cancelled():
        task = asyncio.create_task(
            worker.run(parse_job({**SMALL, "num_inference_steps": 50, "loras": [{"name": "frame"}]}))
        )
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert run(worker).images == bare


def test_what_can_be_used_is_listed_with_the_faults_of_the_rest(worker, folder):
    idle = Service(settings(loras=str(folder), lora_rank=16))  # by the headers; what is loaded knows the values too
    fault_of(worker, [{"name": "nan"}])
    for service, of_values in ((idle, None), (worker, "proj_out holds values that are not finite")):
        listed = {one["name"]: one for one in service.loras(MICRO)}
        assert {name: one["rank"] for name, one in listed.items() if "rank" in one} == {
            "frame": 5,
            "ring": 5,
            "wide": 12,
            **({} if of_values else {"nan": 2}),
        }
        assert listed["nan"].get("fault") == of_values
        assert listed["short"]["fault"].endswith(" bytes of 182304")
        assert listed["huge"]["fault"].startswith("has 5000 MB; ")
    idle.close()


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        ("/no/such/folder", "is no directory"),
        ("a b=/x", "is no name"),
        ("x=/no/such/file", "is no file, owner/repository@commit"),
        ("x=owner/name@main", "is no file"),
        ("x=s3://bucket/key.safetensors", "s3:// needs an object store"),
        (f"frame={SHIPPED}/frame.safetensors,{SHIPPED}", "frame comes twice"),
        ("x=https://127.0.0.1/x.safetensors", "x: its host has no public address"),
    ],
)
def test_a_setting_that_is_wrong(loras, message, tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        lora_sources.list_entries(settings(loras=loras, hf_home=tmp_path), MICRO)
    assert message in str(caught.value)


def test_an_adapter_of_the_hub_s_cache_and_one_by_file(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--owner--style" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    shutil.copy(SHIPPED / "ring.safetensors", snapshot / "style.safetensors")
    loras = f"style=owner/style@{commit}, mine={SHIPPED}/frame.safetensors"
    found = lora_sources.list_entries(settings(loras=loras, hf_home=tmp_path), MICRO)
    assert {name: entry.header.rank for name, entry in found.items()} == {"style": 5, "mine": 5}
