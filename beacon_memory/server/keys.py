"""API keys: each opens one namespace. The file keeps their hashes, never the keys."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from beacon_memory.errors import InputError, StoreUnavailable
from beacon_memory.locks import Lock

PREFIX = "sk-beacon-"
VERSION = 1
_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class Key:
    """What is known of a key."""

    id: str  # the first letters of its hash
    namespace: str  # whose sessions and documents it opens
    hash: str  # SHA-256 of the key: 256 random bits need no slow hash
    made: str  # when, in UTC


class Keys:
    """The keys of a file, which is read again when it changes: an added or revoked key counts at once.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     keys = Keys(f"{folder}/keys.json")
    ...     secret = keys.add("acme")
    ...     keys.namespace(secret), keys.namespace("sk-beacon-guessed")
    ('acme', None)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._lock = Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._by_hash: dict[str, Key] = {}

    def namespace(self, secret: str) -> str | None:
        """The namespace that a key opens; None for one that is not there. Raises StoreUnavailable."""
        with self._lock:
            self._refresh()
            found = self._by_hash.get(_hash(secret))
        return None if found is None else found.namespace

    def all(self) -> list[Key]:
        """All keys, oldest first. Raises StoreUnavailable."""
        with self._lock:
            self._refresh()
            return list(self._by_hash.values())

    def namespaces(self) -> list[str]:
        """The namespaces that any key opens, sorted."""
        return sorted({key.namespace for key in self.all()})

    def add(self, namespace: str) -> str:
        """A new key for a namespace; it is told once and kept nowhere. Raises InputError, StoreUnavailable."""
        secret = PREFIX + secrets.token_urlsafe(32)
        digest = _hash(secret)
        made = datetime.now(UTC).isoformat(timespec="seconds")
        key = Key(digest[:12], check_namespace(namespace), digest, made)
        self._change(lambda keys: [*keys, key])
        return secret

    def revoke(self, key_id: str) -> None:
        """Remove a key by its id. Raises InputError for one that is not there, StoreUnavailable."""

        def without(keys: list[Key]) -> list[Key]:
            left = [key for key in keys if key.id != key_id]
            if len(left) == len(keys):
                raise InputError(f"no key {key_id!r:.80} in {self.path}: `beacon-memory keys list` shows their ids")
            return left

        self._change(without)

    def _change(self, change: Callable[[list[Key]], list[Key]]) -> None:
        """Write the file anew, whole or not at all; one writer at a time."""
        with _translated(self.path), FileLock(f"{self.path}.lock"):
            kept = change(self.all() if self.path.exists() else [])
            body = json.dumps({"version": VERSION, "keys": [asdict(key) for key in kept]}, indent=1)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)  # mode 0600
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(body + "\n")
                os.replace(name, self.path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise

    def _refresh(self) -> None:
        with _translated(self.path):
            stat = self.path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp != self._stamp:
                keys = [_key(one) for one in _listed(json.loads(self.path.read_text()))]
                self._by_hash, self._stamp = {key.hash: key for key in keys}, stamp


def check_namespace(name: str) -> str:
    """A namespace's name: it is a part of file names and of Redis keys. Raises InputError."""
    if not isinstance(name, str) or not _NAMESPACE.fullmatch(name):
        raise InputError(
            f"a namespace is 1 to 63 of a-z, 0-9, - and _, and begins with a letter or digit: not {name!r:.80}"
        )
    return name


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _listed(body: Any) -> list[Any]:
    if not isinstance(body, dict) or body.get("version") != VERSION or not isinstance(body.get("keys"), list):
        raise ValueError(f"not a file of keys of version {VERSION}")
    return list(body["keys"])


def _key(found: Any) -> Key:
    key = Key(**found)
    if not all(isinstance(value, str) for value in asdict(key).values()) or len(key.hash) != 64:
        raise ValueError("a key that is none")
    check_namespace(key.namespace)
    return key


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise StoreUnavailable(f"no file of keys at {path}: make one with `beacon-memory keys add NAMESPACE`") from exc
    except InputError:
        raise
    except (OSError, ValueError, TypeError) as exc:
        raise StoreUnavailable(f"the file of keys {path} cannot be used: {exc}") from exc
