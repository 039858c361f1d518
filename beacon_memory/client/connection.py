"""One server: requests with a key, a bounded number of tries, its errors as ours, and a look at its version."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from beacon_memory.client.failures import IN_USE, code_of, failure, parsed
from beacon_memory.errors import (
    AnswerCut,
    BeaconError,
    ConfigError,
    InputError,
    MissingExtra,
    ServerError,
    ServerUnavailable,
)
from beacon_memory.locks import Lock, renewed
from beacon_memory.state.info import About
from beacon_memory.talk.messages import whole
from beacon_memory.talk.tools import as_json
from beacon_memory.version import __version__

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
INTERFACE = 1  # which requests a server understands; it changes when an older client would be misunderstood
SECONDS = 600.0  # until a request is given up; the server's own limit
CONNECT_SECONDS = 10.0
LONGEST_WAIT = 30.0  # seconds between two tries, whatever a server says


class Connection:
    """A server by its address. Nothing is sent before something is asked of it; any number of threads may ask."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> None:
        """`base_url` with or without "/v1"; `model` is refused where the server has another one; `timeout` in seconds,
        of a request or between two pieces of an answer; `retries` after a first try that failed. Raises ConfigError.
        """
        self.url, self.model = _checked(base_url), model
        self.retries = 2 if retries is None else retries
        self._timeout = SECONDS if timeout is None else timeout
        if isinstance(self._timeout, bool) or not isinstance(self._timeout, int | float) or not self._timeout > 0:
            raise ConfigError(f"timeout is a number of seconds above 0, not {timeout!r:.80}")
        if type(self.retries) is not int or self.retries < 0:
            raise ConfigError(f"max_retries is a number of tries, 0 or more, not {retries!r:.80}")
        if api_key is not None and not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()):
            raise ConfigError("an API key is text without spaces, sk-beacon-…: copy it again")
        self._key = (api_key or "").strip()
        self._lock = Lock()
        self._closing: weakref.finalize[Any, Any] | None = None
        self.after_fork()
        renewed(self)

    def after_fork(self) -> None:
        """Connect anew: what was open is the parent's."""
        if self._closing is not None:
            self._closing.detach()
        self._client: httpx.Client | None = None
        self._about: About | None = None

    @property
    def known(self) -> About | None:
        """What the server says of itself, if it was asked already."""
        return self._about

    def about(self) -> About:
        """The same; it is asked once. Raises ServerError for what is no server of this version, and ConfigError where
        its model is another one.
        """
        if (found := self._about) is None:
            found = self._met(self._json("GET", "/v1/models", again=True))
            if self.model not in (None, found.name):
                raise ConfigError(f"{self.url} answers by {found.name!r}, not by {self.model!r}: leave the model out")
            self._about = found
        return found

    def json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        again: bool | None = None,
        key: str | None = None,
    ) -> dict[str, Any]:
        """What the server answers. `again` says whether the request may be sent once more where it is not known what
        became of it; default: reading and putting may. `key` makes any request so. Raises what is raised there, and
        ServerError.
        """
        self.about()
        safe = (method in ("GET", "PUT") or key is not None) if again is None else again
        return self._json(method, path, body, params=params, again=safe, key=key)

    def events(self, path: str, body: Mapping[str, Any], *, key: str | None) -> Generator[dict[str, Any], None, None]:
        """The events of a streamed answer, to its end. Raises AnswerCut where it ends before, and as `json` does."""
        given = self._given({"model": self.about().name, **body}, key)
        opened = self._tried(lambda: self._open("POST", path, **given), again=True)
        try:
            whole = False
            with self._translated(AnswerCut):
                for line in opened.iter_lines():
                    if not line.startswith("data:"):
                        continue
                    if (said := line[5:].strip()) == "[DONE]":
                        whole = True
                        break
                    event = parsed(said)
                    if not isinstance(event, dict):
                        raise ServerError(
                            f"{self.url} sent what is no event: {said!r:.80}; is it the server's address?"
                        )
                    if "error" in event:
                        raise failure(500, event, url=self.url)
                    yield event
            if not whole:
                raise AnswerCut(self._cut("it closed the connection"))
        finally:
            opened.close()

    def asked(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the model answers, where nothing is written. Raises as `json` does."""
        return self.json("POST", path, {"model": self.about().name, **body}, again=True)

    def download(self, path: str, file: Path) -> None:
        """Write what the server answers to a file: all of it, or nothing. Raises InputError where it cannot be."""
        self.about()
        opened = self._tried(lambda: self._open("GET", path), again=True)
        part = file.with_name(f"{file.name}.part")
        try:
            with self._translated(ServerUnavailable), part.open("wb") as out:
                for piece in opened.iter_bytes():
                    out.write(piece)
            part.replace(file)
        except OSError as exc:
            raise InputError(f"{file} cannot be written: {exc.strerror or exc}") from exc
        finally:
            opened.close()
            with suppress(OSError):
                part.unlink()

    def upload(self, path: str, file: Path, *, params: Mapping[str, Any]) -> dict[str, Any]:
        """What the server answers to a file. Raises InputError for one that cannot be read."""
        self.about()

        def send() -> httpx.Response:
            try:
                with file.open("rb") as read:
                    return self._open("POST", path, content=read, params=params)
            except OSError as exc:
                raise InputError(f"{file} cannot be read: {exc.strerror or exc}") from exc

        opened = self._tried(send, again=False)
        try:
            return self._object(opened)
        finally:
            opened.close()

    def close(self) -> None:
        """Close the connections; the next request opens them again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        again: bool,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> dict[str, Any]:
        given = self._given(body, key)
        opened = self._tried(lambda: self._open(method, path, params=params, **given), again=again)
        try:
            return self._object(opened)
        finally:
            opened.close()

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        with self._translated(ServerUnavailable):
            found = parsed(response.read())
        if not isinstance(found, dict):
            raise failure(response.status_code, None, url=self.url)
        return found

    def _open(self, method: str, path: str, **given: Any) -> httpx.Response:
        """A response whose body is still to be read. Raises our errors, and httpx's."""
        client = self._opened()
        return client.send(client.build_request(method, f"{self.url}{path}", **given), stream=True)

    def _tried(self, send: Callable[[], httpx.Response], *, again: bool) -> httpx.Response:
        """A good response, after some tries. Raises our errors."""
        import httpx

        for tries in range(self.retries + 1):
            last = tries == self.retries
            try:
                with self._translated(ServerUnavailable):
                    response = send()
            except ServerUnavailable as exc:
                unsent = isinstance(exc.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                late = isinstance(exc.__cause__, httpx.ReadTimeout)
                if last or late or not (again or unsent):
                    raise
                time.sleep(_pause(tries, None))
                continue
            if response.status_code < 400:
                return response
            error, busy, wait = self._refused(response, again=again)
            if last or not busy:
                raise error
            time.sleep(_pause(tries, wait))
        raise AssertionError("the last try returns or raises")

    def _refused(self, response: httpx.Response, *, again: bool) -> tuple[BeaconError, bool, str | None]:
        """The error of a response, whether it may be otherwise later, and when."""
        try:
            with self._translated(ServerUnavailable):
                body = parsed(response.read())
        finally:
            response.close()
        status, code = response.status_code, code_of(body)
        if code == "model_not_found":
            self._about = None  # the server has begun anew, with another model
        busy = status == 429 or code == IN_USE or (again and status in (502, 503))
        return failure(status, body, url=self.url), busy, response.headers.get("retry-after")

    @staticmethod
    def _given(body: Mapping[str, Any] | None, key: str | None) -> dict[str, Any]:
        """A body and a key as httpx takes them. Raises InputError for what JSON has no words for."""
        headers = {} if key is None else {"Idempotency-Key": key}
        if body is None:
            return {"headers": headers}
        return {"content": whole(as_json(body)).encode(), "headers": {**headers, "Content-Type": "application/json"}}

    def _opened(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                try:
                    import httpx
                except ImportError as exc:
                    raise MissingExtra("asking a server needs httpx: pip install 'beacon-memory[client]'") from exc

                headers = {"User-Agent": f"beacon-memory/{__version__}"}
                if self._key:
                    headers["Authorization"] = f"Bearer {self._key}"
                timeout = httpx.Timeout(self._timeout, connect=min(self._timeout, CONNECT_SECONDS))
                self._client = httpx.Client(headers=headers, timeout=timeout)
                self._closing = weakref.finalize(self, self._client.close)
            return self._client

    @contextmanager
    def _translated(self, cut: type[ServerUnavailable]) -> Generator[None, None, None]:
        """Within, httpx's errors are ours; one that comes before an answer is whole is `cut`."""
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise ServerUnavailable(
                f"no server answers at {self.url} ({exc}): start one with `beacon-memory serve`, or check the address"
            ) from exc
        except httpx.TimeoutException as exc:
            raise ServerUnavailable(
                f"{self.url} was silent for {self._timeout:g} seconds: give a longer timeout, or ask for less at once"
            ) from exc
        except (httpx.TransportError, httpx.DecodingError, httpx.StreamError) as exc:
            raise cut(self._cut(str(exc) or type(exc).__name__)) from exc
        except httpx.InvalidURL as exc:
            raise ConfigError(f"{self.url} is no address of a server: {exc}") from exc

    def _cut(self, why: str) -> str:
        return (
            f"{self.url} went away before it had answered ({why}): a session stays as it was unless the answer was "
            f"whole there; see that the server runs, and ask again"
        )

    def _met(self, told: dict[str, Any]) -> About:
        """What a list of models says. Raises ServerError for what is no server of ours, or of another interface."""
        listed = told.get("data")
        first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
        about = first.get("beacon")
        if not isinstance(about, dict):
            theirs = first.get("owned_by")
            if theirs == "beacon-memory":
                raise ServerError(
                    f"{self.url} is a beacon-memory server that is older than this client ({__version__}): upgrade it"
                )
            raise ServerError(f"{self.url} answers, and is no beacon-memory server: check the address")
        if about.get("interface") != INTERFACE:
            raise ServerError(
                f"{self.url} is beacon-memory {about.get('version')}, of interface {about.get('interface')}; this "
                f"client is {__version__}, of interface {INTERFACE}: install the server's version here, or this one "
                f"there"
            )
        try:
            numbers = {name: int(about[name]) for name in ("positions", "slots", "ratio")}
            return About(str(first["id"]), str(about["version"]), **numbers, finder=bool(about["finder"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise ServerError(f"{self.url} does not say what it serves ({exc!r:.80}): upgrade it") from exc


def part(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="", errors="replace")


def _checked(base_url: str) -> str:
    """The address of a server, without what follows the host and a path in front. Raises ConfigError."""
    try:
        found = urlsplit(base_url) if isinstance(base_url, str) and base_url.isprintable() else urlsplit("")
        good = found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0 and " " not in base_url
    except ValueError:
        found, good = urlsplit(""), False
    if not good or found.query or found.fragment:
        raise ConfigError(f"base_url is the address of a server, such as http://localhost:8000, not {base_url!r:.100}")
    if found.username or found.password:
        raise ConfigError("an API key does not stand in base_url: give api_key=, or set BEACON_API_KEY")
    return base_url.rstrip("/").removesuffix("/v1").rstrip("/")


def _pause(tries: int, said: str | None) -> float:
    """Seconds until the next try: what the server said, else longer each time."""
    if said is not None and said.isdecimal():
        return min(float(said[:9]), LONGEST_WAIT)
    return float(min(0.5 * 2**tries, LONGEST_WAIT))
