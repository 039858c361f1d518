"""What a request to vLLM asks for: whose memory stands in front of it, as `kv_transfer_params` say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from beacon_memory.errors import InputError
from beacon_memory.state.state import Fingerprint

KEY = "beacon"  # of what is ours in kv_transfer_params
CONTEXT = "context:"  # as `beacon_memory.sessions.stored.CONTEXT`, which is not imported inside vLLM


@dataclass(frozen=True)
class Asked:
    """The memory that a request is to be answered from.

    >>> asked = Asked(slots=3, fingerprint=Fingerprint("m", "a", "t", "select"), session="ada", version=7)
    >>> Asked.of(asked.params()) == asked
    True
    """

    slots: int  # placeholders at the prompt's start
    fingerprint: Fingerprint  # what wrote them
    session: str | None = None
    version: int = 0  # of the session when the prompt was made; it may have grown since
    contexts: tuple[str, ...] = ()  # documents in front of it
    namespace: str | None = None  # whose store has them, where a server's keys open one each

    @property
    def owners(self) -> tuple[str, ...]:
        """The names in the store, in the order in which they are read."""
        return (*(CONTEXT + name for name in self.contexts), *([] if self.session is None else [self.session]))

    def params(self) -> dict[str, Any]:
        """The request's `kv_transfer_params`; a version is text there, because it has more than 64 bits."""
        said = {
            "slots": self.slots,
            "fingerprint": asdict(self.fingerprint),
            "session": self.session,
            "version": str(self.version),
            "contexts": list(self.contexts),
        }
        return {KEY: said if self.namespace is None else {**said, "namespace": self.namespace}}

    @classmethod
    def of(cls, params: Mapping[str, Any] | None) -> Self | None:
        """What these `kv_transfer_params` ask for; None where nothing of it is ours. Raises InputError."""
        if not isinstance(params, Mapping) or KEY not in params:
            return None
        value = params[KEY]
        try:
            asked = cls(
                slots=value["slots"],
                fingerprint=Fingerprint(**value["fingerprint"]),
                session=value.get("session"),
                version=int(value.get("version") or 0),
                contexts=tuple(value.get("contexts") or ()),
                namespace=value.get("namespace"),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise InputError(f"kv_transfer_params: {KEY!r} is not what VLLMServer writes there: {exc!r}") from exc
        texts = [
            *asdict(asked.fingerprint).values(),
            *asked.contexts,
            *(name for name in (asked.session, asked.namespace) if name is not None),
        ]
        if type(asked.slots) is not int or asked.slots < 0 or not all(isinstance(text, str) for text in texts):
            raise InputError(f"kv_transfer_params: {KEY!r} takes a number of slots and names, not {value!r:.200}")
        if asked.slots and not asked.owners:
            raise InputError(f"kv_transfer_params: {KEY!r} names no session and no contexts")
        return asked

    def salted(self, salt: bytes) -> bytes:
        """What its placeholders are salted with: no two namespaces have the same."""
        return salt if self.namespace is None else b"%d %b %b" % (len(salt), salt, self.namespace.encode())

    def check(self, prompt: int) -> Self:
        """The same, if a prompt of so many ids has room for the placeholders and something to answer. Raises
        InputError.
        """
        if self.slots >= prompt:
            raise InputError(f"{self.slots} placeholders and at least one id to answer are asked for in {prompt} ids")
        return self
