"""The attacks of `make attack`, shorter: each ended, without these limits, in a server that answers nobody."""

import resource

import pytest

from benchmarks import attack

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files[1], 4096), files[1]))
    with attack.server() as address:
        yield address
    resource.setrlimit(resource.RLIMIT_NOFILE, files)


@pytest.mark.parametrize("name", attack.ATTACKS)
def test_others_are_served_during(server, name):
    noticed = attack.measure(name, *server, seconds=10)
    assert noticed.health and noticed.failed == 0  # within ten seconds each, on a machine that may be busy
    assert noticed.job.startswith("200 ")
