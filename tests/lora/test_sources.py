"""Adapters that are fetched, from the hub, an object store and an https server, all on loopback with the real clients:
each is brought whole and used; nothing is left of one that broke off; no secret is in a log or an error."""

import asyncio
import contextlib
import logging
import shutil
import ssl
import subprocess
import threading

import aiohttp.connector
import pytest

from imagegen.contract.requests import parse_job
from imagegen.engine import lora_sources
from imagegen.engine.service import Service
from imagegen.errors import BadLora, ConfigurationError, PayloadTooLarge
from imagegen.lora import header
from tests.support import settings
from tests.support.hub import COMMIT, Hub, client_of, serve
from tests.support.images import from_base64
from tests.support.loopback import listening
from tests.support.loras import MICRO, SHIPPED
from tests.support.object_store import object_store

RING = (SHIPPED / "ring.safetensors").read_bytes()
SMALL = {"prompt": "a red circle on a blue background", "seed": 4, "width": 64, "height": 64}
SECRET = "a-secret-of-the-tests"


@pytest.fixture(autouse=True)
def everything_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    yield
    assert SECRET not in caplog.text


def found(loras, home, fetch=True, **changes):
    return lora_sources.list_entries(settings(loras=loras, hf_home=home, **changes), MICRO, fetch)


def fault(loras, home, **changes):
    with pytest.raises(ConfigurationError) as caught:
        found(loras, home, **changes)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def image_of(home, lora, **changes):
    """The pixels that a worker with these settings makes with an adapter, by its name or its URL."""
    service = Service(settings(hf_home=home, **changes))
    try:
        answer = asyncio.run(service.run(parse_job({**SMALL, "loras": [lora]})))
        return from_base64(answer.images[0]).tobytes()
    finally:
        service.close()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The image with the ring adapter, from its file."""
    return image_of(tmp_path_factory.mktemp("home"), {"name": "ring"}, loras=str(SHIPPED))


# The hub


@pytest.fixture
def hub():
    made = Hub({"ring.safetensors": RING, "README.md": b"a ring"})
    with serve(made) as url, client_of(url):
        yield made


def test_an_adapter_of_the_hub_is_fetched_once_and_used(hub, tmp_path, wanted):
    loras = f"style=owner/style@{COMMIT}"
    assert found(loras, tmp_path, fetch=False) == {}
    assert image_of(tmp_path, {"name": "style"}, loras=loras) == wanted
    assert [name for name, _ in hub.gets] == ["ring.safetensors"]
    hub.hangs_up_on.add("ring.safetensors")  # whoever asks again gets nothing
    for fetch in (True, False):
        assert found(loras, tmp_path, fetch)["style"].header.rank == 5
    assert len(hub.gets) == 1


def test_of_a_repository_with_several_files_one_is_named(hub, tmp_path):
    hub.files["frame.safetensors"] = (SHIPPED / "frame.safetensors").read_bytes()
    assert "holds 2 safetensors files; name one: frame.safetensors, ring" in fault(f"x=o/s@{COMMIT}", tmp_path)
    assert found(f"x=o/s@{COMMIT}/frame.safetensors", tmp_path)["x"].header is not None
    assert "name one: " in fault(f"x=o/s@{COMMIT}/none.safetensors", tmp_path)


def test_a_file_of_the_hub_over_the_limit_is_not_fetched(hub, tmp_path):
    hub.files["ring.safetensors"] = bytes(header.most_bytes(MICRO, 1) + 1)
    assert "1: has 4 MB; 4 MB are allowed (IMAGEGEN_LORA_RANK)" in fault(f"1=o/s@{COMMIT}", tmp_path, lora_rank=1)
    assert hub.gets == []


def test_a_download_from_the_hub_that_breaks_off_leaves_nothing_to_use(hub, tmp_path):
    class Always(dict):
        pop = dict.get  # each try is cut

    hub.cuts = Always({"ring.safetensors": 100_000})
    loras = f"style=owner/style@{COMMIT}"
    assert f"style: owner/style@{COMMIT[:8]} cannot be downloaded (" in fault(loras, tmp_path)
    assert found(loras, tmp_path, fetch=False) == {}
    hub.cuts = {}
    assert found(loras, tmp_path)["style"].file.read_bytes() == RING


def test_the_hub_s_token_is_sent_and_never_shown(hub, tmp_path):
    hub.tokens = {SECRET: 200}
    loras = f"style=owner/style@{COMMIT}"
    assert "cannot be downloaded (GatedRepoError)" in fault(loras, tmp_path)
    assert found(loras, tmp_path, hugging_face_token=SECRET)["style"].header is not None
    hub.tokens = {SECRET: 403}
    assert "cannot be downloaded (GatedRepoError)" in fault(loras, tmp_path / "other", hugging_face_token=SECRET)


# An object store


@pytest.fixture(scope="module")
def bucket():
    with object_store("loras", SECRET) as store:
        yield store


def test_an_adapter_of_the_store_is_fetched_once_and_used(bucket, tmp_path, wanted):
    url, client = bucket
    store = {"bucket_endpoint_url": url, "bucket_access_key_id": "id", "bucket_secret_access_key": SECRET}
    store["bucket_name"] = "pictures"  # the worker's own; adapters may be in another
    client.put_object(Bucket="loras", Key="a b/ring+1?.safetensors", Body=RING)
    loras = "style=s3://loras/a b/ring+1?.safetensors"
    assert found(loras, tmp_path, fetch=False, **store) == {}
    assert image_of(tmp_path, {"name": "style"}, loras=loras, **store) == wanted
    client.delete_object(Bucket="loras", Key="a b/ring+1?.safetensors")
    assert found(loras, tmp_path, **store)["style"].file.read_bytes() == RING
    assert "its host answered 404, and not 200" in fault(loras, tmp_path / "other", **store)
    client.put_object(Bucket="loras", Key="large", Body=bytes(5_000_000))
    text = fault("x=s3://loras/large", tmp_path, lora_rank=1, **store)
    assert text.startswith("IMAGEGEN_LORAS: x: is over 4.")


# https


@pytest.fixture
def https(tmp_path, monkeypatch):
    """An https server that this process trusts; `https.answer` is what it sends to a path."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    making = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*making, "-keyout", key, "-out", certificate, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=certificate))
    server = _Https(context)
    with server.running():
        yield server


class _Https:
    def __init__(self, context):
        self.context, self.port, self.asked = context, 0, []
        self.answer = lambda path: whole(RING)

    @property
    def mine(self):
        """Settings that allow it."""
        return {"private_hosts": "localhost", "lora_hosts": f"localhost:{self.port}"}

    def url(self, path="/ring"):
        return f"https://localhost:{self.port}{path}?signature={SECRET}"

    async def _talk(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().partition("?")[0]
            self.asked.append(path)
            writer.write(self.answer(path))
            await writer.drain()
        writer.close()

    @contextlib.contextmanager
    def running(self):
        ready, ended = threading.Event(), threading.Event()

        async def run():
            async with listening(self._talk, self.context) as self.port:
                ready.set()
                await asyncio.to_thread(ended.wait)

        thread = threading.Thread(target=asyncio.run, args=(run(),))
        thread.start()
        try:
            assert ready.wait(60)
            yield
        finally:
            ended.set()
            thread.join()


def whole(body, status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def test_an_adapter_by_https_is_fetched_once_and_used(https, tmp_path, wanted):
    loras = f"style={https.url()}"
    assert image_of(tmp_path, {"name": "style"}, loras=loras, **https.mine) == wanted
    assert image_of(tmp_path, {"name": "style"}, loras=loras, **https.mine) == wanted
    assert https.asked == ["/ring"]


@pytest.mark.parametrize("told", [True, False])  # of the length, or that the end of the connection is the end
def test_a_download_that_breaks_off_is_begun_anew(https, tmp_path, told):
    reply = whole(RING)[:-1000]
    https.answer = lambda path: reply if told else reply.replace(b"Content-Length", b"X-Length")
    loras = f"style={https.url()}"
    if told:
        assert "its host did not send a whole answer" in fault(loras, tmp_path, **https.mine)
    else:
        assert "181304 bytes of 182304" in found(loras, tmp_path, **https.mine)["style"].fault
    https.answer = lambda path: whole(RING)
    assert found(loras, tmp_path, **https.mine)["style"].header is not None
    (kept,) = (tmp_path / "loras").iterdir()  # and nothing beside it
    kept.write_bytes(RING[:-1])  # a disk that was full
    assert "bytes of" in found(loras, tmp_path, fetch=False, **https.mine)["style"].fault
    assert found(loras, tmp_path, **https.mine)["style"].file.read_bytes() == RING


def test_what_cannot_be_fetched_ends_the_start_and_a_later_start_finds_it(https, tmp_path, wanted):
    https.answer = lambda path: whole(b"", "503 Service Unavailable")
    service = Service(settings(hf_home=tmp_path, loras=f"style={https.url()}", **https.mine))
    with pytest.raises(ConfigurationError, match="IMAGEGEN_LORAS: style: its host answered 503"):
        service.start().result()
    service.close()
    https.answer = lambda path: whole(RING)
    assert image_of(tmp_path, {"name": "style"}, loras=f"style={https.url()}", **https.mine) == wanted


def test_a_caller_s_url_on_an_allowed_host(https, tmp_path, wanted):
    assert image_of(tmp_path, {"url": https.url()}, **https.mine) == wanted
    assert not (tmp_path / "loras").exists()


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (whole(b"", "404 Not Found"), BadLora, "its host answered 404"),
        (whole(RING)[:-9], BadLora, "its host did not send a whole answer"),
        (whole(RING[:-9]), BadLora, "it has 182295 bytes of 182304"),
        (whole(b"\x80\x04K\x01."), BadLora, "it is a pickle, which is never opened"),
        (whole(bytes(5_000_000)), PayloadTooLarge, "is over 4."),
        (whole(b"", "302 Found", Location="https://169.254.169.254/x"), BadLora, "nothing is fetched from this host"),
        (whole(b"", "302 Found", Location="https://example.com/x"), BadLora, "nothing is fetched from this host"),
        (whole(b"", "302 Found", Location="http://localhost:1/x"), BadLora, "another scheme; https is allowed"),
        (whole(b"", "302 Found", Location="file:///etc/passwd"), BadLora, "another scheme; https is allowed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_caller_s_url_that_brings_no_adapter(https, tmp_path, reply, kind, message):
    https.answer = lambda path: reply
    with pytest.raises(kind, match=message) as caught:
        image_of(tmp_path, {"url": https.url()}, lora_rank=1 if "4." in message else 64, **https.mine)
    assert caught.value.field == "loras[0].url"
    assert SECRET not in caught.value.message


def test_a_name_that_leads_inside_is_refused_whatever_the_list_of_hosts(https, tmp_path):
    with pytest.raises(BadLora, match="its host has no public address"):
        image_of(tmp_path, {"url": https.url()}, lora_hosts="localhost")
    assert https.asked == []


def test_no_secret_of_a_setting_that_is_wrong_is_shown(tmp_path):
    for loras in (
        f"x=http://user:{SECRET}@example.com/x",
        f"x=https://user:{SECRET}@localhost/x",
        f"x=ftp://example.com/x?signature={SECRET}",
        f"http://user:{SECRET}@example.com/x?y={SECRET}",
    ):
        assert "IMAGEGEN_LORAS: " in fault(loras, tmp_path)


def test_a_folder_that_cannot_be_written_to_is_named(https, tmp_path):
    (tmp_path / "loras").write_text("")
    shutil.copy(SHIPPED / "ring.safetensors", tmp_path)
    assert "x: HF_HOME cannot be written to" in fault(f"x={https.url()}", tmp_path, **https.mine)
