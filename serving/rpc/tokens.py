"""Bearer tokens of a file, and what each of them may use.

A line of the file is `NAME:TOKEN` or, so that the file holds no secret, `NAME:sha256=HEX`; after it may follow the
token's own `rate=`, `burst=` and `seconds-per-day=`. Empty lines and lines that begin with # are skipped.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from speakerlens.serving.config import Config
from speakerlens.serving.errors import Reason, ResourceExhaustedError, StartupError, UnauthenticatedError
from speakerlens.serving.rpc.reload import ReloadingFile, warn_if_public

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
TOKEN = re.compile(r"[!-~]{16,512}")
HASHED = re.compile(r"sha256=([0-9a-f]{64})")
DAY_SECONDS = 24 * 3600
# The same for a token that is missing and for one that is wrong.
REFUSAL = "no bearer token that is valid here; send the metadata authorization: Bearer TOKEN"


@dataclass(frozen=True)
class Allowance:
    """What a token may use; 0 is no limit: calls a second with a burst, and seconds of audio a day (UTC)."""

    rate: float = 0.0
    burst: int = 1
    seconds_per_day: float = 0.0


class Caller:
    """One token's name and use; kept in memory, so each server counts for itself and a restart begins anew."""

    def __init__(self, name: str, allowance: Allowance) -> None:
        self.name = name
        self.allowance = allowance
        self._calls = float(allowance.burst)
        self._refilled = time.monotonic()
        self._day, self._seconds = _today(), 0.0

    def admit(self) -> None:
        """Counts a call.

        Raises:
            ResourceExhaustedError: too many calls, or the day's audio is used up; says when to try again.
        """
        limit = self.allowance
        self._turn_the_day()
        if limit.seconds_per_day and self._seconds >= limit.seconds_per_day:
            text = f"the token {self.name} has used its {limit.seconds_per_day:g} s of audio of today (UTC)"
            raise ResourceExhaustedError(Reason.QUOTA, text, DAY_SECONDS - time.time() % DAY_SECONDS)
        if not limit.rate:
            return
        now = time.monotonic()
        self._calls = min(limit.burst, self._calls + (now - self._refilled) * limit.rate)
        self._refilled = now
        if self._calls < 1:
            text = f"the token {self.name} may make {limit.rate:g} calls a second, and {limit.burst} at once"
            raise ResourceExhaustedError(Reason.RATE_LIMIT, text, (1 - self._calls) / limit.rate)
        self._calls -= 1

    def charge(self, seconds: float) -> None:
        """Counts answered audio; the call that crosses the limit is still answered."""
        self._turn_the_day()
        self._seconds += seconds

    def _turn_the_day(self) -> None:
        today = _today()
        if today != self._day:
            self._day, self._seconds = today, 0.0


class Tokens:
    """The tokens of a file; a change of the file counts from the next call on.

    Args:
        path: the file.
        allowance: of tokens whose line does not say otherwise.

    Raises:
        StartupError: the file cannot be read, or a line of it makes no sense.
    """

    def __init__(self, path: Path, allowance: Allowance) -> None:
        self._path = path
        self._allowance = allowance
        self._accounts: dict[str, Caller] = {}
        try:
            warn_if_public("--tokens", path)
            self._digests = ReloadingFile("tokens", (path,), self._read)
        except OSError as error:
            raise StartupError(f"--tokens {path}: {error.strerror}") from error
        except ValueError as error:
            raise StartupError(str(error)) from error

    def account(self, authorization: str) -> Caller:
        """Whose token this is, given the value of the metadata `authorization`.

        Every digest is compared, in constant time, so that time tells nothing about any of them.

        Raises:
            UnauthenticatedError: nobody's.
        """
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode()).digest()
        owner = None
        for known, name in self._digests.value().items():
            if hmac.compare_digest(known, digest):
                owner = name
        if owner is None or scheme.lower() != "bearer":
            raise UnauthenticatedError(Reason.UNAUTHENTICATED, REFUSAL)
        return self._accounts[owner]

    def _read(self) -> Mapping[bytes, str]:
        """Digests and their names; accounts go on counting where a name stays."""
        digests: dict[bytes, str] = {}
        allowances: dict[str, Allowance] = {}
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            try:
                name, digest, allowance = _entry(line, self._allowance)
            except ValueError as error:
                raise ValueError(f"--tokens {self._path}, line {number}: {error}") from error
            if name in allowances or digest in digests:
                raise ValueError(f"--tokens {self._path}, line {number}: the name or the token is there already")
            digests[digest], allowances[name] = name, allowance
        if not digests:
            raise ValueError(f"--tokens {self._path}: no token in it")
        for name, allowance in allowances.items():
            self._accounts.setdefault(name, Caller(name, allowance)).allowance = allowance
        return digests


def tokens_of(config: Config) -> Tokens | None:
    """The tokens that the configuration names, if any.

    Raises:
        StartupError: the file makes no sense.
    """
    if config.tokens is None:
        return None
    return Tokens(config.tokens, Allowance(config.token_rate, config.token_burst, config.token_seconds_per_day))


def _entry(line: str, allowance: Allowance) -> tuple[str, bytes, Allowance]:
    """A line's name, digest and allowance; errors never quote the line, which holds a secret."""
    name, colon, rest = line.strip().partition(":")
    token, *settings = rest.split()[:9] or [""]
    if not colon or not NAME.fullmatch(name):
        raise ValueError("write NAME:TOKEN or NAME:sha256=HEX, a name of letters, digits, dots, dashes and underscores")
    hashed = HASHED.fullmatch(token)
    if not hashed and (token.startswith("sha256=") or not TOKEN.fullmatch(token)):
        raise ValueError(f"the token of {name} is neither 16 to 512 printable characters nor sha256= and 64 hex digits")
    digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(token.encode()).digest()
    for setting in settings:
        allowance = _set(allowance, name, setting)
    return name, digest, allowance


def _set(allowance: Allowance, name: str, setting: str) -> Allowance:
    key, _, text = setting.partition("=")
    kinds = {"rate": float, "burst": int, "seconds-per-day": float}
    try:
        value = kinds[key](text)
    except (KeyError, ValueError):
        raise ValueError(f"after the token of {name} stand rate=, burst= or seconds-per-day= and a number") from None
    if not (1 if key == "burst" else 0) <= value < float("inf"):
        raise ValueError(f"{key} of {name} is a number of {'1' if key == 'burst' else '0'} or more")
    return replace(allowance, **{key.replace("-", "_"): value})


def _today() -> int:
    return int(time.time() // DAY_SECONDS)
