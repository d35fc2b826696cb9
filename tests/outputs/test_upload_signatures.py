"""Requests and URLs are signed as boto3 signs them."""

import datetime
from urllib.parse import parse_qs, urlsplit

import boto3
import botocore.auth
import pytest
from botocore.config import Config

from imagegen.outputs import upload
from imagegen.outputs.object_store import ObjectStore
from tests.support import settings


def botos(store, **options):
    """boto3's own client for the same store."""
    return boto3.client(
        "s3", endpoint_url=store.endpoint_url, region_name=store.region, aws_access_key_id="id",
        aws_secret_access_key="secret",
        config=Config(signature_version="s3v4", s3={"addressing_style": store.addressing},
                      request_checksum_calculation="when_required"),
        **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.eu-central-1.amazonaws.com/pics",
        "https://pics.s3.eu-central-1.amazonaws.com",
        "http://127.0.0.1:9000/pics",
        "http://[::1]/pics",
        "https://store.example/prefix~1/pics",
    ],
)
def test_what_is_signed_is_what_boto3_signs(url, monkeypatch):
    moment = datetime.datetime(2026, 11, 26, 12, tzinfo=datetime.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: moment)
    config = {"accessId": "id", "accessSecret": "secret", "bucketName": "pics", "endpointUrl": url}
    store = ObjectStore.from_job(config, settings(private_hosts="127.0.0.1,[::1]", url_expiry=120))
    client, sent = botos(store), []

    def catch(request, **_):
        sent.append(request)
        raise RuntimeError("not from a test")

    client.meta.events.register("before-send.s3", catch)
    with pytest.raises(RuntimeError):
        client.put_object(Bucket="pics", Key="job/0.png", Body=b"data", ContentType="image/png")
    (request,) = sent
    mine = upload._sign(store, "job/0.png", b"data", "image/png")
    assert store.url_of("job/0.png") == request.url
    for name in ("X-Amz-Content-SHA256", "X-Amz-Date", "Content-Type"):
        theirs = request.headers[name]
        assert mine[name] == (theirs.decode() if isinstance(theirs, bytes) else theirs)
    assert "content-type;host;x-amz-content-sha256;x-amz-date" in mine["Authorization"]
    theirs = client.generate_presigned_url(
        "get_object", Params={"Bucket": "pics", "Key": "job/0.png"}, ExpiresIn=store.expiry
    )
    ours = upload.presign(store, "job/0.png")
    assert urlsplit(ours)[:3] == urlsplit(theirs)[:3]
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)
