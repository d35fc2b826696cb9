import pytest

from imagegen.errors import ConfigurationError
from imagegen.model import driver, loading
from tests.support import settings

#: As the kernel module writes them.
OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Thu Jan  9 18:30:00 UTC 2026\nGCC version: 12.2.0\n"
NEW = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U16-I3)\n"


@pytest.mark.parametrize(
    ("text", "cuda", "says"),
    [
        (OLD, "13.0", "driver 570.86 is too old: torch was built with CUDA 13.0, which needs 580 or newer"),
        (OLD, "12.6", None),
        (NEW, "13.0", None),
        (NEW, "14.1", None),
        ("something else", "13.0", None),
        (None, "13.0", "no NVIDIA driver is seen: start the container with `--gpus all`"),
        (NEW, None, "built without CUDA"),
    ],
)
def test_the_driver_is_named_with_what_is_needed(tmp_path, text, cuda, says):
    file = tmp_path / "version"
    if text is not None:
        file.write_text(text)
    fault = driver.find_fault(cuda, file)
    assert fault is None if says is None else says in fault


def test_a_container_without_a_gpu_that_can_be_used_says_why(monkeypatch, caplog):
    with pytest.raises(ConfigurationError, match=r"none can be used \(this torch was built without CUDA\)"):
        loading.choose_model(settings(model="klein-9b", device=None))
    loading.choose_model(settings(model=None, device=None))
    assert "this torch was built without CUDA" in caplog.text
