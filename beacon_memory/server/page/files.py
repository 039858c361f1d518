"""The page's files, as they lie beside this one. They need no key: what they show, they ask for with one."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from beacon_memory.server.errors import Refused

FOLDER = Path(__file__).parent
FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "wire.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
HEADERS = {
    # Nothing from elsewhere, nothing inline; and no text can become HTML, whatever the script does.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> FileResponse:
    """The page."""
    return _file("index.html")


@router.get("/page/{name}")
async def part(name: str) -> FileResponse:
    """What the page is made of. Raises Refused for any other file."""
    if name not in FILES:
        raise Refused(404, f"the page has no file {name!r:.80}")
    return _file(name)


def _file(name: str) -> FileResponse:
    return FileResponse(FOLDER / name, media_type=FILES[name], headers=HEADERS)
