"""Sign requests to S3 and stores like it: AWS Signature Version 4, of requests without a body."""

import datetime
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

ALGORITHM = "AWS4-HMAC-SHA256"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True)
class Credentials:
    """Keys of an account; `token` belongs to temporary ones."""

    key: str
    secret: str
    token: str | None = None


def credentials(environ: Mapping[str, str]) -> Credentials | None:
    """Return the credentials of the usual variables; None where they are not set."""
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    return Credentials(key, secret, environ.get("AWS_SESSION_TOKEN") or None) if key and secret else None


def region(environ: Mapping[str, str]) -> str:
    """Return the region of the usual variables."""
    return environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION


def object_url(bucket: str, key: str, environ: Mapping[str, str]) -> str:
    """Return the URL of an object, in Amazon's S3 or at the endpoint of the usual variables."""
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    endpoint = endpoint or f"https://s3.{region(environ)}.amazonaws.com"
    return f"{endpoint.rstrip('/')}/{quote(bucket)}/{quote(key)}"


def signed_headers(
    url: str,
    keys: Credentials,
    where: str,
    now: datetime.datetime,
    headers: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the headers of a signed GET request.

    Args:
        url: with its path quoted; a query is not supported.
        keys: the account's.
        where: region.
        now: UTC.
        headers: further headers to sign.
    """
    parts = urlsplit(url)
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    signed = {"host": parts.netloc, "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": stamp}
    signed |= {name.lower(): value for name, value in (headers or {}).items()}
    if keys.token:
        signed["x-amz-security-token"] = keys.token
    names = sorted(signed)
    canonical = "\n".join(
        ("GET", parts.path or "/", "", *(f"{name}:{signed[name].strip()}" for name in names), "", ";".join(names))
    )
    scope = f"{stamp[:8]}/{where}/s3/aws4_request"
    digest = hashlib.sha256(f"{canonical}\n{EMPTY_SHA256}".encode()).hexdigest()
    signature = f"AWS4{keys.secret}".encode()
    for part in (*scope.split("/"), "\n".join((ALGORITHM, stamp, scope, digest))):
        signature = hmac.digest(signature, part.encode(), "sha256")
    signed["authorization"] = (
        f"{ALGORITHM} Credential={keys.key}/{scope},SignedHeaders={';'.join(names)},Signature={signature.hex()}"
    )
    return signed
