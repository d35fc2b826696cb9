import pytest

from imagegen.errors import ConfigurationError
from imagegen.settings import Settings, get_settings, variable_names
from tests.conftest import settings
from tests.support import ROOT


def test_the_example_read_as_it_is_gives_the_defaults(monkeypatch):
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert Settings(_env_file=ROOT / ".env.example") == Settings(_env_file=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IMAGEGEN_REQUEST_TIMEOUT", "0"),
        ("PORT", "x"),
        ("IMAGEGEN_OFFLOAD", "disk"),
        ("IMAGEGEN_ATTENTION", "flash_hub"),
        ("IMAGEGEN_PROMPT_CACHE_MB", "inf"),
        ("PRELOAD_MODELS", "perhaps"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_names_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    with pytest.raises(ConfigurationError, match=rf"^{name}: "):
        get_settings()


@pytest.mark.parametrize("name", ["HUGGING_FACE_TOKEN", "HF_TOKEN"])
def test_the_token_is_read_and_never_shown(monkeypatch, name):
    monkeypatch.delenv("HUGGING_FACE_TOKEN", raising=False)
    monkeypatch.setenv(name, "hf_canary")
    read = Settings(_env_file=None)
    assert read.hugging_face_token.get_secret_value() == "hf_canary"
    assert "hf_canary" not in f"{read!r} {read} {read.model_dump_json()}"


def test_settings_are_frozen_and_empty_variables_count_as_unset(monkeypatch):
    monkeypatch.setenv("IMAGEGEN_REQUEST_TIMEOUT", "")
    monkeypatch.setenv("IMAGEGEN_MODEL", "")
    read = Settings(_env_file=None)
    assert read.timeout == 600
    assert read.model is None
    with pytest.raises(ValueError, match="frozen"):
        settings().timeout = 3
