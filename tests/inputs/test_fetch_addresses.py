"""Where a URL leads: no reserved address is connected to, by whatever name, spelling or redirect."""

import pytest

from imagegen.errors import BadReference
from tests.inputs.test_addresses import IPV4, IPV6, METADATA, PRIVATE_4, PUBLIC, edges, embedded
from tests.support.image_hosts import NOWHERE, PICTURE, from_server, http, refused


def reserved():
    for network in (*IPV4, *IPV6):
        yield from edges(network)
    for address in (*METADATA, *PRIVATE_4):
        yield address
        if ":" not in address:
            yield from embedded(address)


def test_no_reserved_address_is_connected_to(names, opened):
    """Each as the answer of a name server, and each written in the URL."""
    for address in reserved():
        names([address])
        assert refused("https://example.com/a.png").message == NOWHERE
        literal = f"[{address}]" if ":" in address else address
        assert refused(f"http://{literal}/a.png").message == NOWHERE
    assert opened == []


def test_public_addresses_are_connected_to(names, opened):
    for address in PUBLIC:
        names([address])
        refused("https://example.com/a.png")
        literal = f"[{address}]" if ":" in address else address
        refused(f"http://{literal}:8080/a.png")
        assert opened == [address, address]
        opened.clear()


def test_a_rebinding_name_server_leads_nowhere(names, opened):
    stub = names(["93.184.215.14"], ["127.0.0.1"])
    for _ in range(3):
        assert refused("http://rebind.example/a.png").message == NOWHERE
    assert opened == ["93.184.215.14"]  # what was checked is what is connected to: one question, one answer
    assert len(stub.asked) == 3


def test_of_mixed_answers_the_private_ones_are_not_connected_to(names, opened):
    names(["10.0.0.1", "93.184.215.14", "::1"])
    refused("http://mixed.example/a.png")
    assert set(opened) == {"93.184.215.14"}


@pytest.mark.parametrize(
    "host",
    [
        "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "127.0.0.1.", "0",
        "localhost", "localhost.", "LOCALHOST", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]", "①②⑦.⓪.⓪.①", "127。0。0。1", "169.254.169.254", "[fd00:ec2::254]",
        "[fe80::1%25lo]", "[fe80::1%lo]", "%31%32%37.0.0.1", "127.0.0.1%2eexample.com",
        "127.0.0.1\\@example.com", "example.com\\.127.0.0.1", "[::1",
        "127.0.0.1%00.example.com", "127.0.0.1 .example.com", "127.0.0.1\t", "", ":80", "[]", ".", "..", "[127.0.0.1]",
        "[v1.fe80]", "256.1.1.1.1", "\u2024", "127.0.0.1:80:80", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:٣",
    ],
)  # fmt: skip
def test_no_way_to_write_an_inner_address_leads_to_it(host, opened):
    """The system's resolver is asked here, which knows loopback and no other name."""
    error = refused(f"http://{host}/a.png")
    assert isinstance(error, BadReference)
    assert error.message in (NOWHERE, "images[0]: is not a URL that can be fetched") or "port 3 is no" in error.message
    assert opened == []


@pytest.mark.parametrize("url", ["http://user@8.8.8.8/", "http://user:secret@8.8.8.8/", "https://8.8.8.8@127.0.0.1/"])
def test_a_url_with_a_user_is_refused_and_not_repeated(url, opened):
    message = refused(url).message
    assert message == "images[0]: a URL with a user's name or password is not fetched"
    assert opened == []


@pytest.mark.parametrize(
    "place",
    ["http://169.254.169.254/latest/", "//10.0.0.1/", "http://[::1]/", "http://localhost/", "http://2130706433/"],
)
def test_redirects_lead_no_further_than_urls(place):
    error, asked = from_server(lambda path: http(status="302 Found", Location=place))
    assert error.message == NOWHERE
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("file:///etc/passwd", "http and https are allowed"),
        ("ftp://127.0.0.1/a.png", "http and https are allowed"),
        ("gopher://127.0.0.1:6379/_INFO", "http and https are allowed"),
        ("data:image/png;base64,AAAA", "http and https are allowed"),
        ("https:///a.png", "is not a URL that can be fetched"),
        ("http://user:secret@127.0.0.1/", "a user's name or password"),
        ("/again", "is redirected too often; 5 redirects are allowed"),
        ("http://[", "its host did not send a whole answer"),
    ],
)
def test_what_a_redirect_may_not_name(place, says):
    error, asked = from_server(lambda path: http(status="307 Temporary Redirect", Location=place))
    assert says in error.message and "secret" not in error.message
    assert len(asked) == (6 if place == "/again" else 1)


def test_a_good_redirect_is_followed():
    data, asked = from_server(
        lambda path: (
            http(PICTURE) if path == "/b.png?c=%7E%2f" else http(status="301 Moved", Location="/b.png?c=%7E%2f")
        )
    )
    assert data == PICTURE and len(asked) == 2  # and the query is sent as it was written


def test_an_error_repeats_nothing_of_the_url():
    for answer in (http(status="404 Not Found"), http(status="500 Oops"), b"nonsense\r\n\r\n", b""):
        error, _ = from_server(lambda path, answer=answer: answer, path="/secret.png?Signature=secret")
        assert isinstance(error, BadReference)
        assert "secret" not in error.message and "127" not in error.message


def test_no_cookie_proxy_or_netrc_of_the_machine_is_used(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    data, asked = from_server(
        lambda path: http(PICTURE) if path == "/b" else http(status="302 Found", Location="/b", Set_Cookie="a=b")
    )
    assert data == PICTURE
    assert not any(word in head for head in asked for word in ("Authorization", "Cookie"))
