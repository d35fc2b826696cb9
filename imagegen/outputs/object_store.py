"""Images into an object store that speaks S3, and out again by a presigned URL.

A store is the worker's own (BUCKET_ENDPOINT_URL and its siblings) or a job's (RunPod's `s3Config`). Both name it as
RunPod does: the URL may hold the bucket, in its host (https://my-bucket.s3.eu-central-1.amazonaws.com) or as its path
(https://ACCOUNT.r2.cloudflarestorage.com/my-bucket). AWS, Cloudflare R2, Backblaze B2, DigitalOcean Spaces, MinIO and
their like are all the same here; RunPod's own S3 API is not, since it has no presigned URLs.

This module knows what a URL means; `imagegen.outputs.upload` talks to the store. No error holds a key, a secret, a
host's name or a signed URL.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address, ip_address
from typing import Any, Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from imagegen.contract.given import is_given
from imagegen.errors import ConfigurationError, InvalidInput
from imagegen.inputs import addresses
from imagegen.outputs.store_hosts import Host
from imagegen.settings import Settings

#: Signing a request needs a region where the URL names none; R2, Spaces and MinIO take this one.
_DEFAULT_REGION = "us-east-1"

#: botocore's own bounds.
_LABEL = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/*")
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_REGION = re.compile(r"[a-z0-9-]{1,64}")


class _Names(NamedTuple):
    """What the values are called where they come from, for errors."""

    endpoint: str
    access_key_id: str
    secret: str
    bucket: str
    region: str


_VARIABLES = _Names(
    "BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY", "BUCKET_NAME", "BUCKET_REGION"
)
_FIELDS = _Names(
    "s3Config.endpointUrl", "s3Config.accessId", "s3Config.accessSecret", "s3Config.bucketName", "s3Config.region"
)


@dataclass
class ObjectStore:
    """A bucket and who may write to it.

    Args:
        endpoint_url: the store, without the bucket.
        region: what requests and URLs are signed for; an upload changes it where the store names another.
        addressing: "virtual": the bucket goes into the host's name, as the URL had it; "path": into the path.
        expiry: seconds that a presigned URL is good for.
        untrusted: a job named it: it must have a public address, or be one of `private_hosts`.
    """

    endpoint_url: str
    bucket: str
    region: str
    addressing: Literal["virtual", "path"]
    access_key_id: str = field(repr=False)
    secret_access_key: SecretStr
    expiry: int
    untrusted: bool = False
    private_hosts: str = ""

    @classmethod
    def from_settings(cls, settings: Settings) -> ObjectStore | None:
        """The worker's own store, None where no variable names one.

        Raises:
            ConfigurationError: a variable is missing beside the others, or wrong.
        """
        key, secret = settings.bucket_access_key_id, settings.bucket_secret_access_key
        values = (
            settings.bucket_endpoint_url,
            key and key.get_secret_value(),
            secret and secret.get_secret_value(),
            settings.bucket_name,
            settings.bucket_region,
        )
        if not any(values):
            return None
        try:
            return cls._from(values, _VARIABLES, settings.url_expiry)
        except InvalidInput as error:
            raise ConfigurationError(error.message) from None

    @classmethod
    def from_job(cls, config: Any, settings: Settings) -> ObjectStore:
        """The store that a job brings: RunPod's {accessId, accessSecret, bucketName, endpointUrl}, and `region`. Its
        address is checked when it is connected to; one that is written in the URL, already here.

        Raises:
            InvalidInput: naming the field at fault, such as "s3Config.bucketName"; it never shows what the field held.
        """
        if not isinstance(config, dict):
            keys = ", ".join(name.split(".")[1] for name in _FIELDS[:4])
            raise InvalidInput(f"s3Config: must be an object with {keys}", "s3Config")
        store = cls._from(tuple(config.get(name.split(".")[1]) for name in _FIELDS), _FIELDS, settings.url_expiry)
        store = replace(store, untrusted=True, private_hosts=settings.private_hosts)
        url = urlsplit(store.url_of(""))
        host = str(url.hostname)
        if not store.trusts(host, url.port):
            if _is_address(host) and not addresses.is_public(host):
                raise InvalidInput(f"{_FIELDS.endpoint}: must have a public address", _FIELDS.endpoint)
            if url.port and not addresses.is_web_port(url.port):
                text = "its port is no web server's; 80, 443 and most from 1024 on are allowed"
                raise InvalidInput(f"{_FIELDS.endpoint}: {text}", _FIELDS.endpoint)
        return store

    @classmethod
    def _from(cls, values: tuple[Any, ...], names: _Names, expiry: int) -> ObjectStore:
        """Checks the values, in the order of their names; the errors are a caller's, InvalidInput."""
        texts = [_text(value, name) for value, name in zip(values, names, strict=True)]
        for text, name in zip(texts[:3], names[:3], strict=True):
            if not text:
                raise InvalidInput(f"{name}: is missing; an object store needs {', '.join(names[:3])}", name)
        endpoint, key, secret, bucket, region = texts
        region = region.lower()
        if region and not _REGION.fullmatch(region):
            raise InvalidInput(f"{names.region}: must be small letters, digits and -, as in eu-central-1", names.region)
        url, bucket, in_url, virtual = _resolve(_check_endpoint(endpoint, names.endpoint), bucket, names)
        addressing: Literal["virtual", "path"] = "virtual" if virtual else "path"
        return cls(url, bucket, region or in_url or _DEFAULT_REGION, addressing, key, SecretStr(secret), expiry)

    def url_of(self, key: str) -> str:
        """An object's URL, unsigned. A key holds letters, digits, "-", "_", "." and "/" alone."""
        if self.addressing == "virtual":
            scheme, _, rest = self.endpoint_url.partition("://")
            return f"{scheme}://{self.bucket}.{rest}/{key}"
        return f"{self.endpoint_url}/{self.bucket}/{key}"

    def trusts(self, host: str, port: int | None) -> bool:
        """Whether a host may have any address: the worker's own store, or one of the operator's list."""
        return not self.untrusted or addresses.named(host, port, self.private_hosts)

    def endpoint_in(self, region: str) -> str | None:
        """The store's URL in another region, within the same domain; None where its host does not name a region."""
        url = urlsplit(self.endpoint_url)
        host = Host.parse(str(url.hostname))
        name = host and host.in_region(region)
        return url._replace(netloc=name + (f":{url.port}" if url.port else "")).geturl() if name else None


def object_key(job_id: str, number: int, extension: str) -> str:
    """The key of a job's image: the same each time that the job is done, and none but this job's.

    An id that is not plain letters, digits, "-" and "_" (128 at most) is replaced by its hash, after a "_" that no
    plain id begins with.
    """
    if not _JOB_ID.fullmatch(job_id):
        job_id = "_" + hashlib.sha256(job_id.encode(errors="surrogatepass")).hexdigest()[:32]
    return f"{job_id}/{number}.{extension}"


def _text(value: Any, name: str) -> str:
    """One of the values without the spaces around it, empty if it is not there. What it holds is never shown."""
    text = "" if not is_given(value) else value.strip() if isinstance(value, str) else "\n"
    if not re.fullmatch(r"[!-~]{0,2048}", text):
        raise InvalidInput(f"{name}: must be a string of printable ASCII characters without spaces", name)
    return text


def _check_endpoint(url: str, name: str) -> SplitResult:
    """Checks how a store's URL is written."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        known = IPv6Address(host) if ":" in host else _HOST_NAME.fullmatch(host)
        if not known or parts.port == 0 or parts.scheme not in ("http", "https"):
            raise ValueError
    except ValueError:
        raise InvalidInput(
            f"{name}: is not a URL of an object store, such as https://s3.eu-central-1.amazonaws.com", name
        ) from None
    if "@" in parts.netloc:
        raise InvalidInput(f"{name}: must hold no user name or password; they are given apart", name)
    if parts.query or parts.fragment or not _PATH.fullmatch(parts.path):
        raise InvalidInput(f"{name}: must end after its host or path, without ? and #", name)
    return parts


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _resolve(url: SplitResult, bucket: str, names: _Names) -> tuple[str, str, str | None, bool]:
    """Takes the bucket out of a checked URL: the URL without it, the bucket, the region that it names, whether the
    bucket was in the host."""
    host, path = str(url.hostname), url.path.rstrip("/")
    known = Host.parse(host)
    in_host = known.bucket if known else None
    if known and in_host and bucket not in ("", in_host):
        if known.certain:
            text = f"is not the bucket that {names.endpoint} names; leave one of them out"
            raise InvalidInput(f"{names.bucket}: {text}", names.bucket)
        in_host = None
    if known and (in_host or not known.bucket):
        host = known.store
    if in_host:
        if path:
            raise InvalidInput(f"{names.endpoint}: names the bucket in its host, and must end there", names.endpoint)
        bucket = in_host
    elif bucket:
        path = path.removesuffix(f"/{bucket}")
    elif path.count("/") == 1:
        path, bucket = "", path[1:]
    else:
        text = f"is missing, and {names.endpoint} does not name the bucket either"
        raise InvalidInput(f"{names.bucket}: {text}", names.bucket)
    if not _BUCKET.fullmatch(bucket):
        raise InvalidInput(f"{names.bucket}: must be letters, digits, dots, - and _, 255 at most", names.bucket)
    netloc = (f"[{host}]" if ":" in host else host) + (f":{url.port}" if url.port else "")
    # A certificate's * stands for one label: with a dot in its name, a bucket is addressed in the path.
    virtual = in_host is not None and "." not in bucket
    return f"{url.scheme}://{netloc}{path}", bucket, known.region if known else None, virtual
