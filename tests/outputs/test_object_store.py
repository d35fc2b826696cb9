"""Which store a URL and a bucket's name mean, as RunPod and its users write them; what a key is; what errors show."""

import pytest

from imagegen.errors import ConfigurationError, InvalidInput
from imagegen.outputs.object_store import ObjectStore, object_key
from tests.support import settings

JOB = {"accessId": "canary-id", "accessSecret": "canary-secret", "endpointUrl": "https://s3.amazonaws.com"}


def from_job(**changes):
    return ObjectStore.from_job({**JOB, **changes}, settings(url_expiry=120, private_hosts="127.0.0.1, [::1]"))


@pytest.mark.parametrize(
    ("url", "bucket", "expected"),
    [
        (
            "https://pics.s3.eu-central-1.amazonaws.com",
            None,
            ("https://s3.eu-central-1.amazonaws.com", "pics", "eu-central-1", "virtual"),
        ),
        (
            "https://s3.eu-central-1.amazonaws.com/",
            "pics",
            ("https://s3.eu-central-1.amazonaws.com", "pics", "eu-central-1", "path"),
        ),
        (
            "https://a.b.s3.us-west-2.amazonaws.com",
            "a.b",
            ("https://s3.us-west-2.amazonaws.com", "a.b", "us-west-2", "path"),
        ),
        (
            "https://account.r2.cloudflarestorage.com/pics",
            "",
            ("https://account.r2.cloudflarestorage.com", "pics", "us-east-1", "path"),
        ),
        (
            "https://account.r2.cloudflarestorage.com/pics",
            "pics",
            ("https://account.r2.cloudflarestorage.com", "pics", "us-east-1", "path"),
        ),
        (
            "https://pics.s3.us-west-004.backblazeb2.com",
            None,
            ("https://s3.us-west-004.backblazeb2.com", "pics", "us-west-004", "virtual"),
        ),
        (
            "https://pics.fra1.digitaloceanspaces.com",
            None,
            ("https://fra1.digitaloceanspaces.com", "pics", "us-east-1", "virtual"),
        ),
        (
            "https://bb.fra1.cdn.digitaloceanspaces.com",  # takes no uploads
            None,
            ("https://fra1.digitaloceanspaces.com", "bb", "us-east-1", "virtual"),
        ),
        (
            "https://fra1.cdn.digitaloceanspaces.com",
            "bb",
            ("https://fra1.digitaloceanspaces.com", "bb", "us-east-1", "path"),
        ),
        (
            "https://pics.fsn1.your-objectstorage.com",
            "",
            ("https://fsn1.your-objectstorage.com", "pics", "us-east-1", "virtual"),
        ),
        (
            "https://s3.mycompany.co.uk",
            "pics",
            ("https://s3.mycompany.co.uk", "pics", "us-east-1", "path"),
        ),
        (
            "https://s3.my-company.com.au/pics",
            None,
            ("https://s3.my-company.com.au", "pics", "us-east-1", "path"),
        ),
        (
            "https://pics.s3.mycompany.co.jp",
            None,
            ("https://s3.mycompany.co.jp", "pics", "us-east-1", "virtual"),
        ),
        (
            "https://s3.storage.mycompany.com",
            "pics",
            ("https://s3.storage.mycompany.com", "pics", "us-east-1", "path"),
        ),
        (
            "https://pics.s3.eu-west-3.mycompany.co.uk",
            None,
            ("https://s3.eu-west-3.mycompany.co.uk", "pics", "eu-west-3", "virtual"),
        ),
        ("https://s3.gra.io.cloud.ovh.net", "pics", ("https://s3.gra.io.cloud.ovh.net", "pics", "gra", "path")),
        (
            "https://pics.s3.fr-par.scw.cloud",
            None,
            ("https://s3.fr-par.scw.cloud", "pics", "fr-par", "virtual"),
        ),
        (
            "https://pics.s3-eu-west-1.amazonaws.com",
            None,
            ("https://s3-eu-west-1.amazonaws.com", "pics", "eu-west-1", "virtual"),
        ),
        (
            "https://pics.s3-accelerate.amazonaws.com",
            None,
            ("https://s3-accelerate.amazonaws.com", "pics", "us-east-1", "virtual"),
        ),
        (
            "https://pics.s3.dualstack.eu-west-1.amazonaws.com",
            None,
            ("https://s3.dualstack.eu-west-1.amazonaws.com", "pics", "eu-west-1", "virtual"),
        ),
        (
            "https://pics.s3-fips.us-gov-west-1.amazonaws.com",
            None,
            ("https://s3-fips.us-gov-west-1.amazonaws.com", "pics", "us-gov-west-1", "virtual"),
        ),
        (
            "https://pics.s3.cn-north-1.amazonaws.com.cn",
            None,
            ("https://s3.cn-north-1.amazonaws.com.cn", "pics", "cn-north-1", "virtual"),
        ),
        (
            f"https://pics.{'0a' * 16}.eu.r2.cloudflarestorage.com",
            None,
            (f"https://{'0a' * 16}.eu.r2.cloudflarestorage.com", "pics", "us-east-1", "virtual"),
        ),
        (
            "https://pics.storage.googleapis.com",
            "pics",
            ("https://storage.googleapis.com", "pics", "us-east-1", "virtual"),
        ),
        (
            "https://pics.sos-de-fra-1.exo.io",
            None,
            ("https://sos-de-fra-1.exo.io", "pics", "de-fra-1", "virtual"),
        ),
        (
            "https://tenancy.compat.objectstorage.us-phoenix-1.oraclecloud.com",
            "pics",
            ("https://tenancy.compat.objectstorage.us-phoenix-1.oraclecloud.com", "pics", "us-phoenix-1", "path"),
        ),
        ("http://127.0.0.1:9000", "pics", ("http://127.0.0.1:9000", "pics", "us-east-1", "path")),
        ("http://[::1]:9000/pics", None, ("http://[::1]:9000", "pics", "us-east-1", "path")),
        ("https://minio.s3.my-company.com", "pics", ("https://minio.s3.my-company.com", "pics", "us-east-1", "path")),
    ],
)
def test_a_store_is_what_its_url_means(url, bucket, expected):
    store = from_job(endpointUrl=url, bucketName=bucket)
    assert (store.endpoint_url, store.bucket, store.region, store.addressing) == expected
    assert store.expiry == 120


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"endpointUrl": None}, "endpointUrl"),
        ({"endpointUrl": "canary"}, "endpointUrl"),
        ({"endpointUrl": "ftp://s3.amazonaws.com"}, "endpointUrl"),
        ({"endpointUrl": "https://canary:canary@s3.amazonaws.com"}, "endpointUrl"),
        ({"endpointUrl": "https://s3.amazonaws.com/pics?canary"}, "endpointUrl"),
        ({"endpointUrl": "https://pics.s3.amazonaws.com/canary"}, "endpointUrl"),
        ({"accessId": ""}, "accessId"),
        ({"accessSecret": 3}, "accessSecret"),
        ({"accessSecret": "canary\nx"}, "accessSecret"),
        ({}, "bucketName"),
        ({"bucketName": "../canary"}, "bucketName"),
        ({"bucketName": "pics", "region": "canary/x"}, "region"),
        ({"bucketName": "pics", "region": 3}, "region"),
        ({"endpointUrl": "https://pics.s3.amazonaws.com", "bucketName": "canary"}, "bucketName"),
    ],
)
def test_a_mistake_names_its_field_and_shows_nothing(changes, field):
    with pytest.raises(InvalidInput) as caught:
        from_job(**changes)
    assert caught.value.field == f"s3Config.{field}"
    assert "canary" not in caught.value.message


def test_the_workers_own_store_is_whole_or_not_there():
    assert ObjectStore.from_settings(settings()) is None
    with pytest.raises(ConfigurationError, match="^BUCKET_ACCESS_KEY_ID: is missing"):
        ObjectStore.from_settings(settings(bucket_endpoint_url="https://pics.s3.amazonaws.com"))
    with pytest.raises(ConfigurationError, match="^BUCKET_ENDPOINT_URL: is missing"):
        ObjectStore.from_settings(settings(bucket_name="pics"))


def test_null_and_empty_are_not_given():
    for empty in (None, "", [], {}):
        store = from_job(endpointUrl="https://pics.s3.amazonaws.com", bucketName=empty, region=empty)
        assert (store.bucket, store.region) == ("pics", "us-east-1")
    assert from_job(bucketName="pics", region=" EU-Central-1 ").region == "eu-central-1"


def test_no_store_shows_its_keys():
    assert "canary" not in repr(from_job(bucketName="pics"))


def test_a_key_is_one_jobs_own_whatever_its_id():
    assert object_key("sync-1a2b-u1", 0, "png") == "sync-1a2b-u1/0.png"
    odd = ["../up", "a/b", "", "_x", "x" * 200, "\ud800", "ä"]
    keys = [object_key(name, 3, "webp") for name in odd]
    assert len(set(keys)) == len(odd)
    assert all(key.startswith("_") and key.count("/") == 1 and ".." not in key for key in keys)
    assert keys == [object_key(name, 3, "webp") for name in odd]
