"""Who may call the server: keys, Host headers, pages of other origins, wrong keys, trusted proxies."""

import contextlib
import socket
import time
from types import SimpleNamespace

import httpx
import pytest
from starlette.responses import PlainTextResponse

from imagegen.errors import ConfigurationError
from imagegen.jobs.keys import Keys
from imagegen.server import access, connection_limits, guard
from imagegen.settings import Settings, get_settings
from imagegen.telemetry.metrics import Metrics
from tests.server.conftest import running, serving
from tests.support import settings, until

PROMPT = {"prompt": "a red circle on a blue background", "seed": 42}
KEYS = "alice:alice-has-this-key-1,bob:bob-has-that-key-22,unnamed-key-number-3"


@pytest.fixture(scope="module")
def open_server(ready):
    return ready[0]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7000", "localhost.evil.example", "127.0.0.1.nip.io"])
def test_a_foreign_host_name_is_refused_without_a_key(open_server, host):
    answer = httpx.post(f"{open_server}/generate", json=PROMPT, headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert "IMAGEGEN_ALLOWED_HOSTS" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1", "127.0.0.1", "10.1.2.3:7000", "[::1]:7000", "a.localhost"]
)
def test_local_names_and_addresses_are_served(open_server, host):
    assert httpx.get(f"{open_server}/health", headers={"Host": host}).status_code == 200


def test_two_host_headers_are_refused(open_server):
    host, port = open_server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=300) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 403 ")


def test_named_hosts_are_served():
    with serving(allowed_hosts="images.example, *.lan.example", preload_models=False) as (url, _):
        statuses = {
            host: httpx.get(f"{url}/health", headers={"Host": host}).status_code
            for host in ("images.example", "Images.Example:80", "a.lan.example", "lan.example", "other.example")
        }
    assert [status == 403 for status in statuses.values()] == [False, False, False, True, True]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://["},
        {"Origin": "//"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},  # a form
    ],
)
def test_a_form_of_a_foreign_page_is_refused(open_server, headers):
    answer = httpx.post(f"{open_server}/generate", files={"prompt": (None, "x")}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


def test_the_servers_own_page_and_links_to_it_work(open_server):
    own = {"Origin": open_server, "Sec-Fetch-Site": "same-origin"}
    assert httpx.post(f"{open_server}/generate", json=PROMPT, headers=own).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Accept": "text/html"}
    assert httpx.get(open_server, headers=link).status_code == 200


def test_who_does_not_read_its_answers_gets_no_more(monkeypatch):
    """They are in memory, and the places of their jobs are others' already."""
    monkeypatch.setattr(guard, "UNREAD_BYTES", 20_000_000)
    limits = SimpleNamespace(keys=Keys(settings()))
    app = guard.Guard(PlainTextResponse(b"a" * 15_000_000), settings(), Metrics(), limits)
    with running(app, lifespan="off") as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=300) as unread:
            unread.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert unread.recv(1)
            assert httpx.get(f"{url}/x").json()["error"]["code"] == "overloaded"
            assert httpx.get(f"{url}/health").status_code == 200
        until(lambda: httpx.get(f"{url}/x").status_code == 200)


def test_one_callers_connections_leave_some_to_others(monkeypatch):
    """Streams of events may stay for as long as a job waits, and a caller may have many addresses."""
    monkeypatch.setattr(connection_limits.Limits, "of", lambda self, address: self.total)
    monkeypatch.setattr(connection_limits.resource, "getrlimit", lambda _: (32, 32))  # 16 connections, 12 of a caller

    async def work(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/work":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"event", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
        else:
            await PlainTextResponse("ok")(scope, receive, send)

    app = guard.Guard(work, settings(api_key=KEYS), Metrics(), SimpleNamespace(keys=Keys(settings(api_key=KEYS))))
    with running(app, lifespan="off") as url, contextlib.ExitStack() as held:
        alice, bob = ({"X-API-Key": key} for key in ("alice-has-this-key-1", "bob-has-that-key-22"))
        for _ in range(12):
            client = held.enter_context(httpx.Client(base_url=url, timeout=300))
            assert held.enter_context(client.stream("GET", "/work", headers=alice)).status_code == 200
        refused = httpx.get(f"{url}/work", headers=alice)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert "connections" in refused.json()["error"]["message"]
        assert httpx.get(f"{url}/other", headers=bob).status_code == 200
        assert httpx.get(f"{url}/health", headers=alice).status_code == 200


def test_an_origin_that_cors_names_may_call():
    with serving(cors_origins="https://a.example") as (url, service):
        service.start().result()
        allowed = {"Origin": "https://a.example", "Sec-Fetch-Site": "cross-site"}
        answer = httpx.post(f"{url}/generate", json=PROMPT, headers=allowed)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert httpx.get(f"{url}/health", headers={"Origin": "https://b.example"}).status_code == 403


def test_each_key_of_the_list_may_call_and_names_its_caller():
    callers = []
    with serving(api_key=KEYS) as (url, service):
        service.start().result()
        run = service.run
        service.run = lambda *args, **options: callers.append(options["caller"]) or run(*args, **options)
        for key in ("alice-has-this-key-1", "bob-has-that-key-22", "unnamed-key-number-3"):
            headers = {"Authorization": f"bEaReR {key}"}  # the scheme's case does not matter (RFC 9110, 11.1)
            assert httpx.post(f"{url}/generate", json=PROMPT, headers=headers).status_code == 200
        refused = httpx.post(f"{url}/generate", json=PROMPT, headers={"X-API-Key": "alice:alice-has-this-key-1"})
        assert refused.status_code == 401
    assert callers == ["alice", "bob", "key-3"]


def test_without_a_key_the_address_names_the_caller(open_server):
    assert access.network_of("203.0.113.9") == "203.0.113.9"
    assert access.network_of("::ffff:203.0.113.9") == "203.0.113.9"
    assert access.network_of("2001:db8:1:2:3::4") == access.network_of("2001:db8:1:2::9") == "2001:db8:1:2::/64"


def test_health_says_less_without_the_key():
    key = "a-key-of-sixteen-and-more"
    with serving(api_key=key) as (url, service):
        service.start().result()
        assert httpx.get(f"{url}/health").json() == {"status": "ready", "stage": None}
        assert httpx.get(f"{url}/health", headers={"X-API-Key": key}).json()["model"] == "micro"
        assert "version" not in httpx.get(url).json()


def test_wrong_keys_of_one_address_wait_longer_and_longer():
    key = "a-key-of-sixteen-and-more"

    def seconds(**headers):
        begun = time.monotonic()
        assert httpx.get(f"{url}/capabilities", headers=headers).status_code in (200, 401, 503)
        return time.monotonic() - begun

    with serving(api_key=key, preload_models=False) as (url, _):
        waited = [seconds(**{"X-API-Key": f"wrong-{i}"}) for i in range(4)]
        assert all(one >= access.FIRST_DELAY * 2**i for i, one in enumerate(waited))
        # /health would else tell a right key from a wrong one at once.
        begun = time.monotonic()
        httpx.get(f"{url}/health", headers={"X-API-Key": "wrong"})
        assert time.monotonic() - begun >= 1.6
        assert seconds(**{"X-API-Key": key}) < 3  # the right key does not wait the next 3.2 s, nor does none
        assert seconds() < 3


def test_the_peers_address_is_in_the_log_and_a_trusted_proxy_gives_the_clients(caplog):
    caplog.set_level("DEBUG", "imagegen")
    forwarded = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9"}

    def clients():
        return [record.facts["client"] for record in caplog.records if record.message == "request"]

    with serving(preload_models=False) as (url, _):
        httpx.get(f"{url}/health", headers=forwarded)
    assert clients() == ["127.0.0.1"]
    with serving(trusted_proxies="127.0.0.0/8", preload_models=False) as (url, _):
        httpx.get(f"{url}/health", headers=forwarded)
    assert clients() == ["127.0.0.1", "203.0.113.9"]  # what the proxy saw, not what its client wrote


def test_without_a_key_only_this_machine_is_listened_to():
    assert settings().listen_host == "127.0.0.1"
    assert settings(api_key="a-key-of-sixteen-and-more").listen_host == "0.0.0.0"
    assert settings(host="10.0.0.1").listen_host == "10.0.0.1"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "  ",
        "short",
        "a-key-of-sixteen-and-more,",
        "a-key-of-sixteen-and-more,short",
        "name:short",
        "a b:" + 20 * "x",
    ],
)
def test_an_empty_or_short_key_ends_the_start(monkeypatch, value):
    monkeypatch.setenv("IMAGEGEN_API_KEY", value)
    get_settings.cache_clear()
    with pytest.raises(ConfigurationError, match="^IMAGEGEN_API_KEY: "):
        get_settings()


def test_a_key_is_shown_in_no_dump_of_the_settings():
    read = Settings(_env_file=None, api_key=KEYS)
    assert "alice-has" not in f"{read!r} {read.model_dump_json()}"


def test_proxies_must_be_addresses(monkeypatch):
    monkeypatch.setenv("IMAGEGEN_TRUSTED_PROXIES", "10.0.0.0/8, proxy.example")
    get_settings.cache_clear()
    with pytest.raises(ConfigurationError, match="^IMAGEGEN_TRUSTED_PROXIES: .*proxy.example"):
        get_settings()


def test_metrics_on_a_port_of_their_own_are_on_no_other(unused_port):
    key = "a-key-of-sixteen-and-more"
    with serving(api_key=key, metrics_port=unused_port, preload_models=False) as (url, _):
        assert httpx.get(f"{url}/metrics", headers={"X-API-Key": key}).status_code == 404
    ports = {"port": unused_port, "metrics_port": unused_port, "listen": unused_port}
    with serving(**ports, api_key=key, preload_models=False) as (url, _):
        assert "imagegen" in httpx.get(f"{url}/metrics").text
        assert httpx.post(f"{url}/generate", json=PROMPT, headers={"X-API-Key": key}).status_code == 404


def test_answers_are_not_sniffed(open_server):
    for path in ("/", "/health", "/nowhere"):
        assert httpx.get(f"{open_server}{path}").headers["x-content-type-options"] == "nosniff"


def test_the_docs_load_nothing_from_elsewhere_and_can_be_switched_off(open_server):
    page = httpx.get(f"{open_server}/docs").text
    assert "cdn" not in page and "https://" not in page
    for path in ("/static-offline-docs/swagger-ui-bundle.js", "/static-offline-docs/swagger-ui.css", "/openapi.json"):
        assert path in page
        assert httpx.get(f"{open_server}{path}").status_code == 200
    with serving(docs=False, preload_models=False) as (url, _):
        for path in ("/docs", "/redoc", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
            assert httpx.get(f"{url}{path}").status_code == 404
