"""The section of the settings for jobs over HTTP; see `imagegen.setting_sections`."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

#: What a webhook's secret begins with.
PREFIX = "whsec_"
#: Bytes of a webhook's secret, as the Standard Webhooks specification has it.
_SECRET_BYTES = (24, 64)

#: Megabytes of all jobs where nothing else is set, with a folder and in memory.
FOLDER_MB, MEMORY_MB = 10_000.0, 256.0


def is_secret(text: str) -> bool:
    """Whether it is a webhook's secret as the specification writes it: whsec_ and base64."""
    try:
        size = len(base64.b64decode(text.removeprefix(PREFIX), validate=True))
    except (binascii.Error, ValueError):
        return False
    return text.startswith(PREFIX) and _SECRET_BYTES[0] <= size <= _SECRET_BYTES[1]


class JobSettings(BaseSettings):
    """Jobs over HTTP"""

    jobs_dir: Path | None = Field(
        None,
        validation_alias="IMAGEGEN_JOBS_DIR",
        description="A folder for jobs of /jobs, on a disk of this machine: jobs that were accepted are done after a "
        "restart too. It holds prompts, references and images. Unset: jobs are in memory, and end with the process.",
    )
    jobs_database: SecretStr | None = Field(
        None,
        validation_alias="IMAGEGEN_JOBS_DATABASE",
        description="postgresql://USER:PASSWORD@HOST:PORT/NAME: a database for several servers that share their jobs; "
        "IMAGEGEN_JOBS_DIR must be a folder that they share too. Unset: SQLite in that folder, for one server.",
    )
    jobs_keep_hours: float = Field(
        24.0,
        gt=0,
        le=8760,
        validation_alias="IMAGEGEN_JOBS_KEEP_HOURS",
        description="Hours for which an ended job and its images are kept; then it is `expired`.",
    )
    jobs_max_mb: float | None = Field(
        None,
        gt=0,
        validation_alias="IMAGEGEN_JOBS_MAX_MB",
        description="Megabytes of references and images of all jobs. Over it ended jobs expire, the oldest of the "
        "callers who have the most; where that is not enough, new jobs are refused. Unset: 10000, or 256 in memory.",
    )
    jobs_max_waiting: int = Field(
        1000,
        ge=1,
        le=100_000,
        validation_alias="IMAGEGEN_JOBS_MAX_WAITING",
        description="Jobs of /jobs that may wait. One caller may have three quarters of them, and of the bytes of "
        "IMAGEGEN_JOBS_MAX_MB.",
    )
    api_keys_file: Path | None = Field(
        None,
        validation_alias="IMAGEGEN_API_KEYS",
        description="A TOML file with more keys, by their SHA-256, and what each may have; it is read again when it "
        "changes. Unset: only the keys of IMAGEGEN_API_KEY.",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        validation_alias="IMAGEGEN_WEBHOOK_SECRET",
        description="Signs the webhooks of jobs that bring no secret of their own: whsec_ and 24 to 64 bytes in "
        "base64. Unset: each webhook needs a secret of its job.",
    )

    @field_validator("webhook_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not is_secret(value.get_secret_value()):
            raise ValueError("must be whsec_ and 24 to 64 bytes in base64")
        return value
