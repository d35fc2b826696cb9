"""Pictures into an object store that speaks S3, and out again by a presigned URL.

A store is the worker's own (BUCKET_ENDPOINT_URL and its siblings) or a job's (RunPod's `s3Config`). Both name it as
RunPod does: the URL may hold the bucket, in its host (https://my-bucket.s3.eu-central-1.amazonaws.com) or as its path
(https://ACCOUNT.r2.cloudflarestorage.com/my-bucket). AWS, Cloudflare R2, Backblaze B2, DigitalOcean Spaces, MinIO and
their like are all the same here; RunPod's own S3 API is not, since it has no presigned URLs.

No error holds a key, a secret, a host's name or a signed URL.
"""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any, Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from imagegen import __version__
from imagegen.errors import ConfigurationError, DeliveryFailed, InvalidInput
from imagegen.inputs import addresses
from imagegen.settings import Settings

log = logging.getLogger(__name__)
# At DEBUG botocore logs signatures and signed URLs.
logging.getLogger("botocore").setLevel(logging.INFO)

#: Seconds to connect; over plain http also the time that the whole picture may take to be sent (urllib3 sends it in
#: one call of this timeout; under TLS each record has its own). And seconds that the store may be silent.
_CONNECT_SECONDS, _READ_SECONDS = 5, 10
#: A store that answers 5xx or breaks off is asked once more; a dead one then costs ten seconds, and not a minute.
_ATTEMPTS = 2
#: Of a name with many addresses so many are tried: one of either kind.
_ADDRESSES = 2
#: Signing a request wants a region where the URL names none; R2, Spaces and MinIO take this one.
_DEFAULT_REGION = "us-east-1"

#: BUCKET.s3.REGION.DOMAIN (AWS, Backblaze, Wasabi, Scaleway and more), AWS's older forms, BUCKET.REGION.digitalocean...
_HOST = re.compile(
    r"(?:(?P<bucket>[a-z0-9.-]+?)\.)?"
    r"(?P<store>s3(?:[.-](?:dualstack\.)?(?P<region>[a-z0-9-]+))?\.(?P<domain>[a-z0-9-]+(?:\.[a-z0-9-]+)+)"
    r"|[a-z0-9-]+\.(?P<spaces>digitaloceanspaces\.com))"
)
#: Here the labels before "s3" are a bucket for certain. Elsewhere they may be a server's name.
_KNOWN = {"amazonaws.com", "amazonaws.com.cn", "backblazeb2.com", "wasabisys.com", "digitaloceanspaces.com"}
#: botocore's own bounds.
_LABEL = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/*")
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_CODE = re.compile(r"[A-Za-z0-9]{1,40}")


class _Names(NamedTuple):
    """What the four values are called where they come from, for errors."""

    endpoint: str
    access_key_id: str
    secret: str
    bucket: str


_VARIABLES = _Names("BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY", "BUCKET_NAME")
_FIELDS = _Names("s3Config.endpointUrl", "s3Config.accessId", "s3Config.accessSecret", "s3Config.bucketName")


@dataclass(frozen=True)
class ObjectStore:
    """A bucket and who may write to it.

    Args:
        endpoint_url: the store, without the bucket.
        addressing: "virtual": the bucket goes into the host's name, as the URL had it; "path": into the path.
        expiry: seconds that a presigned URL is good for.
        strangers: a job named it: it must have a public address, or be one of `private_hosts`.
    """

    endpoint_url: str
    bucket: str
    region: str
    addressing: Literal["virtual", "path"]
    access_key_id: str = field(repr=False)
    secret_access_key: SecretStr
    expiry: int
    strangers: bool = False
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
        )
        if not any(values):
            return None
        try:
            return cls._from(values, _VARIABLES, settings.url_expiry)
        except InvalidInput as error:
            raise ConfigurationError(error.message) from None

    @classmethod
    def from_job(cls, config: Any, settings: Settings) -> ObjectStore:
        """The store that a job brings: RunPod's {accessId, accessSecret, bucketName, endpointUrl}. Its address is
        checked when it is connected to (`install_ssrf_guard`); one that is written in the URL, already here.

        Raises:
            InvalidInput: naming the field at fault, such as "s3Config.bucketName"; it never shows what the field held.
        """
        if not isinstance(config, dict):
            keys = ", ".join(name.split(".")[1] for name in _FIELDS)
            raise InvalidInput(f"s3Config: must be an object with {keys}", "s3Config")
        store = cls._from(tuple(config.get(name.split(".")[1]) for name in _FIELDS), _FIELDS, settings.url_expiry)
        url = urlsplit(store.endpoint_url)
        host = str(url.hostname)
        trusted = addresses.named(host, url.port, settings.private_hosts)
        if _is_address(host) and not trusted and not addresses.is_public(host):
            raise InvalidInput(f"{_FIELDS.endpoint}: must have a public address", _FIELDS.endpoint)
        return replace(store, strangers=True, private_hosts=settings.private_hosts)

    @classmethod
    def _from(cls, values: tuple[Any, ...], names: _Names, expiry: int) -> ObjectStore:
        """Checks the four values, in the order of their names; the errors are a caller's, InvalidInput."""
        texts = [_text(value, name) for value, name in zip(values, names, strict=True)]
        for text, name in zip(texts[:3], names[:3], strict=True):
            if not text:
                raise InvalidInput(f"{name}: is missing; an object store needs {', '.join(names[:3])}", name)
        endpoint, key, secret, bucket = texts
        url, bucket, region, virtual = _resolve(_check_endpoint(endpoint, names.endpoint), bucket, names)
        return cls(url, bucket, region, "virtual" if virtual else "path", key, SecretStr(secret), expiry)

    def put(self, key: str, data: bytes, content_type: str) -> str:
        """Uploads an object, in place of one that is there, and returns a presigned URL for it. Blocks: for a thread.

        Raises:
            DeliveryFailed: the store could not be reached, refused the credentials, has no such bucket, or failed.
        """
        # Imported where it is used: it takes a fifth of a second, and most jobs come back as base64.
        from botocore import exceptions as boto

        place = {"Bucket": self.bucket, "Key": key}
        try:
            client = _client(self)
            client.put_object(**place, Body=data, ContentType=content_type)
            return str(client.generate_presigned_url("get_object", Params=place, ExpiresIn=self.expiry))
        except boto.SSLError:
            cause = "could not be reached: no secure connection could be made to it"
        except (boto.ConnectionError, boto.HTTPClientError) as error:
            cause = f"could not be reached ({type(error).__name__})"
        except boto.ClientError as error:
            cause = _refusal(error.response)
        except boto.BotoCoreError as error:
            cause = f"could not be used ({type(error).__name__})"
        log.warning("the object store %s", cause)
        raise DeliveryFailed(f"the object store {cause}") from None


def object_key(job_id: str, number: int, extension: str) -> str:
    """The key of a job's picture: the same each time that the job is done, and none but this job's.

    An id that is not plain letters, digits, "-" and "_" (128 at most) is replaced by its hash, after a "_" that no
    plain id begins with.
    """
    if not _JOB_ID.fullmatch(job_id):
        job_id = "_" + hashlib.sha256(job_id.encode(errors="surrogatepass")).hexdigest()[:32]
    return f"{job_id}/{number}.{extension}"


def _text(value: Any, name: str) -> str:
    """One of the four values without the spaces around it, empty if it is not there. What it holds is never shown."""
    text = "" if value is None else value.strip() if isinstance(value, str) else "\n"
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


def _resolve(url: SplitResult, bucket: str, names: _Names) -> tuple[str, str, str, bool]:
    """Takes the bucket out of a checked URL: the URL without it, the bucket, the region, whether it was in the host."""
    host, path = str(url.hostname), url.path.rstrip("/")
    match = _HOST.fullmatch(host)
    in_host = match["bucket"] if match else None
    region = (match["region"] if match else None) or _DEFAULT_REGION
    if match and in_host and bucket not in ("", in_host):
        if (match["domain"] or match["spaces"]) in _KNOWN:
            text = f"is not the bucket that {names.endpoint} names; leave one of them out"
            raise InvalidInput(f"{names.bucket}: {text}", names.bucket)
        in_host = None
    if match and in_host:
        if path:
            raise InvalidInput(f"{names.endpoint}: names the bucket in its host, and must end there", names.endpoint)
        host, bucket = match["store"], in_host
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
    return f"{url.scheme}://{netloc}{path}", bucket, region, in_host is not None and "." not in bucket


_making = threading.Lock()


@lru_cache(maxsize=8)
def _client(store: ObjectStore) -> Any:
    """The client of a store, kept for its connections. boto3's clients are thread-safe; what makes them is not."""
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": store.addressing},
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        # Many stores do not know the checksums that AWS has added; the signature covers the bytes as it is.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent=f"image-gen/{__version__}",
        # A proxy would look up the name itself, behind our back.
        proxies={} if store.strangers else None,
    )
    with _making:
        client = boto3.client(
            "s3",
            endpoint_url=store.endpoint_url,
            region_name=store.region,
            aws_access_key_id=store.access_key_id,
            aws_secret_access_key=store.secret_access_key.get_secret_value(),
            config=config,
        )
    client.meta.events.register("before-call.s3", _disable_region_redirect)
    if store.strangers:
        install_ssrf_guard(client, store.private_hosts)
    return client


def install_ssrf_guard(client: Any, private_hosts: str) -> None:
    """Lets a client connect to public addresses alone. A name is looked up once, and what it meant is connected to; an
    address that is refused is, to the caller, one that does not answer. botocore has no public place for this: it rests
    on names inside of it, which is pinned, and tests/outputs/test_store_addresses.py would see them go."""
    from botocore import awsrequest

    class Plain(awsrequest.AWSHTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self, super()._new_conn, private_hosts)

    class Secure(awsrequest.AWSHTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self, super()._new_conn, private_hosts)

    class PlainPool(awsrequest.AWSHTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(awsrequest.AWSHTTPSConnectionPool):
        ConnectionCls = Secure

    client._endpoint.http_session._pool_classes_by_scheme.update(http=PlainPool, https=SecurePool)


def _connect(connection: Any, connect: Callable[[], socket.socket], private_hosts: str) -> socket.socket:
    """Opens urllib3's socket to an address that has been checked; the name stays what the certificate must hold."""
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    name, port = connection._dns_host, connection.port
    error: Exception = NewConnectionError(connection, "no public address")
    try:
        found = dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
        for address in found:
            addresses.check(address, addresses.named(name, port, private_hosts))
    except (socket.gaierror, UnicodeError):
        raise error from None
    for address in list(found)[:_ADDRESSES]:
        try:
            connection._dns_host = address
            return connect()
        except (NewConnectionError, ConnectTimeoutError) as failure:  # the next one may answer
            error = failure
        finally:
            connection._dns_host = name
    raise error


def _disable_region_redirect(params: dict[str, Any], **_: Any) -> None:
    """Keeps botocore from following a store to another region: one that answers 307 to everything has no end."""
    params["context"]["s3_redirected"] = True


def _refusal(response: Any) -> str:
    """A store's refusal in our words; of its own only the code, such as SlowDown."""
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = str(response.get("Error", {}).get("Code"))
    shown = code if _CODE.fullmatch(code) else str(status)
    if code == "NoSuchBucket" or status == 404:
        return f"has no such bucket ({shown})"
    if status in (401, 403):
        return f"refused the credentials, or they may not write to this bucket ({shown})"
    if status in (301, 302, 307, 308) or code == "AuthorizationHeaderMalformed":
        return f"has the bucket in another region, which its URL must name ({shown})"
    return f"did not take the picture ({shown})"
