"""A job's own object store is a stranger's URL: it is connected to only where its address is public."""

import socket
import threading

import pytest

from imagegen.errors import DeliveryFailed, InvalidInput
from imagegen.outputs.object_store import ObjectStore
from tests.conftest import settings
from tests.inputs.test_addresses import METADATA, PUBLIC, embedded

NOWHERE = r"the object store could not be reached \(EndpointConnectionError\)"


def store(url, **changes):
    config = {"accessId": "id", "accessSecret": "secret", "bucketName": "pictures", "endpointUrl": url}
    return ObjectStore.from_job(config, settings(**changes))


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


@pytest.fixture
def resolved(monkeypatch):
    """Makes every name mean these addresses, and notes what a socket is opened for; none is connected."""
    meant, opened = [], []
    real = socket.getaddrinfo

    def look_up(host, port, *args, **kwargs):
        if host.rpartition(".")[2].isdigit() or ":" in host:
            return real(host, port, *args, **kwargs)
        return [info for address in meant for info in real(address, port, *args, **kwargs)]

    def connect(self, address):
        opened.append(address[0])
        raise OSError("not from a test")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", connect)
    return meant, opened


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", *METADATA[:3], f"[{METADATA[3]}]", "[::ffff:10.0.0.1]"])
def test_an_inner_address_in_the_url_is_refused_with_its_field(address):
    with pytest.raises(InvalidInput) as caught:
        store(f"http://{address}:9000")
    assert caught.value.field == "s3Config.endpointUrl"
    assert caught.value.message == "s3Config.endpointUrl: must have a public address"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_that_leads_inside_is_not_connected_to(resolved, scheme):
    meant, opened = resolved
    for address in (*METADATA, "127.0.0.1", "10.0.0.1", *embedded("169.254.169.254")):
        for found in ([address], ["93.184.215.14", address]):
            meant[:] = found
            with pytest.raises(DeliveryFailed, match=NOWHERE):
                store(f"{scheme}://store.example").put("a", b"", "image/png")
    assert opened == []


def test_a_public_name_is_connected_to_at_the_address_that_was_checked(resolved):
    meant, opened = resolved
    for address in PUBLIC[:3]:
        meant[:] = [address]
        with pytest.raises(DeliveryFailed, match=NOWHERE):
            store("https://store.example").put("a", b"", "image/png")
        assert set(opened) == {address}
        opened.clear()


@pytest.mark.parametrize("host", ["localhost", "localhost.localdomain", "2130706433", "127.1"])
def test_loopback_by_name_is_not_connected_to(listening, host):
    port, came = listening
    with pytest.raises((DeliveryFailed, InvalidInput)):
        store(f"http://{host}:{port}").put("a", b"", "image/png")
    assert came == []


def test_nor_through_a_proxy_of_the_machine(listening, monkeypatch, resolved):
    port, came = listening
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    resolved[0][:] = ["10.0.0.1"]
    with pytest.raises(DeliveryFailed, match=NOWHERE):
        store("http://store.example").put("a", b"", "image/png")
    assert came == [] and resolved[1] == []


def test_where_the_operator_names_it_it_is(listening):
    port, came = listening
    with pytest.raises(DeliveryFailed):
        store(f"http://localhost:{port}", private_hosts=f"localhost:{port}").put("a", b"", "image/png")
    assert came
