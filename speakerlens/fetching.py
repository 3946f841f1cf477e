"""Fetch model bundles over HTTPS or from S3, and check every digest before a server can see them.

A source is the address of a bundle's folder, with the SHA-256 of its `bundle.json` behind it:
`https://HOST/PATH/act-da/3#sha256=DIGEST` or `s3://BUCKET/PATH/act-da/3#sha256=DIGEST`. That file has the digests of
all other files, so that this one covers everything. Nothing is unpacked or executed.
"""

import datetime
import hashlib
import http.client
import json
import os
import re
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from speakerlens import s3

MANIFEST = "bundle.json"
DIGEST = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
BLOCK_BYTES = 2**20
# bundle.json with the names of a hundred thousand speakers has a few MB.
MAX_MANIFEST_BYTES = 64 * 2**20
READ_SECONDS = 60.0
ATTEMPTS = 5
# Before the second attempt; twice as long before each further one.
BACKOFF_SECONDS = 0.5
# Statuses of a server that may answer later.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class FetchError(Exception):
    """A bundle cannot be fetched, or is not the one that is wanted; one sentence that says why."""


class _TransientError(Exception):
    """An attempt failed, and the next one may not."""


@dataclass(frozen=True)
class Source:
    """Where a bundle lies.

    Attributes:
        address: of its folder, without an end slash.
        digest: SHA-256 of its `bundle.json`; None: whatever is there, over TLS.
    """

    address: str
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Read a source as it is written on the command line.

        Raises:
            FetchError: it is not valid.
        """
        address, _, fragment = text.partition("#")
        scheme = urlsplit(address).scheme
        if scheme not in ("https", "http", "s3") or not urlsplit(address).netloc:
            raise FetchError(f"{text}: not https://HOST/…, http://HOST/… or s3://BUCKET/…")
        if urlsplit(address).query:
            raise FetchError(f"{text}: an address with a query names one file; a bundle is a folder")
        digest = fragment.removeprefix("sha256=") if fragment else None
        if digest is not None and not DIGEST.fullmatch(digest):
            raise FetchError(f"{text}: what follows # must be sha256= and 64 hexadecimal digits")
        if digest is None and scheme == "http":
            raise FetchError(f"{text}: without TLS, #sha256=DIGEST of its {MANIFEST} is needed")
        return cls(address.rstrip("/"), digest)


def fetch(source: Source, out: Path, environ: Mapping[str, str] = os.environ) -> tuple[Path, bool]:
    """Fetch one bundle to `<out>/<variant>/<version>`, which appears when it is complete.

    Args:
        source: where it lies.
        out: folder of bundles, as `serve --bundles` reads it; created where it is missing.
        environ: has the variables of S3.

    Returns:
        The bundle's folder, and whether it was fetched; False: the same bundle was there.

    Raises:
        FetchError: it cannot be fetched, is not the one that is wanted, or another one is there.
        OSError: `out` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".fetch-", ignore_cleanup_errors=True) as temporary:
        work = Path(temporary) / "bundle"
        work.mkdir()
        digest = _download(source, MANIFEST, work / MANIFEST, environ, MAX_MANIFEST_BYTES)
        if source.digest not in (None, digest):
            raise FetchError(f"{source.address}/{MANIFEST} has the SHA-256 {digest}, not {source.digest}")
        manifest = _manifest(source, work / MANIFEST)
        target = out / manifest["variant"] / str(manifest["version"])
        if target.exists():
            if _sha256(target / MANIFEST) == digest and _is_complete(target, manifest["files"]):
                return target, False
            raise FetchError(f"{target} is another bundle, or is damaged; remove it first")
        for name, expected in manifest["files"].items():
            file = work / name
            file.parent.mkdir(parents=True, exist_ok=True)
            found = _download(source, name, file, environ, None)
            if found != expected:
                raise FetchError(f"{source.address}/{name} has the SHA-256 {found}, not {expected} as in {MANIFEST}")
        target.parent.mkdir(exist_ok=True)
        # Complete or not there at all, for a server that watches the folder.
        work.rename(target)
    return target, True


def _manifest(source: Source, file: Path) -> dict[str, Any]:
    """Return the manifest, of which only what is needed here is checked; the server checks all of it."""
    try:
        manifest = json.loads(file.read_bytes())
        variant, version, files = manifest["variant"], manifest["version"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise FetchError(f"{source.address}/{MANIFEST} is not the manifest of a bundle") from error
    names = [variant, *files] if isinstance(files, dict) else [None]
    valid = isinstance(version, int) and version > 0 and all(isinstance(name, str) for name in names)
    if not valid or not NAME.fullmatch(variant) or not all(map(_is_inside, files)):
        raise FetchError(f"{source.address}/{MANIFEST} is not the manifest of a bundle")
    return dict(manifest)


def _is_inside(name: str) -> bool:
    """Return whether the path of a file stays within its bundle."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and name != MANIFEST


def _is_complete(folder: Path, files: Mapping[str, str]) -> bool:
    return all(_sha256(folder / name) == digest for name, digest in files.items())


def _sha256(file: Path) -> str | None:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return None


def _download(source: Source, name: str, file: Path, environ: Mapping[str, str], limit: int | None) -> str:
    """Write a file of the bundle and return its SHA-256; attempts that fail for now are repeated."""
    where = f"{source.address}/{name}"
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        try:
            return _attempt(where, file, environ, limit)
        except _TransientError as error:
            reason = str(error)
    raise FetchError(f"{where} cannot be fetched after {ATTEMPTS} attempts: {reason}")


def _attempt(where: str, file: Path, environ: Mapping[str, str], limit: int | None) -> str:
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(_request(where, environ), timeout=READ_SECONDS) as answer, file.open("wb") as out:  # noqa: S310
            while block := answer.read(BLOCK_BYTES):
                size += len(block)
                if limit is not None and size > limit:
                    raise FetchError(f"{where} is larger than {limit} bytes")
                digest.update(block)
                out.write(block)
            if answer.length:  # bytes that are still to come
                raise _TransientError("the connection ended early")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in TRANSIENT:
            raise _TransientError(f"HTTP status {error.code}") from None
        raise FetchError(f"{where} cannot be fetched: HTTP status {error.code}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise FetchError(f"{where}: its certificate is not trusted: {error.reason.verify_message}") from error
        raise _TransientError(str(error.reason)) from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _TransientError(str(error) or type(error).__name__) from error
    return digest.hexdigest()


def _request(where: str, environ: Mapping[str, str]) -> urllib.request.Request:
    parts = urlsplit(where)
    if parts.scheme != "s3":
        return urllib.request.Request(f"{parts.scheme}://{parts.netloc}{quote(parts.path, safe='/%')}")  # noqa: S310 - https or http
    url = s3.object_url(parts.netloc, parts.path.lstrip("/"), environ)
    keys = s3.credentials(environ)
    now = datetime.datetime.now(datetime.UTC)
    headers = s3.signed_headers(url, keys, s3.region(environ), now) if keys else {}
    return urllib.request.Request(url, headers=headers)  # noqa: S310 - the endpoint that the operator set
