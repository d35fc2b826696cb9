"""A pipeline as it is put together gives what diffusers' own would, whatever is left out or waits on the CPU."""

import itertools
import json
import shutil
import struct
import threading
import weakref
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline
from torchao.quantization import Float8Tensor, Int8Tensor

from imagegen.errors import ConfigurationError
from imagegen.model import assembly
from imagegen.model.config import FluxConfig
from imagegen.model.offload import CpuEmbedding, OnloadHook, PinnedMemory
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH, get_model
from imagegen.weights import files as weight_files
from tests.builder.test_quantize import quantized, whole

__all__ = ["whole"]  # a fixture

PROMPT = "a red circle on a blue background"
HOW = {"width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 1.0, "seed": 5}


def loaded(path, **options):
    pipeline = FluxPipeline(FluxConfig(get_model("micro"), path, device="cpu", **options))
    pipeline.load()
    return pipeline


def image_of(path, **options):
    return loaded(path, **options).generate(PROMPT, **HOW).image.tobytes()


@pytest.fixture(scope="module")
def bare(whole):
    """The image of diffusers' pipeline with all 36 layers."""
    pipe = Flux2KleinPipeline.from_pretrained(whole, dtype=torch.float32)
    arguments = {**HOW, "generator": torch.Generator().manual_seed(HOW["seed"]), "max_sequence_length": 32}
    arguments.pop("seed")
    return pipe(prompt=PROMPT, **arguments).images[0].tobytes()


@pytest.mark.parametrize("offload", ["none", "embeddings", "text_encoder"])
def test_an_untrimmed_folder_is_trimmed_and_no_bit_changes(whole, bare, offload):
    pipeline = loaded(whole, offload=offload)
    assert len(pipeline._pipe.text_encoder.model.layers) == weight_files.TEXT_ENCODER_LAYERS
    assert pipeline.generate(PROMPT, **HOW).image.tobytes() == bare
    assert pipeline.generate(PROMPT, **HOW).image.tobytes() == bare  # what came for its turn comes again


@pytest.mark.parametrize("offload", ["none", "embeddings"])
def test_a_trimmed_folder_gives_the_same(whole, bare, tmp_path, offload):
    assert image_of(quantized(whole, tmp_path, "bf16"), offload=offload) == bare


def test_files_of_unneeded_layers_are_not_opened(whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    index = json.loads((folder / "text_encoder" / "model.safetensors.index.json").read_text())["weight_map"]
    (folder / "text_encoder" / index["model.layers.35.mlp.down_proj.weight"]).unlink()
    image_of(folder)


@pytest.mark.parametrize(("precision", "kind"), [("fp8", Float8Tensor), ("int8", Int8Tensor)])
def test_a_folder_quantised_before_generates_as_one_quantised_when_loaded(whole, bare, tmp_path, precision, kind):
    before = loaded(quantized(whole, tmp_path, precision, precision))
    images = [before.generate(PROMPT, **HOW).image.tobytes()]
    images.append(image_of(whole, transformer=precision, text_encoder=precision))
    assert images[0] == images[1] != bare
    assert isinstance(before._pipe.transformer.single_transformer_blocks[0].attn.to_out.weight.data, kind)
    assert isinstance(before._pipe.text_encoder.model.layers[0].mlp.up_proj.weight.data, kind)
    assert not isinstance(before._pipe.transformer.x_embedder.weight.data, kind)


def test_a_prequantised_text_encoder_can_wait_on_the_cpu(whole, tmp_path):
    folder = quantized(whole, tmp_path, "int8", "int8")
    assert image_of(folder, offload="text_encoder") == image_of(folder)


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_a_weight_that_is_not_there_or_of_another_shape_is_an_error(tmp_path, part):
    shutil.copytree(MICRO_PATH, tmp_path / "model")
    (file,) = (tmp_path / "model" / part).glob("*.safetensors")
    whole, content = file.read_bytes(), file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + length])
    name = next(name for name, entry in head.items() if name != "__metadata__" and len(entry["shape"]) > 1)

    def rewrite(change):
        changed = json.loads(json.dumps(head))
        change(changed)
        text = json.dumps(changed).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])

    for change in (lambda h: h.pop(name), lambda h: h[name].update(shape=[1, *h[name]["shape"]])):
        rewrite(change)
        with pytest.raises(ConfigurationError, match="ValueError") as caught:
            image_of(tmp_path / "model")
        assert name in str(caught.value.__cause__)


def test_a_file_that_ends_too_soon_is_an_error(tmp_path):
    shutil.copytree(MICRO_PATH, tmp_path / "model")
    (file,) = (tmp_path / "model" / "transformer").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match="cannot be loaded") as caught:
        image_of(tmp_path / "model")
    assert "ends within a tensor" in str(caught.value.__cause__)


def test_an_embedding_stays_where_it_is():
    table = torch.randn(10, 4)
    embedding = CpuEmbedding(table, "cpu")
    assert sum(parameter.numel() for parameter in embedding.parameters()) == 0
    assert torch.equal(embedding.to("meta")(torch.tensor([[1, 3]])), table[torch.tensor([[1, 3]])])


def test_weights_leave_after_a_pass_that_failed():
    class Encoder(torch.nn.Linear):
        def forward(self, states):
            seen.append(self.weight.device.type)
            raise torch.OutOfMemoryError

    seen, encoder = [], Encoder(4, 4)
    home = encoder.weight.data
    OnloadHook(encoder, "meta")
    with pytest.raises(torch.OutOfMemoryError):
        encoder(torch.randn(1, 4))
    assert seen == ["meta"]
    assert encoder.weight.data_ptr() == home.data_ptr()


def test_a_weight_that_moves_in_its_own_way_is_let():
    """bitsandbytes' 4-bit weights bring their scales along."""

    class Weight(torch.nn.Parameter):
        quant_state = "on the cpu"

        def to(self, device, **_):
            moved = Weight(self.data.to(device), requires_grad=False)
            moved.quant_state = f"on {device}"
            return moved

    class Encoder(torch.nn.Linear):
        def forward(self, states):
            seen.append((self.weight.device.type, self.weight.quant_state))  # type: ignore[attr-defined]
            return states

    seen, encoder = [], Encoder(4, 4, bias=False)
    encoder.weight = home = Weight(torch.randn(4, 4), requires_grad=False)
    OnloadHook(encoder, "meta")
    encoder(torch.randn(1, 4))
    assert seen == [("meta", "on meta")]
    assert encoder.weight is home


def test_all_weights_are_read_ahead(whole, monkeypatch):
    opened = set()
    real_open = type(whole).open
    monkeypatch.setattr(type(whole), "open", lambda self, *a, **k: (opened.add(self.name), real_open(self, *a, **k))[1])
    weight_files.prefetch(whole).join()
    needed = {file.name for part in ("text_encoder", "transformer", "vae") for file in weight_files.files(whole, part)}
    assert needed <= opened
    assert len(needed) < len(list(whole.glob("*/*.safetensors")))


def test_reading_ahead_of_a_broken_folder_does_not_raise(tmp_path):
    weight_files.prefetch(tmp_path).join()


def test_loads_that_overlap_leave_torch_and_each_other_as_they_were():
    register = torch.nn.Module.register_parameter
    first, second = [], []

    def load(into):
        for _ in range(3):
            into.append(loaded(MICRO_PATH))

    threads = [threading.Thread(target=load, args=(into,)) for into in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.nn.Module.register_parameter is register
    assert torch.empty(1).device.type == "cpu"
    images = {pipeline.generate(PROMPT, **HOW).image.tobytes() for pipeline in (*first, *second)}
    assert len(first) == len(second) == 3
    assert len(images) == 1


def test_a_weight_that_was_not_loaded_is_an_error_of_the_load(monkeypatch):
    tasks = assembly._tasks
    monkeypatch.setattr(assembly, "_tasks", lambda fillers: tasks(fillers)[:-1])
    with pytest.raises(ConfigurationError) as caught:
        loaded(MICRO_PATH)
    assert "was not loaded" in str(caught.value.__cause__)


def test_a_gpu_s_weights_go_through_memory_that_is_used_again(tmp_path, monkeypatch):
    """Chunk after chunk, each when the copy of what it held has ended."""
    bytes_ = torch.arange(100, dtype=torch.uint8)
    (tmp_path / "weights").write_bytes(bytes_.numpy().tobytes())
    seen = []

    class Sent:
        def __init__(self, number):
            self.number = number

        def record(self, stream):
            seen.append((self.number, stream))

    monkeypatch.setattr(assembly, "_CHUNK", 16)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"queue of {device}")
    chunks = [(torch.empty(16, dtype=torch.uint8), Sent(number)) for number in range(2)]
    there = torch.empty(90, dtype=torch.uint8)
    with (tmp_path / "weights").open("rb", buffering=0) as stream:
        assembly._read_through(stream, there, itertools.cycle(chunks))
        assert torch.equal(there, bytes_[:90])
        assert seen == [(number % 2, "queue of cpu") for number in range(6)]
        with pytest.raises(ValueError, match="weights ends within a tensor"):
            assembly._read_through(stream, there, itertools.cycle(chunks))


def test_weights_that_wait_are_pinned_one_after_another_in_blocks_of_a_size(monkeypatch):
    empty, blocks, alive = torch.empty, [], []

    def pinned(size, dtype, pin_memory=False):
        blocks.append(size) if pin_memory else None
        alive.append(sum(original() is not None for original in originals))
        return empty(size, dtype=dtype)

    layers = torch.nn.ModuleList(torch.nn.Linear(16, 16, bias=False) for _ in range(4))
    originals = [weakref.ref(layer.weight) for layer in layers]
    values = [layer.weight.detach().clone() for layer in layers]
    monkeypatch.setattr(PinnedMemory, "BLOCK", 2 * 16 * 16 * 4)
    monkeypatch.setattr(torch, "empty", pinned)
    OnloadHook(layers, "cuda:0")
    assert blocks == [2048, 2048]
    assert alive[-1] == 2  # the first two are gone when the second block is made
    assert all(torch.equal(layer.weight, value) for layer, value in zip(layers, values, strict=True))


def test_a_quantised_weight_is_pinned_with_its_scales(monkeypatch):
    from tests.model.test_quantized_linear import quantized

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **how: empty(*size, **how))
    for precision in ("fp8", "int8"):
        weight = quantized(precision)
        copy: Any = PinnedMemory().copy(weight)
        assert type(copy) is type(weight)
        assert torch.equal(copy.dequantize(), weight.dequantize())
        assert copy.qdata.data_ptr() != weight.qdata.data_ptr()
