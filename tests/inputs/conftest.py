"""The names of hosts, and the connections to them."""

import pytest

from imagegen.inputs import connections
from tests.support.image_hosts import Names


@pytest.fixture
def names(monkeypatch):
    """Makes a stub the resolver."""

    def answer(*answers):
        stub = Names(*answers)
        monkeypatch.setattr(connections, "resolver", lambda: stub)
        return stub

    return answer


@pytest.fixture
def opened(monkeypatch):
    """The addresses for which a socket would have been opened; none is."""
    found = []
    check = connections.addresses.check

    def watch(address, trusted=False):
        check(address, trusted)
        found.append(address)
        raise OSError("not from a test")

    monkeypatch.setattr(connections.addresses, "check", watch)
    return found
