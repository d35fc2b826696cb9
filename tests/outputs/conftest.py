"""Uploads to stores on loopback."""

import pytest

from imagegen.outputs import upload


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """An upload has minutes, so that a busy machine makes none fail; a test of a deadline sets its own."""
    for name in ("_SECONDS", "_CONNECT_SECONDS", "_READ_SECONDS"):
        monkeypatch.setattr(upload, name, 500)
