"""What the host name of an object store's URL says: its bucket, its region, and where another region is."""

from __future__ import annotations

import re
from typing import NamedTuple

#: BUCKET.s3.REGION.DOMAIN (AWS, Backblaze, Wasabi, Scaleway and more), with AWS's older and special forms.
_S3 = re.compile(
    r"(?:(?P<bucket>[a-z0-9.-]+?)\.)?"
    r"(?P<store>s3(?:-fips|-accelerate|-external-1|-(?P<old_region>[a-z0-9-]+))?(?:\.dualstack)?"
    r"(?P<rest>(?:\.[a-z0-9-]+){2,}))"
)
#: BUCKET.REGION.DOMAIN of these; the CDN in front of DigitalOcean's takes no uploads.
_BY_REGION = re.compile(
    r"(?:(?P<bucket>[a-z0-9.-]+?)\.)?(?P<region>(?!cdn\.)[a-z0-9-]+)(?:\.cdn)?"
    r"\.(?P<domain>digitaloceanspaces\.com|linodeobjects\.com|vultrobjects\.com|your-objectstorage\.com)"
)
#: BUCKET.STORE of more of them; some name the region to sign for.
_BY_STORE = re.compile(
    r"(?:(?P<bucket>[a-z0-9.-]+?)\.)?(?P<store>"
    r"[0-9a-f]{32}(?:\.(?:eu|fedramp))?\.r2\.cloudflarestorage\.com|storage\.(?:googleapis\.com|yandexcloud\.net)"
    r"|sos-(?P<exoscale>[a-z0-9-]+)\.exo\.io|cos\.(?P<tencent>[a-z0-9-]+)\.myqcloud\.com"
    r"|[a-z0-9]+\.compat\.objectstorage\.(?P<oracle>[a-z0-9-]+)\.oraclecloud\.com)"
)
_AWS = {"amazonaws.com", "amazonaws.com.cn"}
#: Of these the labels before "s3" are a bucket for certain, and the one after it is a region.
_KNOWN = _AWS | {"backblazeb2.com", "wasabisys.com", "scw.cloud", "io.cloud.ovh.net", "perf.cloud.ovh.net"}
#: Elsewhere it may be a company's name, which seldom has a digit or a hyphen;
_REGION = re.compile(r"(?=.*[0-9-])[a-z0-9-]{2,32}")
#: under co.uk, com.au and their like it always is one.
_COUNTRY = re.compile(r"(?:com?|org|net|ac|gov|edu|ne|or|go|gob|gouv|gen|web|info|biz|ltd|plc|nom|id)\.[a-z]{2}")


class Host(NamedTuple):
    """The name of a host, taken apart.

    Args:
        bucket: the labels before the store's; None where there are none.
        store: the name without the bucket, which takes uploads.
        region: what requests are signed for; None where the name does not say.
        domain: what is the same for every region.
        certain: `bucket` cannot be anything but a bucket.
    """

    bucket: str | None
    store: str
    region: str | None
    domain: str
    certain: bool

    @classmethod
    def parse(cls, name: str) -> Host | None:
        """Takes a name apart; None where it has none of the known forms."""
        if match := _BY_REGION.fullmatch(name):
            # They sign for us-east-1 in every region.
            return cls(match["bucket"], f"{match['region']}.{match['domain']}", None, match["domain"], True)
        if match := _BY_STORE.fullmatch(name):
            region = match["exoscale"] or match["tencent"] or match["oracle"]
            return cls(match["bucket"], match["store"], region, match["store"], True)
        if not (match := _S3.fullmatch(name)):
            return None
        first, *others = match["rest"][1:].split(".")
        region, domain = match["old_region"], ".".join(others)
        is_region = domain in _KNOWN or (_REGION.fullmatch(first) and not _COUNTRY.fullmatch(domain))
        if region is None and len(others) >= 2 and is_region:
            region = first
        else:
            domain = f"{first}.{domain}"
        return cls(match["bucket"], match["store"], region, domain, domain in _KNOWN)

    def in_region(self, region: str) -> str | None:
        """The store's name in another region; None where the name does not say."""
        if self.domain in _AWS:
            return f"s3.{region}.{self.domain}"
        if self.region is None:
            return None
        return self.store.replace(f"{self.region}.", f"{region}.", 1)
