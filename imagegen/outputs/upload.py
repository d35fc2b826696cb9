"""One exchange with an object store: signed uploads, and what a store may answer.

Requests and URLs are signed by botocore and sent by aiohttp, through connections whose addresses are checked
(`imagegen.inputs.connections`), since nothing bounds the answers of botocore's own client: of an error it reads every
byte, and its timeout is for one read. Here a deadline covers all objects of a job, and of an answer so many bytes are
read. A store that a job names and the worker's own are alike, but that the latter may have a private address and be
behind the environment's HTTP proxy; no thread and no connection is shared between stores.

No error says more of a store than its code. Until it has answered there is one error for all that may be wrong, as for
references by URL.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar
from urllib.request import getproxies, proxy_bypass

import aiohttp
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from yarl import URL

from imagegen.errors import DeliveryFailed
from imagegen.inputs import connections
from imagegen.outputs.object_store import ObjectStore

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
# At DEBUG botocore logs signatures and signed URLs.
logging.getLogger("botocore").setLevel(logging.INFO)

#: A job's upload may take this many seconds, and one more for each so many bytes.
_SECONDS, _BYTES_PER_SECOND = 20, 500_000
#: Seconds to connect, TLS included, and seconds that the store may be silent.
_CONNECT_SECONDS, _READ_SECONDS = 5, 10
#: A store that answers 5xx or breaks off is asked once more; a dead one then costs ten seconds, and not a minute.
_ATTEMPTS = 2
#: Before that. A store that wants to be left alone for longer gets no image.
_PAUSE_SECONDS = 0.5
#: The region first signed for, the one that the store names, and once more at the host of that one.
_REGIONS = 3
#: Of an answer. An error is some hundred bytes of XML.
_ANSWER_BYTES = 65_536

#: Threads that sign, for stores of jobs and for the worker's own: nobody else keeps that one waiting.
_SIGNERS = {untrusted: ThreadPoolExecutor(2, "sign") for untrusted in (True, False)}

_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9]{1,40})\s*</Code>")
_REGION = re.compile(r"[a-z0-9-]{1,32}")
_REGION_TAG = re.compile(rb"<Region>\s*([a-z0-9-]{1,32})\s*</Region>")
#: With the name of a region: the bucket is there.
_ELSEWHERE = (301, 302, 303, 307, 308, 400)
#: Refusals of who asks, with status 400 too.
_CREDENTIALS = {"ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "TokenRefreshRequired"}
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}


class _Answer(NamedTuple):
    """What a store said of an upload.

    Args:
        code: S3's name of an error, such as SlowDown; empty where there is none.
        region: where it says that the bucket is, if it does.
        stored: it is S3's answer to an object that was taken, with its ETag.
    """

    status: int
    code: str
    region: str | None
    stored: bool = False


class _Refused(Exception):
    """The store did not take an object; the text says why, after "the object store"."""


async def put(store: ObjectStore, objects: Sequence[tuple[str, bytes]], content_type: str) -> list[str]:
    """Uploads objects (key, bytes) side by side, in place of those that exist, and returns a presigned URL for each.

    Raises:
        DeliveryFailed: the store could not be reached, refused the credentials, has no such bucket, or failed.
    """
    seconds = _SECONDS + sum(len(data) for _, data in objects) / _BYTES_PER_SECOND
    uploads = [asyncio.ensure_future(_put(store, key, data, content_type)) for key, data in objects]
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.gather(*uploads)
    except _Refused as refusal:
        cause = str(refusal)
    except TimeoutError:
        cause = f"did not take the images within {seconds:.0f} s"
    finally:
        for upload in uploads:  # one that fails is enough
            upload.cancel()
    log.warning("the object store %s", cause)
    raise DeliveryFailed(f"the object store {cause}") from None


async def _put(store: ObjectStore, key: str, data: bytes, content_type: str) -> str:
    """Uploads one object, at the second try or in another region where it must be, and returns its presigned URL."""
    failures, regions = 0, 0
    while True:
        place = replace(store)  # uploads side by side may move the store
        try:
            answer = await _send(place, key, data, content_type)
        except aiohttp.ClientConnectorCertificateError:
            raise _Refused("could not be reached: no secure connection could be made to it") from None
        except (
            aiohttp.ClientError,
            OSError,
            ValueError,
        ) as error:  # OSError: a connection's or a read's TimeoutError too
            failures += 1
            if failures == _ATTEMPTS:
                log.info("the object store cannot be reached: %s", type(error).__name__)
                raise _Refused("could not be reached, or did not answer as one") from None
            continue
        if answer.stored:
            return await _in_thread(store, presign, place, key)
        if answer.status in _ELSEWHERE and answer.region is not None:
            regions += 1
            if regions == _REGIONS or not _move(store, place, answer):
                raise _Refused(_cause(answer))
        elif answer.status >= 500 or answer.status == 429:
            failures += 1
            if failures == _ATTEMPTS:
                raise _Refused(_cause(answer))
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            raise _Refused(_cause(answer))


def _move(store: ObjectStore, asked: ObjectStore, answer: _Answer) -> bool:
    """Makes `store` the one of the region that it named when it was `asked`; False where that does not lead on. A host
    of that region is of the same domain, whatever the answer says of hosts."""
    region = str(answer.region)
    endpoint = asked.endpoint_url if answer.status == 400 else asked.endpoint_in(region)
    if endpoint is None or (endpoint, region) == (asked.endpoint_url, asked.region):
        return False
    store.endpoint_url, store.region = endpoint, region
    return True


async def _send(store: ObjectStore, key: str, data: bytes, content_type: str) -> _Answer:
    url = URL(store.url_of(key), encoded=True)
    host = str(url.raw_host)
    headers = await _in_thread(store, _sign, store, key, data, content_type)
    patience = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
    # A proxy would look up the name itself, and nobody would check the address.
    proxy = None if store.untrusted or proxy_bypass(host) else getproxies().get(url.scheme)
    trusted = store.trusts(host, url.port)
    async with (
        connections.turn(host, trusted),
        connections.open_session(trusted, patience) as session,
        session.put(url, data=io.BytesIO(data), headers=headers, allow_redirects=False, proxy=proxy) as response,
    ):
        if response.status == 200 and "ETag" in response.headers:
            return _Answer(200, "", None, stored=True)
        body = bytearray()
        async for chunk in response.content.iter_chunked(_ANSWER_BYTES):
            body += chunk
            if len(body) >= _ANSWER_BYTES:
                break
        code, tag = _CODE.search(body), _REGION_TAG.search(body)
        region = response.headers.get("x-amz-bucket-region") or (tag[1].decode() if tag else "")
        return _Answer(
            response.status,
            code[1].decode() if code else "",
            region if _REGION.fullmatch(region) else None,
        )


async def _in_thread(store: ObjectStore, sign: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(_SIGNERS[store.untrusted], partial(sign, *args, **kwargs))


def _cause(answer: _Answer) -> str:
    """A store's refusal in our words; of its own only the code, such as SlowDown."""
    shown = f"({answer.code or answer.status})"
    if answer.status < 300:
        return f"did not answer as one {shown}"
    if answer.code in _CLOCK:
        return f"says that this worker's clock is wrong {shown}"
    if 300 <= answer.status < 400 or answer.code == "AuthorizationHeaderMalformed":
        return f"has the bucket in another region, which its URL must name {shown}"
    if answer.code == "NoSuchBucket" or answer.status == 404:
        return f"has no such bucket {shown}"
    if answer.status in (401, 403) or answer.code in _CREDENTIALS:
        return f"refused the credentials, or they may not write to this bucket {shown}"
    return f"did not take the image {shown}"


def _sign(store: ObjectStore, key: str, data: bytes, content_type: str) -> dict[str, str]:
    """The headers of an upload; the signature covers its bytes. For a thread: a megabyte takes milliseconds."""
    request = AWSRequest("PUT", store.url_of(key), {"Content-Type": content_type}, data)
    S3SigV4Auth(_credentials(store), "s3", store.region).add_auth(request)
    return dict(request.headers.items())


def presign(store: ObjectStore, key: str) -> str:
    """A URL from which an object can be read without credentials, for as long as the store's `expiry`."""
    request = AWSRequest("GET", store.url_of(key))
    S3SigV4QueryAuth(_credentials(store), "s3", store.region, expires=store.expiry).add_auth(request)
    return str(request.url)


def _credentials(store: ObjectStore) -> Credentials:
    return Credentials(store.access_key_id, store.secret_access_key.get_secret_value())
