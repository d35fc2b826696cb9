"""Where LoRA adapters come from: the files that the settings name, the hub, an object store, and URLs."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from imagegen.errors import BadLora, BadReference, ConfigurationError, ImageGenError
from imagegen.inputs import addresses
from imagegen.lora import header
from imagegen.lora.header import Broken, Header
from imagegen.models import ModelSpec
from imagegen.outputs.object_store import ObjectStore
from imagegen.settings import Settings
from imagegen.weights.files import write_whole
from imagegen.weights.sources import find_in_caches

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})(?:/(?P<file>[\w./-]+\.safetensors))?")
_ENDING = ".safetensors"
#: Seconds for one adapter by URL: 730 MB at 2.5 MB a second.
_SECONDS = 300.0


@dataclass(frozen=True)
class Entry:
    """An adapter that jobs may name: its file, and what its header says; or, where it cannot be used, why."""

    name: str
    file: Path
    header: Header | None = None
    fault: str | None = None


def list_entries(settings: Settings, spec: ModelSpec, fetch: bool = True) -> dict[str, Entry]:
    """The adapters of IMAGEGEN_LORAS by name, their headers checked against a model. A broken one is logged.

    Args:
        fetch: those that are not on this machine are downloaded; False: they are left out.

    Raises:
        ConfigurationError: the setting is wrong, or an adapter cannot be fetched.
    """
    found: dict[str, Entry] = {}
    for part in filter(None, map(str.strip, settings.loras.split(","))):
        for name, file in _files(part, settings, spec, fetch):
            if name in found:
                raise ConfigurationError(f"IMAGEGEN_LORAS: {name} comes twice")
            found[name] = check(name, file, settings, spec)
            if fetch and (fault := found[name].fault) is not None:  # at the start, and not each time that it is listed
                log.warning("the LoRA %s cannot be used: it %s", name, fault)
    return found


def check_file(file: Path, settings: Settings, spec: ModelSpec) -> Header:
    """The header of a file.

    Raises:
        Broken: it is no adapter of the model.
    """
    try:
        return header.read(file, spec, settings.lora_rank)
    except OSError as error:
        raise Broken(f"cannot be read ({type(error).__name__})") from None


def check(name: str, file: Path, settings: Settings, spec: ModelSpec) -> Entry:
    """What the header of a file says of it."""
    try:
        return Entry(name, file, check_file(file, settings, spec))
    except Broken as error:
        return Entry(name, file, fault=str(error))


def _files(part: str, settings: Settings, spec: ModelSpec, fetch: bool) -> list[tuple[str, Path]]:
    """The names and files of one part of the setting."""
    name, equals, source = part.partition("=")
    if not equals:
        folder = Path(part).expanduser()
        if not folder.is_dir():
            raise ConfigurationError(f"IMAGEGEN_LORAS: {_shown(part)} is no directory; others are written NAME=SOURCE")
        files = sorted(file for file in folder.iterdir() if file.name.endswith(_ENDING))
        for file in files:
            if fetch and not _NAME.fullmatch(file.name.removesuffix(_ENDING)):
                log.warning("the LoRA %s is passed over: a name has letters, digits, '.', '_' and '-'", file.name)
        return [(n, f) for f in files if _NAME.fullmatch(n := f.name.removesuffix(_ENDING))]
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"IMAGEGEN_LORAS: {_shown(name)!r} is no name; it has letters, digits, '.', '_' and '-'"
        )
    if (hub := _HUB.fullmatch(source)) is not None:
        path = _from_hub(name, hub["repository"], hub["commit"], hub["file"], settings, spec, fetch)
    elif source.startswith(("s3://", "https://")):
        path = _from_address(name, source, settings, spec, fetch)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise ConfigurationError(
                f"IMAGEGEN_LORAS: {name}: {_shown(source)} is no file, owner/repository@commit, s3:// or https:// "
                "address"
            )
    return [] if path is None else [(name, path)]


def _shown(source: str) -> str:
    """What was written in the setting, without what may be a secret: a user's password, a signature."""
    return re.sub(r"//[^/]*@", "//", re.split(r"[?&#]", source)[0])


def _from_hub(
    name: str, repository: str, commit: str, file: str | None, settings: Settings, spec: ModelSpec, fetch: bool
) -> Path | None:
    """A file of a repository, from a cache on this machine or from the hub."""

    def fault_of(folder: Path) -> str | None:
        return None if _single(folder, file) else "it holds not that one file"

    folder = find_in_caches(repository, commit, settings, fault_of)
    if folder is not None:
        return _single(folder, file)
    if not fetch:
        return None
    from huggingface_hub import HfApi, hf_hub_download

    token = settings.hugging_face_token.get_secret_value() if settings.hugging_face_token else False
    most = header.most_bytes(spec, settings.lora_rank)
    try:
        info = HfApi(token=token).model_info(repository, revision=commit, files_metadata=True)
        sizes = {one.rfilename: one.size or 0 for one in info.siblings or () if one.rfilename.endswith(_ENDING)}
        wanted = [one for one in sizes if file in (None, one)]
        if len(wanted) != 1:
            raise ConfigurationError(
                f"IMAGEGEN_LORAS: {name}: {repository}@{commit[:8]} holds {len(sizes)} safetensors files; "
                f"name one: {', '.join(sorted(sizes)[:5])}"
            )
        if sizes[wanted[0]] > most:
            raise ConfigurationError(
                f"IMAGEGEN_LORAS: {name}: has {sizes[wanted[0]] / 1e6:.0f} MB; {most / 1e6:.0f} MB are allowed "
                "(IMAGEGEN_LORA_RANK)"
            )
        cache = settings.hf_home.expanduser() / "hub"
        return Path(hf_hub_download(repository, wanted[0], revision=commit, cache_dir=cache, token=token))
    except ConfigurationError:
        raise
    except Exception as error:  # the hub's client lets errors of several HTTP libraries through
        raise ConfigurationError(
            f"IMAGEGEN_LORAS: {name}: {repository}@{commit[:8]} cannot be downloaded ({type(error).__name__})"
        ) from error


def _single(folder: Path, file: str | None) -> Path | None:
    files = [folder / file] if file else sorted(folder.rglob(f"*{_ENDING}"))
    return files[0] if len(files) == 1 and files[0].is_file() else None


def _from_address(name: str, address: str, settings: Settings, spec: ModelSpec, fetch: bool) -> Path | None:
    """A file behind an s3:// or https:// address, kept beside the hub's cache under the address's hash. One that came
    broken, or broke on the disk, is fetched anew at the next start."""
    kept = settings.hf_home.expanduser() / "loras" / f"{hashlib.sha256(address.encode()).hexdigest()}{_ENDING}"
    there = kept.is_file()
    if not fetch or (there and check(name, kept, settings, spec).fault is None):
        return kept if there else None
    try:
        url, settings = _presigned(address, settings) if address.startswith("s3://") else (address, settings)
        data = asyncio.run(download(url, "IMAGEGEN_LORAS", settings, spec, hosts=""))
        write_whole(data, kept)
    except ImageGenError as error:
        cause = error.message.removeprefix("IMAGEGEN_LORAS: ")
        raise ConfigurationError(f"IMAGEGEN_LORAS: {name}: {cause}") from None
    except OSError as error:
        raise ConfigurationError(f"IMAGEGEN_LORAS: {name}: HF_HOME cannot be written to ({error.strerror})") from None
    return kept


def _presigned(address: str, settings: Settings) -> tuple[str, Settings]:
    """An https URL of an object in the worker's own store, and settings that let it be private."""
    from imagegen.outputs.upload import presign

    parts, store = urlsplit(address), ObjectStore.from_settings(settings)
    if store is None:
        raise ConfigurationError("IMAGEGEN_LORAS: s3:// needs an object store (BUCKET_ENDPOINT_URL)")
    url = presign(replace(store, bucket=parts.netloc), parts.path.removeprefix("/"))
    place = urlsplit(url)
    trusted = f"{place.hostname}:{place.port or (443 if place.scheme == 'https' else 80)}"
    return url, settings.model_copy(update={"private_hosts": f"{settings.private_hosts},{trusted}"})


async def download(url: str, field: str, settings: Settings, spec: ModelSpec, hosts: str) -> bytes:
    """The bytes behind a URL, as many as an adapter of the largest rank may have.

    Args:
        field: its name in errors.
        hosts: those that are allowed; empty: any.

    Raises:
        BadLora, PayloadTooLarge: it cannot be downloaded.
    """
    from imagegen.inputs import fetching

    limits = {
        "fetch_urls": True,
        "url_hosts": hosts,
        "url_timeout": _SECONDS,
        "max_reference_mb": header.most_bytes(spec, settings.lora_rank) / 1e6,
    }
    scheme = urlsplit(url).scheme  # of its redirects too: none leads from https to http
    try:
        return await fetching.fetch(url, field, settings.model_copy(update=limits), [scheme])
    except BadReference as error:
        raise BadLora(error.message, field) from None


def check_host(url: str, field: str, settings: Settings) -> None:
    """Raises BadLora where the operator allows no adapters from a URL's host."""
    try:
        parts = urlsplit(url)
        allowed = parts.scheme == "https" and bool(parts.hostname)
        allowed = allowed and addresses.named(str(parts.hostname), parts.port or 443, settings.lora_hosts)
    except ValueError:
        allowed = False
    if not allowed:
        raise BadLora(f"{field}: LoRAs are not fetched from there; https and hosts of a list are allowed", field)
