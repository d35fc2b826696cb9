"""How a URL that a caller sends must be written, before anything is asked of it."""

from __future__ import annotations

import re
from collections.abc import Collection

from yarl import URL

from imagegen.errors import ImageGenError
from imagegen.inputs import addresses

SCHEMES = ("http", "https")
#: A presigned URL has about a thousand.
_MAX_URL = 8192
#: What RFC 3986 allows, and letters of other scripts; a space or a control character could end a line of a request.
_TEXT = re.compile(r"[!-~\u00a1-\ud7ff\ue000-\U0010ffff]*")
#: A name, or an address without a zone.
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|(?=[0-9a-f.]*:)[0-9a-f:.]+", re.IGNORECASE)


def check(
    text: str, field: str, private_hosts: str, error: type[ImageGenError], schemes: Collection[str] = SCHEMES
) -> URL:
    """A URL that may be asked for, its addresses aside. It is not written anew: signatures cover how it is written.

    Args:
        field: its name in errors.
        private_hosts: the operator's list, whose ports may be any.
        error: of the field.
        schemes: those that are allowed.

    Raises:
        ImageGenError: an `error`.
    """
    try:
        if len(text) > _MAX_URL or not _TEXT.fullmatch(text):
            raise ValueError
        url = URL(text, encoded=text.isascii())
        if url.scheme not in schemes:
            allowed = f"{' and '.join(schemes)} {'is' if len(schemes) == 1 else 'are'} allowed"
            raise error(f"{field}: leads to another scheme; {allowed}", field)
        host, port = url.raw_host or "", url.port
        if not _HOST.fullmatch(host) or port is None:
            raise ValueError
    except (ValueError, TypeError):
        raise error(f"{field}: is not a URL that can be fetched", field) from None
    if url.raw_user is not None or url.raw_password is not None:
        raise error(f"{field}: a URL with a user's name or password is not fetched", field)
    if not addresses.is_web_port(port) and not addresses.named(host, port, private_hosts):
        raise error(f"{field}: port {port} is no web server's; 80, 443 and most from 1024 on are allowed", field)
    return url
