import pytest

from imagegen.errors import ConfigurationError
from imagegen.settings import Settings, get_settings, variable_names
from tests.support import ROOT, settings


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


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PORT", "abc", "PORT: 'abc' is not allowed; allowed: a whole number, 1 to 65535"),
        ("PORT", "70000", "PORT: '70000' is not allowed; allowed: a whole number, 1 to 65535"),
        (
            "IMAGEGEN_PRECISION",
            "fp16",
            "IMAGEGEN_PRECISION: 'fp16' is not allowed; allowed: auto, bf16, fp8, int8, nf4",
        ),
        ("PRELOAD_MODELS", "perhaps", "PRELOAD_MODELS: 'perhaps' is not allowed; allowed: true, false"),
        ("IMAGEGEN_MAX_BODY_MB", "inf", "IMAGEGEN_MAX_BODY_MB: 'inf' is not allowed; allowed: a number, more than 0"),
    ],
)
def test_a_fault_says_what_was_received_and_what_is_allowed(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    with pytest.raises(ConfigurationError) as raised:
        get_settings()
    assert str(raised.value) == says


@pytest.fixture
def env_file(monkeypatch, tmp_path):
    """A `.env` in the working directory."""
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()
    return tmp_path / ".env"


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("name", ["IMAGEGEN_PRESICION", "IMAGEGEN_PRECISON", "imagegen_precision"])
def test_a_misspelt_setting_is_named_with_the_one_that_was_meant(monkeypatch, env_file, name, from_file):
    if from_file:
        env_file.write_text(f"{name}=fp8\n")
    else:
        monkeypatch.setenv(name, "fp8")
    with pytest.raises(ConfigurationError, match=f"^{name}: .* did you mean IMAGEGEN_PRECISION"):
        get_settings()


def test_a_variable_that_is_no_setting_is_warned_of(monkeypatch, env_file, caplog):
    monkeypatch.setenv("IMAGEGEN_HOME", "/app")
    get_settings()
    assert "IMAGEGEN_HOME: there is no such setting" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_of_an_editor_on_windows_is_read(env_file, encoding):
    env_file.write_text("PORT=7001\r\nIMAGEGEN_MAX_QUEUE=3\r\n", encoding=encoding)
    assert (get_settings().port, get_settings().max_queue) == (7001, 3)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_in_another_encoding_is_an_error(env_file, encoding):
    env_file.write_text("PORT=7001\n", encoding=encoding)
    with pytest.raises(ConfigurationError, match=r"^\.env: cannot be read as UTF-8 text"):
        get_settings()
