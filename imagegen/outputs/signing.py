"""C2PA: a manifest in each image that says who made it, signed with the operator's key, so that it can be checked.

Needs the packages c2pa-python and cryptography. The key signs in the threads that compress images, beside the GPU.
"""

from __future__ import annotations

import io
import json
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from imagegen import __version__
from imagegen.errors import ConfigurationError
from imagegen.outputs.provenance import Provenance
from imagegen.settings import Settings

#: No thumbnail: it would be as large as the image, which is there. Nothing is fetched for a file that names a URL.
_C2PA_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


class Signer:
    """Signs images; any thread may.

    Args:
        certificates: the chain as PEM, the signer's own first. It needs the key usage digitalSignature and an extended
            usage that C2PA accepts (such as emailProtection); its trust is the reader's business.
        key: its private key as PEM, PKCS #8, without a password: EC (P-256, P-384, P-521), Ed25519 or RSA.

    Raises:
        ConfigurationError: they are not a key and the certificates that belong to it.
    """

    def __init__(self, certificates: str, key: str) -> None:
        import c2pa

        self._context = c2pa.Context(c2pa.Settings.from_dict(_C2PA_SETTINGS))
        self._info = c2pa.C2paSignerInfo(_algorithm(key), certificates.encode(), key.encode(), None)
        probe = io.BytesIO()
        Image.new("RGB", (1, 1)).save(probe, "PNG")
        try:
            self.sign(probe.getvalue(), "png", Provenance("", 0, 0, 1, 1))
        except c2pa.C2paError as error:
            raise ConfigurationError(
                "IMAGEGEN_C2PA_CERTIFICATE, IMAGEGEN_C2PA_KEY: nothing can be signed with them; they must belong to "
                f"each other, and the certificate be one for signing by C2PA's rules ({type(error).__name__[1:]})"
            ) from None

    def sign(self, data: bytes, output_format: str, provenance: Provenance) -> bytes:
        """The file with a signed manifest of `provenance` in it.

        Args:
            output_format: "png", "jpeg" or "webp".
        """
        import c2pa

        action = {
            "action": "c2pa.created",
            "digitalSourceType": provenance.source_type,
            "softwareAgent": {"name": provenance.model},
        }
        manifest = {
            "claim_generator_info": [{"name": "image-gen", "version": __version__}],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
        signed = io.BytesIO()
        with c2pa.Signer.from_info(self._info) as signer, c2pa.Builder(manifest, context=self._context) as builder:
            builder.sign(signer, f"image/{output_format}", io.BytesIO(data), signed)
        return signed.getvalue()


def load_signer(settings: Settings) -> Signer | None:
    """The signer that the settings ask for, None where they ask for none.

    Raises:
        ConfigurationError: one of key and certificate is missing or cannot be used, or c2pa is not installed.
    """
    certificate, key = settings.c2pa_certificate, settings.c2pa_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "IMAGEGEN_C2PA_KEY" if key is None else "IMAGEGEN_C2PA_CERTIFICATE"
        raise ConfigurationError(f"{missing}: is not set; signing needs both the key and its certificates")
    if find_spec("c2pa") is None:
        raise ConfigurationError("IMAGEGEN_C2PA_KEY: signing needs c2pa: pip install c2pa-python cryptography")
    certificates = _pem(certificate, "IMAGEGEN_C2PA_CERTIFICATE")
    return Signer(certificates, _pem(key.get_secret_value(), "IMAGEGEN_C2PA_KEY"))


def validation_state(data: bytes, mime_type: str) -> str | None:
    """C2PA's verdict on a file's manifest: "Trusted", "Valid" (by a signer that nobody vouches for), or "Invalid"; None
    where there is no manifest, or c2pa is not installed."""
    if find_spec("c2pa") is None:
        return None
    import c2pa

    try:
        context = c2pa.Context(c2pa.Settings.from_dict(_C2PA_SETTINGS))
        with c2pa.Reader(mime_type, io.BytesIO(data), context=context) as reader:
            return str(json.loads(reader.json())["validation_state"])
    except c2pa.C2paError:
        return None


def _pem(value: str, name: str) -> str:
    """PEM text, or what is in the file of this name."""
    if value.lstrip().startswith("-----BEGIN"):
        return value.replace("\\n", "\n")  # as it comes through environments that know no line breaks
    try:
        return Path(value).expanduser().read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{name}: is neither PEM nor a file with it ({type(error).__name__})") from None


def _algorithm(key: str) -> str:
    """C2PA's name for what a key signs with.

    Raises:
        ConfigurationError: it is no key that C2PA knows.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private: Any = None
    with suppress(ValueError, TypeError):  # not PEM, or with a password
        private = load_pem_private_key(key.encode(), None)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        name = {256: "es256", 384: "es384", 521: "es512"}.get(private.key_size)
    else:
        name = "ed25519" if isinstance(private, ed25519.Ed25519PrivateKey) else None
        name = "ps256" if isinstance(private, rsa.RSAPrivateKey) else name
    if name is None:
        raise ConfigurationError("IMAGEGEN_C2PA_KEY: is no private key in PEM without a password, EC, Ed25519 or RSA")
    return name
