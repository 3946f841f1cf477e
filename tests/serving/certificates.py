"""Certificates for tests, from temporary authorities."""

from dataclasses import dataclass
from pathlib import Path

import grpc
import trustme


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files and as bytes, and the authority that signed it."""

    certificate: Path
    key: Path
    authority: Path


def issue(folder: Path, authority: trustme.CA, *names: str) -> Pair:
    """Write (or replace) the pair of a folder; without names it is a server's, on this machine."""
    folder.mkdir(exist_ok=True)
    pair = Pair(folder / "certificate.pem", folder / "key.pem", folder / "authority.pem")
    issued = authority.issue_cert(*(names or ("localhost", "127.0.0.1")))
    # Each file in one step, as at a real renewal.
    for path, blob in (
        (pair.authority, authority.cert_pem),
        (pair.certificate, issued.cert_chain_pems[0]),
        (pair.key, issued.private_key_pem),
    ):
        replace(path, blob.bytes())
    pair.key.chmod(0o600)
    return pair


def replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.rename(path)


def channel(address: str, authority: bytes, client: Pair | None = None) -> grpc.Channel:
    """Return a new connection to a server whose certificate is signed by `authority`."""
    chain, key = (None, None) if client is None else (client.certificate.read_bytes(), client.key.read_bytes())
    credentials = grpc.ssl_channel_credentials(authority, key, chain)
    return grpc.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])
