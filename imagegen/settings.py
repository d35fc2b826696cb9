"""Every environment variable that the project reads, in one class: read once, typed, frozen.

`.env.example` and the README's table list the same variables; a test holds the three together.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from imagegen.errors import ConfigurationError


class Settings(BaseSettings):
    """The worker's settings. An empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, case_sensitive=True, populate_by_name=True
    )

    hugging_face_token: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("HUGGING_FACE_TOKEN", "HF_TOKEN"),
        description="Token for downloading gated weights (HF_TOKEN works too). Not needed where they are baked in.",
    )
    preload_models: bool = Field(
        True,
        validation_alias="PRELOAD_MODELS",
        description="Load the model at cold start; false: with the first job.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", validation_alias="LOG_LEVEL", description="DEBUG, INFO, WARNING or ERROR."
    )
    log_format: Literal["auto", "json", "plain"] = Field(
        "auto",
        validation_alias="IMAGEGEN_LOG_FORMAT",
        description="auto: JSON on RunPod, plain text elsewhere.",
    )
    log_prompts: bool = Field(
        False,
        validation_alias="IMAGEGEN_LOG_PROMPTS",
        description="Write each job's prompt into its line of the log.",
    )
    hf_home: Path = Field(
        Path("~/.cache/huggingface"),
        validation_alias="HF_HOME",
        description="The Hugging Face cache; the image bakes the weights into it.",
    )
    model: str | None = Field(
        None,
        validation_alias="IMAGEGEN_MODEL",
        description="The model to serve. Unset: klein-9b where there is a CUDA card, else micro.",
    )
    model_path: Path | None = Field(
        None,
        validation_alias="IMAGEGEN_MODEL_PATH",
        description="A diffusers folder with the model's weights; looked at before any cache.",
    )
    device: str | None = Field(
        None,
        validation_alias="IMAGEGEN_DEVICE",
        description="A torch device. Unset: cuda where there is one, else cpu.",
    )
    precision: Literal["auto", "bf16", "fp8", "int8", "nf4"] = Field(
        "auto",
        validation_alias="IMAGEGEN_PRECISION",
        description="The transformer's; the text encoder has it or a better one. auto: the most exact that fits.",
    )
    offload: Literal["auto", "none", "embeddings", "text_encoder", "model", "group"] = Field(
        "auto",
        validation_alias="IMAGEGEN_OFFLOAD",
        description="What waits on the CPU: none; the embeddings; the text_encoder; each part of the model until its "
        "turn (model); each layer (group). auto: as little as the card allows.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        validation_alias="IMAGEGEN_COMPILE",
        description="Compile the transformer's blocks. auto: on a CUDA card.",
    )
    compile_cache: Path | None = Field(
        None,
        validation_alias="IMAGEGEN_COMPILE_CACHE",
        description="A folder for compiled code: read at start, and filled by a warm-up where it has none of use.",
    )
    warm_up: Literal["auto", "on", "off"] = Field(
        "auto",
        validation_alias="IMAGEGEN_WARM_UP",
        description="Draw pictures of the usual sizes before the first job. auto: on a CUDA card.",
    )
    attention: Literal["auto", "native", "cudnn", "flash", "flash3", "sage"] = Field(
        "auto",
        validation_alias="IMAGEGEN_ATTENTION",
        description="Kernel for attention: native (torch's), cudnn, flash, flash3, sage. auto: by the card.",
    )
    decoder: str | None = Field(
        None,
        validation_alias="IMAGEGEN_DECODER",
        description="small: FLUX.2-small-decoder, 1.4 times as fast; or a folder with a VAE. Unset: the model's own.",
    )
    prompt_cache_mb: float = Field(
        512.0,
        ge=0,
        allow_inf_nan=False,
        validation_alias="IMAGEGEN_PROMPT_CACHE_MB",
        description="Main memory for the embeddings of the last prompts, in megabytes; 12.6 a prompt of klein-9b.",
    )
    timeout: float = Field(
        600.0,
        ge=1,
        le=3600,
        validation_alias="IMAGEGEN_REQUEST_TIMEOUT",
        description="Seconds that a job may take, waiting included, where it names no `timeout` of its own.",
    )
    max_reference_mb: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        validation_alias="IMAGEGEN_MAX_REFERENCE_MB",
        description="Largest reference picture, in megabytes.",
    )
    fetch_urls: bool = Field(
        True,
        validation_alias="IMAGEGEN_FETCH_URLS",
        description="Whether references may be http(s) URLs, which are fetched.",
    )
    url_hosts: str = Field(
        "",
        validation_alias="IMAGEGEN_URL_HOSTS",
        description="The only hosts to fetch references from, separated by commas (*.example.com: all under it). "
        "Unset: any that is public.",
    )
    url_timeout: float = Field(
        20.0,
        gt=0,
        le=600,
        validation_alias="IMAGEGEN_URL_TIMEOUT",
        description="Seconds for fetching a reference, redirects and all.",
    )
    private_hosts: str = Field(
        "",
        validation_alias="IMAGEGEN_PRIVATE_HOSTS",
        description="Hosts without a public address that a job's URLs may lead to nonetheless, such as "
        "minio.internal:9000, separated by commas.",
    )
    max_prompt: int = Field(
        4000, ge=1, le=4000, validation_alias="IMAGEGEN_MAX_PROMPT", description="Longest prompt, in characters."
    )
    max_references: int = Field(
        4,
        ge=1,
        le=4,
        validation_alias="IMAGEGEN_MAX_REFERENCES",
        description="Most references of an edit; the card must have room for them.",
    )
    max_images: int = Field(
        8, ge=1, le=8, validation_alias="IMAGEGEN_MAX_IMAGES", description="Most pictures that one job may ask for."
    )
    max_result_mb: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        validation_alias="IMAGEGEN_MAX_RESULT_MB",
        description="Largest answer of the RunPod worker, in megabytes as sent; a job of /run may send at most 10.",
    )
    serve: Literal["auto", "queue", "http"] = Field(
        "auto",
        validation_alias="IMAGEGEN_SERVE",
        description="What `python -m imagegen` serves. auto: RunPod's queue where there is one, else HTTP.",
    )
    port: int = Field(7000, ge=1, le=65535, validation_alias="PORT", description="Port of the HTTP server.")
    port_health: int | None = Field(
        None,
        ge=1,
        le=65535,
        validation_alias="PORT_HEALTH",
        description="A second port of the HTTP server, for the /ping of RunPod's load balancer. Unset: none.",
    )
    api_key: SecretStr | None = Field(
        None,
        validation_alias="IMAGEGEN_API_KEY",
        description="Key that every HTTP request must bring, but those of /, /health and /ping. Unset: none.",
    )
    max_queue: int = Field(
        16,
        ge=0,
        le=10000,
        validation_alias="IMAGEGEN_MAX_QUEUE",
        description="Jobs that may wait. Over HTTP more are answered 429; from RunPod's queue no more are taken.",
    )
    max_body_mb: float = Field(
        110.0,
        gt=0,
        allow_inf_nan=False,
        validation_alias="IMAGEGEN_MAX_BODY_MB",
        description="Largest body of an HTTP request, and largest input of a RunPod job, in megabytes.",
    )
    c2pa_certificate: str | None = Field(
        None,
        validation_alias="IMAGEGEN_C2PA_CERTIFICATE",
        description="The chain of certificates to sign pictures with, the signer's first: PEM, or its file.",
    )
    c2pa_key: SecretStr | None = Field(
        None,
        validation_alias="IMAGEGEN_C2PA_KEY",
        description="The private key of it: PEM without a password, or its file.",
    )
    cors_origins: str = Field(
        "",
        validation_alias="IMAGEGEN_CORS_ORIGINS",
        description="Origins whose pages may call the HTTP server, separated by commas. Unset: none but its own.",
    )
    bucket_endpoint_url: str | None = Field(
        None,
        validation_alias="BUCKET_ENDPOINT_URL",
        description="URL of an S3 object store, for `delivery: url`. It may hold the bucket, in its host or path.",
    )
    bucket_access_key_id: SecretStr | None = Field(
        None, validation_alias="BUCKET_ACCESS_KEY_ID", description="Key id for the object store."
    )
    bucket_secret_access_key: SecretStr | None = Field(
        None, validation_alias="BUCKET_SECRET_ACCESS_KEY", description="Secret key for the object store."
    )
    bucket_name: str | None = Field(
        None, validation_alias="BUCKET_NAME", description="The bucket, where BUCKET_ENDPOINT_URL does not hold it."
    )
    bucket_region: str | None = Field(
        None,
        validation_alias="BUCKET_REGION",
        description="The bucket's region, where BUCKET_ENDPOINT_URL does not name it; a wrong one costs a request.",
    )
    url_expiry: int = Field(
        86400,
        ge=60,
        le=604800,
        validation_alias="IMAGEGEN_URL_EXPIRY",
        description="Seconds that a picture's URL is good for, at most a week (the bound of AWS's signatures).",
    )
    queue_url: SecretStr | None = Field(
        None,
        validation_alias="RUNPOD_WEBHOOK_GET_JOB",
        description="Set by RunPod: its queue. Without it `python handler.py` runs test_input.json.",
    )
    stall_timeout: float = Field(
        300.0,
        gt=0,
        allow_inf_nan=False,
        validation_alias="IMAGEGEN_STALL_TIMEOUT",
        description="Seconds without a step after which the card counts as dead, and the process ends.",
    )
    progress: bool = Field(
        True,
        validation_alias="IMAGEGEN_PROGRESS",
        description="Tell RunPod how far a job is, once a second.",
    )
    stream: bool = Field(
        False,
        validation_alias="IMAGEGEN_STREAM",
        description="RunPod's jobs stream steps and previews (/stream), and their output is the list of these events.",
    )
    runpod_id: str | None = Field(
        None,
        validation_alias=AliasChoices("RUNPOD_ENDPOINT_ID", "RUNPOD_POD_ID"),
        description="Set by RunPod (RUNPOD_POD_ID too): logs are JSON then.",
    )
    output_dir: Path = Field(
        Path("outputs"),
        validation_alias="IMAGEGEN_OUTPUT_DIR",
        description="Where `python handler.py --test_input` writes its pictures.",
    )

    @property
    def serves_queue(self) -> bool:
        """Whether this process is a worker of RunPod's queue, rather than an HTTP server."""
        return self.serve == "queue" or (self.serve == "auto" and self.queue_url is not None)


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read from the environment and `.env` at the first call.

    Raises:
        ConfigurationError: a variable holds what it may not; the message names the variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ConfigurationError(f"{first['loc'][0]}: {first['msg']}") from None


def variable_names() -> list[str]:
    """The environment variables that `Settings` reads, in order; of two spellings the first."""
    names = []
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        names.append(str(alias.choices[0]) if isinstance(alias, AliasChoices) else str(alias))
    return names
