"""Tags that sign what a store keeps: equal only for the same bytes, under the same name, in the same namespace.

Without a key a tag is a SHA-256: it shows damage and mix-ups. With a key it is an HMAC-SHA-256: it shows changes by
someone who can write to the store but does not hold the key. On request the bytes are encrypted too, with AES-GCM, so
that someone who can read the store cannot read them.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from beacon_memory.errors import ConfigError, IntegrityError, MissingExtra

PLAIN, KEYED, ENCRYPTED = b"\x01", b"\x02", b"\x03"
TAG = 1 + hashlib.sha256().digest_size  # bytes: the form, then the digest
SHORTEST_KEY = 16
NONCE = 12  # bytes in front of encrypted ones


@dataclass(frozen=True)
class Signer:
    """Makes the tags of one namespace with `key`, and checks them with it or, while a key is changed, `old_key`.

    >>> signer = Signer("beacon:{default}")
    >>> signer.verify("blob", "d1", signer.sign("blob", "d1", b"slots"))
    b'slots'
    """

    namespace: str
    key: bytes | None = field(default=None, repr=False)
    old_key: bytes | None = field(default=None, repr=False)
    encrypt: bool = False
    trust: bool = False  # accept tags without a key too: while a store gets its first key

    def __post_init__(self) -> None:
        for key in (self.key, self.old_key):
            if key is not None and (not isinstance(key, bytes) or len(key) < SHORTEST_KEY):
                raise ConfigError(f"the key of a store must be bytes, {SHORTEST_KEY} random ones or more")
        if self.key is None and (self.old_key is not None or self.encrypt):
            raise ConfigError("old_key and encrypt work only with a key: give one too")
        if self.encrypt:
            assert self.key is not None
            _cipher(self.key)  # raises MissingExtra before anything is written

    @cached_property
    def _form(self) -> bytes:
        return PLAIN if self.key is None else ENCRYPTED if self.encrypt else KEYED

    @property
    def _keys(self) -> list[bytes | None]:
        keys = [self.key, self.old_key] if self.old_key else [self.key]
        return [*keys, None] if self.trust and self.key else keys

    def sign(self, kind: str, name: str, data: bytes) -> bytes:
        """The tag, then the bytes as they are kept."""
        tag, kept = self.signed(kind, name, data)
        return tag + kept

    def verify(self, kind: str, name: str, signed: bytes) -> bytes:
        """The original bytes of what `sign` gave. Raises IntegrityError."""
        return self.verified(signed[:TAG], kind, name, signed[TAG:])

    def signed(self, kind: str, name: str, data: bytes, *about: bytes) -> tuple[bytes, bytes]:
        """A tag that signs these bytes together with `about`, and the bytes as they are kept."""
        if self._form == ENCRYPTED:
            assert self.key is not None
            # The nonce comes from the key and the contents: the same blob is the same bytes, whoever writes it.
            nonce = self._digest(self.key, "nonce", name, kind.encode(), *about, data)[:NONCE]
            data = nonce + _cipher(self.key).encrypt(nonce, data, self._place(kind, name))
        return self._form + self._digest(self.key, _kind(kind, self._form), name, *about, data), data

    def verified(self, tag: bytes, kind: str, name: str, kept: bytes, *about: bytes) -> bytes:
        """The original bytes of what `signed` gave. Raises IntegrityError."""
        key = self.check(tag, kind, name, *about, kept)
        if tag[:1] != ENCRYPTED:
            return kept
        assert key is not None
        plain: bytes = _cipher(key).decrypt(kept[:NONCE], kept[NONCE:], self._place(kind, name))
        return plain

    def newest(self, tag: bytes, kind: str, name: str, *parts: bytes) -> bool:
        """Whether a valid tag is the one that this signer would make today."""
        made = self._digest(self.key, _kind(kind, self._form), name, *parts)
        return tag[:1] == self._form and hmac.compare_digest(tag[1:], made)

    def check(self, tag: bytes, kind: str, name: str, *parts: bytes) -> bytes | None:
        """The key that made the tag of these bytes in this place. Raises IntegrityError unless it is one of ours."""
        what, form = f"{kind} {name!r:.80}", tag[:1]
        if form not in (PLAIN, KEYED, ENCRYPTED):
            raise IntegrityError(f"{what} is damaged, or was not written by this package")
        if form != PLAIN and self.key is None:
            raise IntegrityError(f"{what} was signed with a key: open the store with it")
        if form == PLAIN and None not in self._keys:
            raise IntegrityError(f"{what} was written without the store's key: it is not trusted")
        for key in self._keys:
            made = self._digest(key, _kind(kind, form), name, *parts)
            if (key is None) == (form == PLAIN) and hmac.compare_digest(tag[1:], made):
                return key
        raise IntegrityError(
            f"{what} is not what was written there: it was edited, truncated or moved from another place"
            + (", or signed with another key" if self.key else "")
        )

    def tag(self, kind: str, name: str, *parts: bytes) -> bytes:
        """The tag of these bytes in their place, not encrypted."""
        return (PLAIN if self.key is None else KEYED) + self._digest(self.key, kind, name, *parts)

    def _digest(self, key: bytes | None, kind: str, name: str, *parts: bytes) -> bytes:
        digest: Any = hashlib.sha256() if key is None else hmac.new(key, digestmod=hashlib.sha256)
        # Each length comes first: no two lists of parts give the same bytes.
        for part in (b"beacon-store-1", self.namespace.encode(), kind.encode(), name.encode(), *parts):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        made: bytes = digest.digest()
        return made

    def _place(self, kind: str, name: str) -> bytes:
        return f"{self.namespace}\0{kind}\0{name}".encode()


def _kind(kind: str, form: bytes) -> str:
    # The tag of encrypted bytes must not hold for the same bytes as plain text.
    return f"{kind}, encrypted" if form == ENCRYPTED else kind


def _cipher(key: bytes) -> Any:
    """AES-256-GCM, with a key derived from the store's, which makes the tags. Raises MissingExtra."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as exc:
        raise MissingExtra("a store that encrypts needs an extra: pip install 'beacon-memory[encryption]'") from exc
    return AESGCM(hmac.digest(key, b"beacon-encryption-1", "sha256"))
