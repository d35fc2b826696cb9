import json

import pytest
import torch

from benchmarks.measure import Device
from benchmarks.random_model import write_outline
from imagegen.memory.plan import CONTEXT, Gpu
from imagegen.models import get_model


@pytest.mark.parametrize(("name", "index"), [("cuda", 3), ("cuda:1", 1)])
def test_a_cap_is_set_on_a_gpu_by_its_index(monkeypatch, name, index):
    """torch's own function, which refuses a device without one."""
    limits = []
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda *limit: limits.append(limit), raising=False)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: type("Properties", (), {"total_memory": 80 * 2**30})
    )
    with Device(name).capped(Gpu(24 * 2**30 + CONTEXT, (9, 0))):
        assert limits == [(pytest.approx(0.3), index)]
    assert limits[1:] == [(1.0, index)]


def test_an_outline_is_of_its_model_and_takes_no_disk(tmp_path):
    folder = write_outline(get_model("klein-base-4b"), tmp_path)
    assert json.loads((folder / "model_index.json").read_text())["is_distilled"] is False
    files = [file.stat() for file in folder.glob("*/*.safetensors")]
    assert sum(file.st_size for file in files) > 15e9
    assert sum(file.st_blocks for file in files) * 512 < 10e6
