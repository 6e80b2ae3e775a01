"""API keys: hashed at rest, compared in constant time, rotated by editing a file. Knows nothing of gRPC.

[[key]]
name = "support-backend"            # the caller, in logs and metrics; keys of one name share its rate
sha256 = "9f86d081884c7d65…"        # of the key; `fantail key NAME` makes both
scopes = ["classify"]               # and "admin"
calls_per_second = 50               # optional, as are burst, expires and isolated
burst = 100                         # calls at once; without it as many as in a second
expires = 2027-06-30T00:00:00Z
isolated = true                     # shares no KV with other callers, at the price of reading shared texts again
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from service.errors import ConfigurationError, RateLimitedError
from service.problems import sentences

logger = logging.getLogger(__name__)

CLASSIFY, ADMIN = "classify", "admin"
LOOK_SECONDS = 1.0
"""How often at most the file is looked at for changes."""

KEY_BYTES = 32
"""Random bytes of a new key: far beyond guessing, so that a plain hash at rest is enough."""


class Key(BaseModel):
    """An entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    scopes: frozenset[Literal["classify", "admin"]] = Field(min_length=1)
    calls_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    burst: int | None = Field(default=None, ge=1)
    expires: AwareDatetime | None = None
    isolated: bool = False

    @field_validator("sha256")
    @classmethod
    def _of_a_key(cls, sha256: str) -> str:
        if sha256 == hashlib.sha256(b"").hexdigest():
            raise ValueError("is the hash of nothing, which is what a call without key presents")
        return sha256

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> Self:
        if self.burst is not None and self.calls_per_second is None:
            raise ValueError("burst limits nothing without calls_per_second")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    key: list[Key] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_key_once(self) -> Self:
        if len({each.sha256 for each in self.key}) < len(self.key):
            raise ValueError("two entries have the same sha256: say it all in one")
        return self


@dataclass(slots=True)
class _Bucket:
    """What a caller has left of its rate: calls, and since when."""

    calls: float
    since: float


class KeyRing:
    """The keys of a file, read again when it changes; a file that went wrong leaves the keys as they were.

    `isolate_all`: every caller is isolated, whatever its key says.
    """

    def __init__(self, path: Path, isolate_all: bool = False) -> None:
        self._path, self._isolate_all = path, isolate_all
        self._stamp = _stamp(path)
        self._keys = load_keys(path)
        self._looked, self._complaint = time.monotonic(), ""
        self._buckets: dict[str, _Bucket] = {}
        self._secret = secrets.token_hex(16)

    def find(self, presented: str) -> Key | None:
        """The key that was presented, if there is such a one and it has not expired. Takes as long for any other."""
        self._look()
        digest = hashlib.sha256(presented.encode()).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None or (found.expires is not None and found.expires <= datetime.now(UTC)):
            return None
        return found

    def count(self, key: Key) -> None:
        """One more call. Raises RateLimitedError when that is more than the caller may make."""
        self._take(key, 1, least=1)

    def count_more(self, key: Key, work: int) -> None:
        """So much more work of a call that is let in; it may leave the caller in debt.

        Raises RateLimitedError when the caller is in debt already.
        """
        self._take(key, work, least=0)

    def _take(self, key: Key, calls: int, least: float) -> None:
        if key.calls_per_second is None:
            return
        now, most = time.monotonic(), float(key.burst or max(1.0, key.calls_per_second))
        bucket = self._buckets.setdefault(key.name, _Bucket(most, now))
        bucket.calls = min(most, bucket.calls + (now - bucket.since) * key.calls_per_second)
        bucket.since = now
        if bucket.calls < least:
            raise RateLimitedError(
                "This key is used more often than it may; try again after the delay.",
                (least - bucket.calls) / key.calls_per_second,
                {"calls_per_second": f"{key.calls_per_second:g}"},
            )
        bucket.calls -= calls

    def salt(self, key: Key) -> str:
        """What keeps an isolated caller's KV from all others; empty for those who share."""
        if not (key.isolated or self._isolate_all):
            return ""
        return hashlib.sha256(f"{self._secret} {key.name}".encode()).hexdigest()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if (stamp := _stamp(self._path)) == self._stamp:
            return
        try:
            self._keys, self._stamp = load_keys(self._path), stamp
            self._complaint = ""
            logger.info("keys: %d read anew", len(self._keys))
        except ConfigurationError as error:
            if error.message != self._complaint:
                logger.error("keys stay as they were: %s", error.message)
            self._complaint = error.message
            if not isinstance(error.__cause__, OSError):  # what could not be read is tried again, what is wrong is not
                self._stamp = stamp


def load_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file. Raises ConfigurationError with every problem in it."""
    try:
        return tuple(_File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).key)
    except OSError as error:
        raise ConfigurationError(f"FANTAIL_KEYS: {path} cannot be read: {type(error).__name__}") from error
    except ValidationError as error:
        known = f"; known keys of an entry: {', '.join(Key.model_fields)}"
        raise ConfigurationError(f"FANTAIL_KEYS: {path}: {'; '.join(sentences(error))}{known}") from error
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: whole numbers have a longest length too
        raise ConfigurationError(f"FANTAIL_KEYS: {path} is not valid TOML") from error


def new_key() -> tuple[str, str]:
    """A new key and its sha256, hex."""
    key = secrets.token_urlsafe(KEY_BYTES)
    return key, hashlib.sha256(key.encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does, be it another one of the same size and age; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size
