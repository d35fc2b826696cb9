"""C2PA: what is signed is judged by c2pa's own reader."""

import asyncio
import base64
import contextlib
import datetime
import io
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image
from pydantic import SecretStr

from imagegen.cli.inspect import read
from imagegen.contract.requests import parse_job
from imagegen.engine.service import Service
from imagegen.errors import ConfigurationError
from imagegen.outputs.provenance import Provenance
from imagegen.outputs.signing import Signer, load_signer, validation_state
from tests.support import settings
from tests.support.images import scene, to_base64, to_bytes

FORMATS = ("png", "jpeg", "webp")
RECORD = Provenance("micro", 42, 4, 128, 128)
_USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
           "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip


def certificate(subject, issuer, key, issuer_key, usage, *extensions, days_ago=0):
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days_ago)
    names = [
        x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"), x509.NameAttribute(NameOID.COMMON_NAME, cn)])
        for cn in (subject, issuer)
    ]
    builder = x509.CertificateBuilder(
        names[1], names[0], key.public_key(), x509.random_serial_number(),
        now - datetime.timedelta(days=1), now + datetime.timedelta(days=30),
    )  # fmt: skip
    for extension, critical in (
        (x509.KeyUsage(**{name: name in usage for name in _USAGES}), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False),
        *extensions,
    ):
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def chain(key=None, days_ago=0):
    """A root of our own, a signer's certificate by it, and the signer's key; all PEM."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), key or ec.generate_private_key(ec.SECP256R1())
    root = certificate("Root", "Root", root_key, root_key, {"key_cert_sign"}, (x509.BasicConstraints(True, None), True))
    signer = certificate(
        "Signer", "Root", key, root_key, {"digital_signature"}, (x509.BasicConstraints(False, None), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False), days_ago=days_ago,
    )  # fmt: skip
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return signer + root, key.private_bytes(*form).decode()


@pytest.fixture(scope="module")
def signing():
    """A service that signs."""
    certificates, key = chain()
    running = Service(settings(c2pa_certificate=certificates, c2pa_key=SecretStr(key)))
    running.start().result()
    yield running
    running.close()


def drawn(service, **fields):
    (image,) = asyncio.run(service.run(parse_job({"prompt": "a red circle", "seed": 42, **fields}))).images
    return base64.b64decode(image)


def manifest(data, output_format):
    with c2pa.Reader(f"image/{output_format}", io.BytesIO(data)) as reader:
        found = json.loads(reader.json())
    return found, found["manifests"][found["active_manifest"]]


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_signed_image_is_valid_and_says_what_it_is(signing, service, output_format):
    data = drawn(signing, output_format=output_format)
    found, active = manifest(data, output_format)
    assert found["validation_state"] == "Valid"
    assert [status["code"] for status in found["validation_status"]] == ["signingCredential.untrusted"]  # our own root
    (action,) = active["assertions"][0]["data"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == RECORD.source_type
    assert action["softwareAgent"]["name"] == "micro"
    assert active["signature_info"]["common_name"] == "Signer"
    bare = drawn(service, output_format=output_format)
    assert read(data) == {**read(bare), "signature": "Valid"}
    assert Image.open(io.BytesIO(data)).tobytes() == Image.open(io.BytesIO(bare)).tobytes()
    assert len(data) - len(bare) < 20_000  # no thumbnail


def test_an_edit_says_so_in_its_manifest(signing):
    _, active = manifest(drawn(signing, image=to_base64(scene("circle", "red", "blue"))), "png")
    (action,) = active["assertions"][0]["data"]["actions"]
    assert action["digitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")


@pytest.mark.parametrize("output_format", FORMATS)
def test_an_image_that_was_changed_is_no_longer_valid(signing, output_format):
    data = bytearray(drawn(signing, output_format=output_format))
    data[-40] ^= 0xFF  # within the pixels
    assert validation_state(bytes(data), f"image/{output_format}") == "Invalid"


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
)
def test_every_kind_of_key_from_files_and_from_text(tmp_path, key):
    certificates, text = chain(key)
    (tmp_path / "chain.pem").write_text(certificates)
    (tmp_path / "key.pem").write_text(text)
    files = settings(c2pa_certificate=str(tmp_path / "chain.pem"), c2pa_key=SecretStr(str(tmp_path / "key.pem")))
    one_line = settings(c2pa_certificate=certificates.replace("\n", "\\n"), c2pa_key=text.replace("\n", "\\n"))
    for changed in (files, one_line):
        data = load_signer(changed).sign(to_bytes(scene("star", "red", "blue")), "png", RECORD)
        assert validation_state(data, "image/png") == "Valid"


def test_many_threads_sign_at_once():
    signer, bare = Signer(*chain()), to_bytes(scene("star", "red", "blue"))
    with ThreadPoolExecutor(4) as pool:
        signed = list(pool.map(lambda _: signer.sign(bare, "png", RECORD), range(32)))
    assert {validation_state(data, "image/png") for data in signed} == {"Valid"}


def test_nothing_is_signed_where_nothing_is_asked_for(service):
    assert load_signer(settings()) is None
    assert validation_state(drawn(service), "image/png") is None


def test_a_file_that_names_a_url_is_read_without_a_visit_to_it():
    certificates, key = chain()
    visits, data = [], io.BytesIO()
    action = {"action": "c2pa.created", "digitalSourceType": RECORD.source_type}
    created = {"label": "c2pa.actions.v2", "data": {"actions": [action]}}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with (
            c2pa.Signer.from_info(c2pa.C2paSignerInfo("es256", certificates.encode(), key.encode(), None)) as signer,
            c2pa.Builder({"claim_generator_info": [{"name": "another"}], "assertions": [created]}) as builder,
        ):
            builder.set_no_embed()
            builder.set_remote_url(f"http://127.0.0.1:{port}/manifest")
            builder.sign(signer, "image/jpeg", io.BytesIO(to_bytes(scene("star", "red", "blue"), "JPEG")), data)

        def refuse():
            with contextlib.suppress(OSError):  # the test has ended
                while True:
                    connection, _ = server.accept()
                    visits.append(connection)
                    connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        assert str(port).encode() in data.getvalue()
        assert validation_state(data.getvalue(), "image/jpeg") is None
    assert not visits


_EXPIRED = dict(zip(("c2pa_certificate", "c2pa_key"), chain(days_ago=100), strict=True))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"c2pa_certificate": "x"}, "IMAGEGEN_C2PA_KEY: is not set"),
        ({"c2pa_key": "x"}, "IMAGEGEN_C2PA_CERTIFICATE: is not set"),
        ({"c2pa_certificate": "/nowhere", "c2pa_key": "/nowhere"}, "IMAGEGEN_C2PA_CERTIFICATE: is neither PEM nor"),
        ({"c2pa_certificate": chain()[0], "c2pa_key": "-----BEGIN canary"}, "IMAGEGEN_C2PA_KEY: is no private key"),
        ({"c2pa_certificate": chain()[0], "c2pa_key": chain()[1]}, "must belong to each other"),
        ({"c2pa_certificate": "-----BEGIN canary", "c2pa_key": chain()[1]}, "nothing can be signed with them"),
        (_EXPIRED, "nothing can be signed with them"),
    ],
)
def test_a_key_that_cannot_sign_ends_the_start(changes, says):
    service = Service(settings(**changes))
    with pytest.raises(ConfigurationError, match=says) as caught:
        service.start().result()
    service.close()
    assert "canary" not in str(caught.value)
    assert "BEGIN" not in str(caught.value)


def test_without_c2pa_a_key_is_an_error_that_says_what_to_install(monkeypatch):
    certificates, key = chain()
    monkeypatch.setattr("imagegen.outputs.signing.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install c2pa-python cryptography"):
        load_signer(settings(c2pa_certificate=certificates, c2pa_key=key))
    assert validation_state(b"", "image/png") is None
