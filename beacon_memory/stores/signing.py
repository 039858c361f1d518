"""Tags on what a store keeps: equal only for the same bytes, under the same name, in the same namespace.

Without a key a tag is a SHA-256, against damage and mix-ups. With a key it is an HMAC-SHA-256, against someone who can
write to the store but does not hold the key.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from beacon_memory.errors import ConfigError, IntegrityError

PLAIN, KEYED = b"\x01", b"\x02"
TAG = 1 + hashlib.sha256().digest_size  # bytes: the form, then the digest
SHORTEST_KEY = 16


@dataclass(frozen=True)
class Signer:
    """The tags of one namespace.

    >>> signer = Signer("beacon:{default}")
    >>> signer.verify("blob", "d1", signer.sign("blob", "d1", b"slots"))
    b'slots'
    """

    namespace: str
    key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.key is not None and (not isinstance(self.key, bytes) or len(self.key) < SHORTEST_KEY):
            raise ConfigError(f"the key of a store is {SHORTEST_KEY} random bytes or more, as bytes")

    def tag(self, kind: str, name: str, *parts: bytes) -> bytes:
        """The tag of these bytes in their place."""
        digest = hashlib.sha256() if self.key is None else hmac.new(self.key, digestmod=hashlib.sha256)
        # Lengths in front: no two lists of parts run together to the same bytes.
        for part in (b"beacon-store-1", self.namespace.encode(), kind.encode(), name.encode(), *parts):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return (PLAIN if self.key is None else KEYED) + digest.digest()

    def check(self, tag: bytes, kind: str, name: str, *parts: bytes) -> None:
        """Raises IntegrityError unless the tag is the one of these bytes in this place."""
        what = f"{kind} {name!r:.80}"
        form = KEYED if self.key else PLAIN
        if tag[:1] != form:
            if tag[:1] == KEYED:
                raise IntegrityError(f"{what} was sealed with a key: open the store with it")
            if tag[:1] == PLAIN and self.key:
                raise IntegrityError(f"{what} was written without the store's key: it is not trusted")
            raise IntegrityError(f"{what} is damaged, or was not written by this package")
        if not hmac.compare_digest(tag, self.tag(kind, name, *parts)):
            raise IntegrityError(
                f"{what} is not what was written there: it was edited, truncated, moved from another place"
                + (", or sealed with another key" if self.key else "")
            )

    def sign(self, kind: str, name: str, data: bytes) -> bytes:
        """The bytes behind their tag."""
        return self.tag(kind, name, data) + data

    def verify(self, kind: str, name: str, sealed: bytes) -> bytes:
        """The bytes back. Raises IntegrityError."""
        data = sealed[TAG:]
        self.check(sealed[:TAG], kind, name, data)
        return data
