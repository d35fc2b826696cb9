"""A reference that came as text: base64, or a data: URI."""

from __future__ import annotations

import base64
import binascii
import re

from imagegen.errors import BadReference

_STANDARD = bytes.maketrans(b"-_", b"+/")
#: What JavaScript's encodeURIComponent makes of +, / and =.
_ENCODED = re.compile("%(2[BbFf]|3[Dd])")


def decode(value: str, field: str) -> bytes:
    """Base64 or data: URI -> bytes. The standard and the URL-safe alphabet (RFC 4648), with any padding or none.

    Raises:
        BadReference: it is neither, or holds nothing.
    """
    if value[:5].lower() == "data:":
        header, comma, value = value.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise BadReference(f"{field}: a data: URI must have the form data:image/png;base64,...", field)
        value = _ENCODED.sub(lambda found: chr(int(found[1], 16)), value)
    try:
        text = b"".join(value.encode("ascii").split()).rstrip(b"=").translate(_STANDARD)
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadReference(
            f"{field}: is not base64 (A-Z a-z 0-9 + / or - _, and = as padding), nor a URL that begins with http",
            field,
        ) from None
    if not data:
        raise BadReference(f"{field}: is empty", field)
    return data
