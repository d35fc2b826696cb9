"""The sections of the settings: each class is one of `.env.example` and of docs/settings.md. Read through
`imagegen.settings` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings

from imagegen.models import MODELS

#: Characters of a key at least: 16 random letters and digits are 95 bits.
MIN_KEY = 16


class ModelSettings(BaseSettings):
    """The model"""

    hugging_face_token: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("HUGGING_FACE_TOKEN", "HF_TOKEN"),
        description="Hugging Face token for downloading gated weights. Not needed if the weights are on the machine.",
    )
    preload_models: bool = Field(
        True,
        validation_alias="PRELOAD_MODELS",
        description="Load the model when the process starts. false: load it with the first job.",
    )
    hf_home: Path = Field(
        Path("~/.cache/huggingface"),
        validation_alias="HF_HOME",
        description="The Hugging Face cache, where weights are looked for and downloaded to.",
    )
    model: str | None = Field(
        None,
        validation_alias="IMAGEGEN_MODEL",
        description=f"The model to serve: {', '.join(MODELS)}. Unset: klein-9b with a CUDA GPU, else micro.",
    )
    model_aliases: str = Field(
        "",
        validation_alias="IMAGEGEN_MODEL_ALIASES",
        description="Other names of the served model in OpenAI's API, separated by commas, such as gpt-image-1, for "
        "clients with a fixed name. *: any name.",
    )
    model_path: Path | None = Field(
        None,
        validation_alias="IMAGEGEN_MODEL_PATH",
        description="A model directory in diffusers' layout. It is used before any cache.",
    )
    device: str | None = Field(
        None,
        validation_alias="IMAGEGEN_DEVICE",
        description="The torch device. Unset: cuda where there is one, else cpu.",
    )
    precision: Literal["auto", "bf16", "fp8", "int8", "nf4"] = Field(
        "auto",
        validation_alias="IMAGEGEN_PRECISION",
        description="Precision of the transformer; the text encoder gets the same or a higher one. auto: the highest "
        "that fits the GPU's memory.",
    )
    offload: Literal["auto", "none", "embeddings", "text_encoder", "model", "group"] = Field(
        "auto",
        validation_alias="IMAGEGEN_OFFLOAD",
        description="Which weights stay in main memory until the GPU needs them: none, the embedding table, the text "
        "encoder, that and the transformer (model), each layer (group). auto: as few as the GPU's memory allows.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        validation_alias="IMAGEGEN_COMPILE",
        description="Compile the transformer's blocks with torch.compile, and record what the text encoder does as a "
        "CUDA graph. auto: on a CUDA GPU.",
    )
    compile_cache: Path | None = Field(
        None,
        validation_alias="IMAGEGEN_COMPILE_CACHE",
        description="A directory for compiled code: read at start, and written after a warm-up that had to compile. "
        "It holds code that is executed: trust it like the image. Unset: each start compiles.",
    )
    warm_up: Literal["auto", "on", "off"] = Field(
        "auto",
        validation_alias="IMAGEGEN_WARM_UP",
        description="Generate images of the usual sizes before the first job. auto: on a CUDA GPU.",
    )
    attention: Literal["auto", "native", "cudnn", "flash", "flash3", "sage"] = Field(
        "auto",
        validation_alias="IMAGEGEN_ATTENTION",
        description="The attention kernel. native is torch's own; sage computes in 8 bits and changes the images. "
        "auto: chosen for the GPU.",
    )
    decoder: str | None = Field(
        None,
        validation_alias="IMAGEGEN_DECODER",
        description="small: FLUX.2-small-decoder, about 1.4 times as fast; or a directory with a diffusers VAE. "
        "Unset: the model's own decoder.",
    )
    prompt_cache_mb: float = Field(
        512.0,
        ge=0,
        validation_alias="IMAGEGEN_PROMPT_CACHE_MB",
        description="Main memory, in megabytes, for the embeddings of recent prompts. One prompt of klein-9b takes "
        "12.6 MB. 0: none are kept.",
    )


class LimitSettings(BaseSettings):
    """Limits"""

    timeout: float = Field(
        600.0,
        ge=1,
        le=3600,
        validation_alias="IMAGEGEN_REQUEST_TIMEOUT",
        description="Most seconds that a job may take, waiting included. A job's own `timeout` may be shorter.",
    )
    max_reference_mb: float = Field(
        20.0, gt=0, validation_alias="IMAGEGEN_MAX_REFERENCE_MB", description="Largest reference image, in megabytes."
    )
    fetch_urls: bool = Field(
        True,
        validation_alias="IMAGEGEN_FETCH_URLS",
        description="Whether a reference image may be an http(s) URL, which the worker downloads.",
    )
    url_hosts: str = Field(
        "",
        validation_alias="IMAGEGEN_URL_HOSTS",
        description="The only hosts to download reference images from, separated by commas. *.example.com: every "
        "subdomain; example.com:8443: one port. Unset: any public host.",
    )
    url_timeout: float = Field(
        20.0,
        gt=0,
        le=600,
        validation_alias="IMAGEGEN_URL_TIMEOUT",
        description="Seconds for downloading one reference image, redirects included.",
    )
    private_hosts: str = Field(
        "",
        validation_alias="IMAGEGEN_PRIVATE_HOSTS",
        description="Hosts without a public address that a job's URLs may still lead to, separated by commas, such as "
        "minio.internal:9000. Unset: none.",
    )
    max_prompt: int = Field(
        4000, ge=1, le=4000, validation_alias="IMAGEGEN_MAX_PROMPT", description="Longest prompt, in characters."
    )
    max_references: int = Field(
        4,
        ge=1,
        le=4,
        validation_alias="IMAGEGEN_MAX_REFERENCES",
        description="Most reference images of one edit. The GPU must have memory for that many.",
    )
    max_images: int = Field(
        8, ge=1, le=8, validation_alias="IMAGEGEN_MAX_IMAGES", description="Most images that one job may ask for."
    )
    max_steps: int = Field(
        50, ge=1, le=50, validation_alias="IMAGEGEN_MAX_STEPS", description="Most steps that a job may ask for."
    )
    max_megapixel_steps: float | None = Field(
        None,
        gt=0,
        validation_alias="IMAGEGEN_MAX_MEGAPIXEL_STEPS",
        description="Most work that a job may ask for: megapixels x steps x images. Unset: no other limit than those "
        "of size, steps and images.",
    )
    max_queue: int = Field(
        16,
        ge=0,
        le=10000,
        validation_alias="IMAGEGEN_MAX_QUEUE",
        description="Jobs that may wait. Over HTTP, more get a 429, and one caller may have three quarters of the "
        "places; from RunPod's queue, no more are taken.",
    )
    max_body_mb: float = Field(
        110.0,
        gt=0,
        validation_alias="IMAGEGEN_MAX_BODY_MB",
        description="Largest body of an HTTP request, and largest input of a RunPod job, in megabytes.",
    )
    stall_timeout: float = Field(
        300.0,
        gt=0,
        validation_alias="IMAGEGEN_STALL_TIMEOUT",
        description="Seconds without a denoising step after which the GPU counts as failed and the process ends.",
    )
    keep_failed: bool = Field(
        False,
        validation_alias="IMAGEGEN_KEEP_FAILED",
        description="Keep the process where the model can never be loaded, and answer with the reason. false: it ends "
        "with status 1.",
    )


class ServerSettings(BaseSettings):
    """The HTTP server"""

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
        description="A second port of the HTTP server, for /ping of RunPod's load balancer. Unset: none.",
    )
    host: str | None = Field(
        None,
        validation_alias="IMAGEGEN_HOST",
        description="The address that the HTTP server listens on. Unset: 127.0.0.1 without a key, 0.0.0.0 with one; in "
        "the container always 0.0.0.0.",
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        validation_alias="IMAGEGEN_METRICS_PORT",
        description="A port for /metrics alone, without a key; /metrics is not on the other ports then. Unset: none.",
    )
    api_key: SecretStr | None = Field(
        None,
        validation_alias="IMAGEGEN_API_KEY",
        description="Keys, separated by commas, of which every HTTP request must send one, except to /, /health and "
        "/ping. Each has at least 16 characters, and may have a name: alice:KEY. Unset: no key is needed.",
    )
    allowed_hosts: str = Field(
        "",
        validation_alias="IMAGEGEN_ALLOWED_HOSTS",
        description="Host names that the HTTP server answers for, separated by commas; *.example.com: every subdomain; "
        "*: any. Unset: any with a key; without one localhost and IP addresses.",
    )
    trusted_proxies: str = Field(
        "",
        validation_alias="IMAGEGEN_TRUSTED_PROXIES",
        description="Addresses or networks (10.0.0.0/8) of proxies, separated by commas, whose X-Forwarded-For is "
        "believed. Unset: none.",
    )
    docs: bool = Field(
        True, validation_alias="IMAGEGEN_DOCS", description="Serve /docs and /openapi.json, the API's documentation."
    )
    cors_origins: str = Field(
        "",
        validation_alias="IMAGEGEN_CORS_ORIGINS",
        description="Origins whose web pages may call the HTTP server, separated by commas. Unset: only its own.",
    )


class RunPodSettings(BaseSettings):
    """RunPod"""

    queue_url: SecretStr | None = Field(
        None,
        validation_alias="RUNPOD_WEBHOOK_GET_JOB",
        description="Set by RunPod: the address of its queue. Without it `python handler.py` runs test_input.json.",
    )
    runpod_id: str | None = Field(
        None,
        validation_alias=AliasChoices("RUNPOD_ENDPOINT_ID", "RUNPOD_POD_ID"),
        description="Set by RunPod. With it, logs are JSON.",
    )
    max_result_mb: float = Field(
        20.0,
        gt=0,
        validation_alias="IMAGEGEN_MAX_RESULT_MB",
        description="Largest answer to RunPod, in megabytes as sent. A job of /run may send at most 10.",
    )
    progress: bool = Field(
        True,
        validation_alias="IMAGEGEN_PROGRESS",
        description="Report a running job's progress to RunPod, once a second.",
    )
    stream: bool = Field(
        False,
        validation_alias="IMAGEGEN_STREAM",
        description="Stream steps and previews of RunPod jobs (/stream). Their output is then the list of events.",
    )


class OutputSettings(BaseSettings):
    """Images: where they go, and their signature"""

    output_dir: Path = Field(
        Path("outputs"),
        validation_alias="IMAGEGEN_OUTPUT_DIR",
        description="Where `python handler.py --test_input` writes its images.",
    )
    bucket_endpoint_url: str | None = Field(
        None,
        validation_alias="BUCKET_ENDPOINT_URL",
        description="URL of an S3 object store, for `delivery: url`. It may hold the bucket, in its host or its path: "
        "https://my-bucket.s3.eu-central-1.amazonaws.com or https://ACCOUNT.r2.cloudflarestorage.com/my-bucket.",
    )
    bucket_access_key_id: SecretStr | None = Field(
        None, validation_alias="BUCKET_ACCESS_KEY_ID", description="Key id for the object store."
    )
    bucket_secret_access_key: SecretStr | None = Field(
        None, validation_alias="BUCKET_SECRET_ACCESS_KEY", description="Secret key for the object store."
    )
    bucket_name: str | None = Field(
        None, validation_alias="BUCKET_NAME", description="The bucket, if BUCKET_ENDPOINT_URL does not hold it."
    )
    bucket_region: str | None = Field(
        None,
        validation_alias="BUCKET_REGION",
        description="The bucket's region, if BUCKET_ENDPOINT_URL does not name it. A store that names another region "
        "is asked again there.",
    )
    url_expiry: int = Field(
        86400,
        ge=60,
        le=604800,
        validation_alias="IMAGEGEN_URL_EXPIRY",
        description="Seconds that an image's URL is valid, at most a week (the limit of AWS's signatures).",
    )
    c2pa_certificate: str | None = Field(
        None,
        validation_alias="IMAGEGEN_C2PA_CERTIFICATE",
        description="Certificate chain for signing images by C2PA, the signer's first: PEM, or a file with it. "
        "Unset: images are not signed.",
    )
    c2pa_key: SecretStr | None = Field(
        None,
        validation_alias="IMAGEGEN_C2PA_KEY",
        description="The private key of that certificate: PEM without a password, or a file with it.",
    )


class LogSettings(BaseSettings):
    """The log"""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", validation_alias="LOG_LEVEL", description="The least severe level that is logged."
    )
    log_format: Literal["auto", "json", "plain"] = Field(
        "auto",
        validation_alias="IMAGEGEN_LOG_FORMAT",
        description="Format of the log. auto: JSON on RunPod, plain text elsewhere.",
    )
    otlp_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        description="Where OpenTelemetry's traces are sent (OTLP over HTTP). The SDK reads the other OTEL_* settings.",
    )
    log_prompts: bool = Field(
        False, validation_alias="IMAGEGEN_LOG_PROMPTS", description="Write each job's prompt into its log line."
    )
