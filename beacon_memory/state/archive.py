"""A session as one file: an uncompressed zip archive of its head and every blob the head names (docs/format.md)."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from beacon_memory.errors import CodecError, InputError
from beacon_memory.state.head import SessionHead

FORMAT, VERSION = "beacon-session", 1

# Everything that reading a hostile archive can raise.
_UNREADABLE = (
    zipfile.BadZipFile,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    EOFError,
    OverflowError,
    RuntimeError,  # zipfile, for a file with a password or by a method unknown to it; recursion that is too deep
    struct.error,
)


@dataclass(frozen=True)
class Exported:
    """What an archive holds."""

    name: str
    head: bytes
    blobs: Mapping[str, bytes]


def write_archive(path: str | Path, exported: Exported) -> None:
    """Write an archive. An existing file is replaced only once the new one is complete. Raises InputError."""
    path = _checked(path)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                    about = {"format": FORMAT, "version": VERSION, "session": exported.name}
                    archive.writestr("session.json", json.dumps(about))
                    archive.writestr("head", exported.head)
                    for digest, blob in exported.blobs.items():
                        archive.writestr(f"blobs/{digest}", blob)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as exc:
        raise InputError(f"the session cannot be written to {path}: {exc.strerror or exc}") from exc


def read_archive(path: str | Path) -> Exported:
    """What an archive holds, checked to be complete. Raises InputError for a missing file, CodecError for a bad one."""
    path = _checked(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise CodecError(f"{path}: a session archive is not compressed")
            if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
                raise CodecError(f"{path}: its files claim more bytes than the archive has")
            about = json.loads(archive.read("session.json"))
            if (about.get("format"), about.get("version")) != (FORMAT, VERSION):
                raise CodecError(f"{path}: expected {FORMAT} version {VERSION}, found {about!r:.120}")
            head = archive.read("head")
            digests = SessionHead.from_bytes(head).digests
            return Exported(str(about["session"]), head, {d: archive.read(f"blobs/{d}") for d in digests})
    except OSError as exc:
        raise InputError(f"no session archive can be read at {path}: {exc.strerror or exc}") from exc
    except _UNREADABLE as exc:
        raise CodecError(f"{path} is not a whole session archive: {exc}") from exc


def _checked(path: str | Path) -> Path:
    try:
        if not isinstance(path, str | Path) or b"\0" in os.fsencode(path) or not Path(path).name:
            raise InputError(f"a session archive has the path of a file, not {path!r:.80}")
    except UnicodeEncodeError as exc:
        raise InputError(f"a session archive has the path of a file, not {path!a:.80}") from exc
    return Path(path)
