"""When certificates expire, compared with what made them."""

import base64
import datetime
import ssl

import pytest
import trustme

from speakerlens.serving.rpc.expiry import earliest_expiry

CA = trustme.CA()


def moment(year: int) -> datetime.datetime:
    return datetime.datetime(year, 5, 17, 12, 34, 56, tzinfo=datetime.UTC)


def certificate(expires: datetime.datetime) -> bytes:
    return CA.issue_cert("localhost", not_after=expires).cert_chain_pems[0].bytes()


@pytest.mark.parametrize("year", [2001, 2027, 2049, 2050, 2061, 2999])
def test_expiry_is_read_from_both_kinds_of_time(year: int) -> None:
    assert earliest_expiry(b"a comment\n" + certificate(moment(year))) == moment(year).timestamp()


def test_first_of_a_chain_counts() -> None:
    chain = certificate(moment(2040)) + certificate(moment(2030)) + certificate(moment(2035))
    assert earliest_expiry(chain) == moment(2030).timestamp()


@pytest.mark.parametrize("size", [0, 1, 2, 30, 60, 100, 200])
def test_damaged_certificate_is_a_value_error(size: int) -> None:

    der = ssl.PEM_cert_to_DER_cert(certificate(moment(2030)).decode())[:size]
    pem = f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(der).decode()}\n-----END CERTIFICATE-----\n"
    with pytest.raises(ValueError, match="certificate"):
        earliest_expiry(pem.encode())
