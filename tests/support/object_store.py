"""Moto's S3 server on loopback."""

import contextlib
import logging

import boto3
from moto.server import ThreadedMotoServer


@contextlib.contextmanager
def object_store(bucket, secret="secret"):
    """An S3 server with a bucket, for the key "id"; gives its URL, and a client."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="id", aws_secret_access_key=secret, region_name="us-east-1"
        )
        client.create_bucket(Bucket=bucket)
        yield url, client
    finally:
        server.stop()
