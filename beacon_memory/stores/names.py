"""What a store keeps under a name: a session, a branch of one, or documents."""

from __future__ import annotations

import hashlib

from beacon_memory.errors import InputError
from beacon_memory.stores.base import check_session

BRANCH = "branch:"  # a store's name for a branch of a session begins so
FOLD = "fold:"  # and the turn of who folds one
CONTEXT = "context:"  # and its name for documents that are kept under an id
LENT = "lent:"  # and its name for what stands in front of one answer, for the process that makes it


def kind_of(session_id: str) -> str:
    """What a store keeps under a name: BRANCH, CONTEXT, LENT, or "" for a session. Raises InputError for what is no
    name.

    >>> kind_of("context:house"), kind_of("ada")
    ('context:', '')
    """
    name = check_session(session_id)
    return next((kind for kind in (BRANCH, CONTEXT, LENT) if name.startswith(kind)), "")


def context_name(name: str) -> str:
    """The name under which a store keeps the documents of a name. Raises InputError."""
    if not isinstance(name, str) or not name:
        raise InputError(f"documents are kept under a name, text of at least one character, not {name!r:.80}")
    return check_session(CONTEXT + name)


def check_talk(session_id: str) -> str:
    """A session's id. Raises InputError for what is none, and for the names of documents and branches: whoever could
    spell those would talk into what other sessions read.
    """
    if kind := kind_of(session_id):
        raise InputError(
            f"a session's id does not begin with {kind!r}: choose another"
            + (", or open documents by memory.context(name)" if kind == CONTEXT else "")
        )
    return session_id


def branch_name(session: str, number: int) -> str:
    """The name under which a store keeps a branch of a session."""
    return f"{BRANCH}{_digest(session)}:{number}"


def fold_name(session: str) -> str:
    """The name of the turn of who folds a session."""
    return f"{FOLD}{_digest(session)}"


def _digest(session: str) -> str:
    """A short name for a session, whose id may be as long as a name can be."""
    return hashlib.sha256(session.encode()).hexdigest()[:32]
