"""A job's own object store is an untrusted URL: it is connected to only where its address is public."""

import asyncio
import socket
import threading

import pytest

from imagegen.errors import DeliveryFailed, InvalidInput
from imagegen.inputs import connections
from imagegen.outputs import upload
from imagegen.outputs.object_store import ObjectStore
from tests.inputs.test_addresses import METADATA, PUBLIC, embedded
from tests.support import settings
from tests.support.image_hosts import Names

NOWHERE = "^the object store could not be reached, or did not answer as one$"


def store(url, **changes):
    config = {"accessId": "id", "accessSecret": "secret", "bucketName": "images", "endpointUrl": url}
    return ObjectStore.from_job(config, settings(**changes))


def put(target):
    return asyncio.run(upload.put(target, [("a", b"")], "image/png"))


@pytest.fixture
def listening():
    """A port of loopback that takes connections, and how many came."""
    came = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            try:
                while True:
                    connection, _ = server.accept()
                    came.append(connection)
                    connection.close()
            except OSError:
                pass

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], came
        server.shutdown(socket.SHUT_RDWR)


def settle(port):
    """Waits until every connection that was made before is counted, by one more: they are taken in turn."""
    with socket.create_connection(("127.0.0.1", port)) as last:
        last.recv(1)


@pytest.fixture
def resolved(monkeypatch):
    """Makes every name mean these addresses, and notes what a socket would be opened for; none is."""
    meant, opened = [], []

    class Stub(Names):
        def __init__(self):
            super().__init__(meant)

    check = connections.addresses.check

    def watch(address, trusted=False):
        check(address, trusted)
        opened.append(address)
        raise OSError("not from a test")

    monkeypatch.setattr(connections, "resolver", Stub)
    monkeypatch.setattr(connections.addresses, "check", watch)
    return meant, opened


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", *METADATA[:3], f"[{METADATA[3]}]", "[::ffff:10.0.0.1]"])
def test_a_private_address_in_the_url_is_refused_with_its_field(address):
    with pytest.raises(InvalidInput) as caught:
        store(f"http://{address}:9000")
    assert caught.value.field == "s3Config.endpointUrl"
    assert caught.value.message == "s3Config.endpointUrl: must have a public address"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_that_leads_inside_is_not_connected_to(resolved, scheme):
    meant, opened = resolved
    for address in (*METADATA, "127.0.0.1", "10.0.0.1", *embedded("169.254.169.254")):
        meant[:] = [address]
        with pytest.raises(DeliveryFailed, match=NOWHERE):
            put(store(f"{scheme}://store.example"))
    assert opened == []


def test_of_mixed_answers_the_private_ones_are_not_connected_to(resolved):
    resolved[0][:] = ["10.0.0.1", "93.184.215.14", "::1"]
    with pytest.raises(DeliveryFailed, match=NOWHERE):
        put(store("https://store.example"))
    assert set(resolved[1]) == {"93.184.215.14"}


def test_a_public_name_is_connected_to_at_the_address_that_was_checked(resolved):
    meant, opened = resolved
    for address in PUBLIC[:3]:
        meant[:] = [address]
        with pytest.raises(DeliveryFailed, match=NOWHERE):
            put(store("https://store.example"))
        assert set(opened) == {address}
        opened.clear()


@pytest.mark.parametrize("host", ["localhost", "localhost.localdomain", "2130706433", "127.1"])
def test_loopback_by_name_is_not_connected_to(listening, host):
    port, came = listening
    with pytest.raises((DeliveryFailed, InvalidInput)):
        put(store(f"http://{host}:{port}"))
    assert came == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_job_s_store_is_never_reached_through_a_proxy_of_the_machine(listening, monkeypatch, resolved, scheme):
    """A proxy would look up the name itself; the worker's own store goes through it."""
    port, came = listening
    monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{port}")
    resolved[0][:] = ["10.0.0.1"]
    with pytest.raises(DeliveryFailed, match=NOWHERE):
        put(store(f"{scheme}://store.example"))
    with pytest.raises(DeliveryFailed, match=NOWHERE):
        put(store(f"{scheme}://store.example", private_hosts="store.example"))
    assert came == [] and "127.0.0.1" not in resolved[1]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_workers_own_store_is_reached_through_the_proxy_of_the_machine(listening, monkeypatch, scheme):
    port, came = listening
    monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{port}")
    own = settings(bucket_endpoint_url=f"{scheme}://store.example", bucket_access_key_id="id",
                   bucket_secret_access_key="secret", bucket_name="images")  # fmt: skip
    with pytest.raises(DeliveryFailed, match=NOWHERE):
        put(ObjectStore.from_settings(own))
    settle(port)
    assert len(came) > 1
    before = len(came)
    monkeypatch.setenv("no_proxy", "store.example")
    with pytest.raises(DeliveryFailed, match=NOWHERE):
        put(ObjectStore.from_settings(own))
    settle(port)
    assert len(came) == before + 1


def test_a_private_host_of_the_operators_list_is_connected_to(listening):
    port, came = listening
    with pytest.raises(DeliveryFailed):
        put(store(f"http://localhost:{port}", private_hosts=f"localhost:{port}"))
    settle(port)
    assert len(came) > 1


@pytest.mark.parametrize("port", [21, 22, 25, 445, 6667])
def test_a_port_of_no_web_server_is_refused(port):
    with pytest.raises(InvalidInput, match=r"^s3Config.endpointUrl: its port is no web server's"):
        store(f"https://store.example:{port}")
    assert store(f"https://store.example:{port}", private_hosts="store.example").endpoint_url.endswith(f":{port}")
