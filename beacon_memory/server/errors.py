"""Every error as OpenAI's clients read them: a status, and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import Match, compile_path

from beacon_memory.client.failures import CLASS
from beacon_memory.errors import (
    BeaconError,
    BudgetExceeded,
    CodecError,
    ConfigError,
    EngineBusy,
    InputError,
    ModelMismatch,
    ModelUnavailable,
    PromptTooLong,
    QuotaExceeded,
    SessionConflict,
    SessionExists,
    SessionNotFound,
    SessionRolledBack,
    StoreFull,
    StoreUnavailable,
)

logger = logging.getLogger(__name__)

INVALID = "invalid_request_error"
RETRY_AFTER = 2  # seconds
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
# The first class that fits counts: children stand before their parents.
STATUSES: tuple[tuple[type[BeaconError], int, str, str | None], ...] = (
    (PromptTooLong, 400, INVALID, "context_length_exceeded"),
    (BudgetExceeded, 400, INVALID, "context_length_exceeded"),
    (InputError, 400, INVALID, None),
    (ConfigError, 400, INVALID, None),
    (SessionNotFound, 404, INVALID, "session_not_found"),
    (SessionExists, 409, INVALID, "session_exists"),
    (SessionConflict, 409, "conflict_error", "session_conflict"),
    (SessionRolledBack, 409, "conflict_error", "session_rolled_back"),
    (ModelMismatch, 409, INVALID, "model_mismatch"),
    (EngineBusy, 429, "rate_limit_error", "rate_limit_exceeded"),
    (QuotaExceeded, 507, "server_error", "quota_exceeded"),
    (StoreFull, 507, "server_error", "store_full"),
    (StoreUnavailable, 503, "server_error", "store_unavailable"),
    (ModelUnavailable, 503, "server_error", "model_unavailable"),
)


class Problem(BaseModel):
    """What went wrong: in words, by kind, in which field, and by a code that programs can tell apart."""

    model_config = ConfigDict(extra="forbid")

    message: str
    type: str
    param: str | None
    code: str | None


class Failed(BaseModel):
    """The body of every error."""

    model_config = ConfigDict(extra="forbid")

    error: Problem
    beacon_error: str | None = None  # `CLASS`: of the error that our own client raises


# As OpenAPI describes what any request may end in.
FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Failed, "description": "The request is refused"},
    "5XX": {"model": Failed, "description": "The store or the server failed, or it took too long"},
}


class Refused(Exception):
    """A request that is refused by the server itself."""

    def __init__(
        self, status: int, message: str, *, kind: str = INVALID, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param


class Left(Exception):
    """The client has gone: nobody reads an answer."""


def too_large(most: int) -> Refused:
    """The error for a body of more bytes than are read."""
    said = f"a body of at most {most} bytes is read here, and nothing of this one was: send it in several requests"
    return Refused(413, f"{said}, each of which is done or not by itself, or serve with a larger limit (--body-bytes)")


def body_of(exc: BaseException) -> tuple[int, dict[str, Any]]:
    """The status and the body of an error; what is not ours tells nothing of itself."""
    if isinstance(exc, Refused):
        return exc.status, _body(str(exc), exc.kind, param=exc.param, code=exc.code)
    for cls, status, kind, code in STATUSES:
        if isinstance(exc, cls):
            return status, _body(str(exc), kind, code=code, of=exc)
    if isinstance(exc, TimeoutError):
        return 504, _body(
            "the answer took too long and was given up; nothing was written", "server_error", code="timeout"
        )
    if isinstance(exc, BeaconError):
        code = "damaged" if isinstance(exc, CodecError) else type(exc).__name__
        return 500, _body(str(exc), "server_error", code=code, of=exc)
    return 500, _body("the server failed to answer; its log says more", "server_error", code="internal_error")


def shaped(exc: BaseException) -> JSONResponse:
    """An error as a response; what may be tried again says when."""
    status, body = body_of(exc)
    headers = {"Retry-After": str(RETRY_AFTER)} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)


def answer_errors(app: FastAPI) -> None:
    """Answer every error of an app in this form."""

    async def ours(request: Request, exc: Exception) -> JSONResponse:
        if (status := body_of(exc)[0]) >= 500:
            about = {"status": status, "error": type(exc).__name__}
            path = request.scope["path"]
            logger.error("%s %s: %d %s", request.method, path, status, type(exc).__name__, extra={"about": about})
        return shaped(exc)

    async def left(request: Request, exc: Exception) -> JSONResponse:
        return JSONResponse(None, 499)  # nginx's number for it; nobody reads this

    async def invalid(request: Request, exc: Exception) -> JSONResponse:
        assert isinstance(exc, RequestValidationError)
        return shaped(malformed(exc.errors()))

    async def plain(request: Request, exc: Exception) -> JSONResponse:
        assert isinstance(exc, HTTPException)
        said = {
            404: f"unknown URL {request.method} {request.url.path}",
            405: f"{request.method} is not allowed for {request.url.path}",
        }
        refused = Refused(exc.status_code, said.get(exc.status_code, str(exc.detail)))
        response = shaped(refused)
        response.headers.update(exc.headers or {})
        if exc.status_code == 405:
            response.headers["Allow"] = ", ".join(_allowed(request))
        return response

    for cls in (BeaconError, Refused, TimeoutError, Exception):
        app.add_exception_handler(cls, ours)
    app.add_exception_handler(Left, left)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)


def _allowed(request: Request) -> list[str]:
    """The methods that a path is for, by any of its routes; starlette names those of the first route alone.

    Of paths of the OpenAPI page that fit, the one with the fewest parameters counts, as OpenAPI has it:
    `/v1/sessions/import` is no session.
    """
    asked, page = request.scope["path"], request.app.openapi()["paths"]
    place = {"type": "http", "path": asked, "root_path": "", "headers": []}

    def fits(method: str) -> bool:
        return any(route.matches({**place, "method": method})[0] is Match.FULL for route in request.app.routes)

    told = min((p for p in page if compile_path(p)[0].match(asked)), key=lambda path: path.count("{"), default=None)
    return [method for method in METHODS if (fits(method) if told is None else method.lower() in page[told])]


def malformed(errors: Sequence[Mapping[str, Any]]) -> Refused:
    """The first thing that is wrong with a request, and where."""
    found = errors[0]
    place = [str(part) for part in found["loc"] if part not in ("body", "path", "query", "header")]
    kind, where = str(found["type"]), ".".join(place)
    if kind == "json_invalid":
        return Refused(400, f"the body is not JSON (at character {where}): {found['ctx']['error']}")
    if kind == "extra_forbidden":
        return Refused(400, f"unrecognized request argument: {where}", param=where, code="unknown_parameter")
    if not place and kind in ("missing", "model_attributes_type", "model_type"):
        return Refused(400, "the body is a JSON object, sent with Content-Type: application/json")
    message = str(found["msg"]).removeprefix("Value error, ")
    return Refused(400, f"{where}: {message}" if where else message, param=where or None)


def _body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None, of: BeaconError | None = None
) -> dict[str, Any]:
    whole = message.encode("utf-8", "replace").decode()
    body: dict[str, Any] = {"error": {"message": whole, "type": kind, "param": param, "code": code}}
    # Our own client raises the same class.
    return body if of is None else {**body, CLASS: type(of).__name__}
