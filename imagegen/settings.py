"""Every environment variable that the project reads: read once, typed, frozen.

Each base class of `Settings` is a section of `.env.example` and of docs/settings.md, which `make reference` writes from
`imagegen.setting_sections`; a test compares them. To add a setting, add a field there and run `make reference`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from functools import lru_cache

from pydantic import SecretStr, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from imagegen import setting_faults
from imagegen.errors import ConfigurationError
from imagegen.job_settings import JobSettings
from imagegen.lora_settings import LoraSettings
from imagegen.setting_sections import (
    MIN_KEY,
    LimitSettings,
    LogSettings,
    ModelSettings,
    OutputSettings,
    RunPodSettings,
    ServerSettings,
)


class Settings(
    ModelSettings,
    LimitSettings,
    LoraSettings,
    ServerSettings,
    JobSettings,
    RunPodSettings,
    OutputSettings,
    LogSettings,
):
    """The worker's settings. An empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8-sig",  # editors on Windows begin UTF-8 with a mark
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        case_sensitive=True,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    @property
    def serves_queue(self) -> bool:
        """Whether this process is a worker of RunPod's queue, rather than an HTTP server."""
        return self.serve == "queue" or (self.serve == "auto" and self.queue_url is not None)

    @property
    def listen_host(self) -> str:
        """The address that the HTTP server listens on: without a key, nobody but this machine reaches it."""
        return self.host or ("0.0.0.0" if self.needs_key else "127.0.0.1")

    @property
    def needs_key(self) -> bool:
        """Whether callers of the HTTP server must send a key."""
        return self.api_key is not None or self.api_keys_file is not None

    @property
    def ports(self) -> list[int]:
        """The ports of the HTTP server; the first is for jobs."""
        return list(dict.fromkeys(filter(None, (self.port, self.port_health, self.metrics_port))))

    @property
    def api_keys(self) -> dict[str, str]:
        """The keys by their names; one without a name has its place: key-1."""
        named: dict[str, str] = {}
        for i, part in enumerate(self.api_key.get_secret_value().split(",") if self.api_key else ()):
            name, _, key = part.strip().rpartition(":")
            named[name or f"key-{i + 1}"] = key
        return named

    @property
    def aliases(self) -> list[str]:
        """Other names of the served model; "*" for any."""
        return [part.strip() for part in self.model_aliases.split(",") if part.strip()]

    @property
    def proxies(self) -> list[str]:
        """The trusted proxies."""
        return [part.strip() for part in self.trusted_proxies.split(",") if part.strip()]

    @field_validator("api_key")
    @classmethod
    def _check_keys(cls, value: SecretStr | None) -> SecretStr | None:
        for part in value.get_secret_value().split(",") if value else ():
            name, _, key = part.strip().rpartition(":")
            if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(f"a key must have at least {MIN_KEY} characters of ASCII, without spaces")
            if not re.fullmatch(r"[\w.@-]{0,40}", name, re.ASCII):
                raise ValueError("the name of a key is made of at most 40 letters, digits, '.', '@', '_' and '-'")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str) -> str:
        for part in filter(None, map(str.strip, value.split(","))):
            ipaddress.ip_network(part)  # a ValueError that names what it is not
        return value


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read from the environment and `.env` at the first call.

    Raises:
        ConfigurationError: a variable has a value that is not allowed or a misspelt name; the message names it.
    """
    if os.environ.get("IMAGEGEN_API_KEY") == "":
        # Not unset: whoever sets it wants a key, and may have mistyped the variable that it comes from.
        raise ConfigurationError("IMAGEGEN_API_KEY: it is empty; remove the variable for a server without a key")
    return setting_faults.read(Settings)


def sections() -> dict[str, dict[str, FieldInfo]]:
    """The fields by environment variable, of two spellings the first, in sections by title."""
    return {
        (section.__doc__ or ""): {setting_faults.variables(field)[0]: field for field in section.model_fields.values()}
        for section in Settings.__bases__
        if issubclass(section, BaseSettings)
    }


def variable_names() -> list[str]:
    """The environment variables that `Settings` reads, in order; of two spellings the first."""
    return [name for fields in sections().values() for name in fields]
