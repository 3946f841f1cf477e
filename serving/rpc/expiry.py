"""When certificates expire, read from their DER (RFC 5280, section 4.1); the standard library shows no file's dates."""

import datetime
import re
import ssl
from collections.abc import Iterator

# Tags; the other kind of time is UTCTime, with two digits of the year.
GENERALIZED_TIME, VERSION = 0x18, 0xA0
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def earliest_expiry(pem: bytes) -> float:
    """Return when the first of a file's certificates expires, in seconds since 1970.

    Raises:
        ValueError: there is no certificate, or one is not well formed.
    """
    blocks = PEM.findall(pem.decode("ascii", "replace"))
    if not blocks:
        raise ValueError("no certificate in PEM")
    return min(_expiry(ssl.PEM_cert_to_DER_cert(block)) for block in blocks)


def _expiry(der: bytes) -> float:
    try:
        (_, certificate), *_ = _elements(der)
        (_, signed), *_ = _elements(certificate)
        parts = [content for tag, content in _elements(signed) if tag != VERSION]
        # Serial number, signature, issuer, validity; of which: not before, not after.
        _, (tag, content) = _elements(parts[3])
        text = content.decode("ascii").replace("Z", "+0000")
        if tag == GENERALIZED_TIME:
            return datetime.datetime.strptime(text, "%Y%m%d%H%M%S%z").timestamp()
        moment = datetime.datetime.strptime(text, "%y%m%d%H%M%S%z")
    except (ValueError, IndexError) as error:
        raise ValueError("a certificate that is damaged") from error
    if moment.year >= 2050:
        moment = moment.replace(year=moment.year - 100)
    return moment.timestamp()


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tag and the content of each element; raise IndexError or ValueError where they are cut off."""
    position = 0
    while position < len(der):
        tag, length = der[position], der[position + 1]
        position += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[position : position + size])
            position += size
        if position + length > len(der):
            raise ValueError("it is cut off")
        yield tag, der[position : position + length]
        position += length
