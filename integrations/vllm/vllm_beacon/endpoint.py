"""A running vLLM with a BeaconConnector, asked over HTTP."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from beacon_memory.errors import ConfigError, InputError, MissingExtra, ModelError, ModelUnavailable
from beacon_memory.models.generation import Answer, Sampling, end_ids
from beacon_memory.talk.structured import Grammar

try:
    import httpx
except ImportError as exc:
    raise MissingExtra('asking vLLM needs httpx: pip install "beacon-memory[vllm]"') from exc

if TYPE_CHECKING:
    from beacon_memory.models.model import BeaconModel
    from vllm_beacon.asked import Asked

CONNECTIONS = 256  # at the same time


class Endpoint:
    """Its address, the model's name there, and how many positions it serves. Any thread may use it."""

    def __init__(self, url: str, *, timeout: float = 600.0) -> None:
        """`timeout` in seconds, between two pieces of an answer. Raises ConfigError for what is no URL, and
        ModelUnavailable where no vLLM answers."""
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"a vLLM is named by its URL, http://127.0.0.1:8001, not {url!r:.200}")
        self.url = url.rstrip("/").removesuffix("/v1")
        limits = httpx.Limits(max_connections=CONNECTIONS)
        self._http = httpx.Client(base_url=self.url, timeout=httpx.Timeout(timeout, connect=10), limits=limits)
        try:
            about = self._called("GET", "/v1/models")["data"][0]
            self.model, self.positions = str(about["id"]), int(about["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError) as exc:
            self.close()
            raise ModelUnavailable(f"what answers at {url} is no vLLM: it names no model with a max_model_len") from exc
        except BaseException:
            self.close()
            raise

    def body(self, model: BeaconModel, sampling: Sampling, *, stop: Sequence[str] = ()) -> dict[str, Any]:
        """How an answer is drawn, as vLLM takes it. Raises InputError for what cannot be asked for there."""
        held, more = sampling.constraint, dict[str, Any]()
        if sampling.repetition_penalty != 1:
            raise InputError("vLLM is asked without repetition_penalty: it would count placeholders as words")
        if isinstance(held, Grammar):
            more["structured_outputs"] = {"grammar": held.text}
        elif held is not None:
            raise InputError("vLLM is asked without a constraint of your own: use tools or a JSON schema")
        return {
            "model": self.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "repetition_penalty": 1.0,
            "seed": sampling.seed,
            "stop": list(dict.fromkeys([*sampling.stops, *stop])),
            "stop_token_ids": end_ids(model.lm, model.tokenizer),
            **more,
        }

    def complete(self, ids: Sequence[int], asked: Asked | None, how: dict[str, Any]) -> dict[str, Any]:
        """The answer to a prompt, with vLLM's word on it. Raises InputError, ModelError."""
        choice: dict[str, Any] = self._called("POST", "/v1/completions", json=how | _prompt(ids, asked))["choices"][0]
        return choice

    def stream(
        self, ids: Sequence[int], asked: Asked | None, how: dict[str, Any], whole: list[Answer]
    ) -> Generator[str, None, None]:
        """The same in pieces; the answer is put into `whole` at its end. Closing it has vLLM stop."""
        body = how | _prompt(ids, asked) | {"stream": True, "stream_options": {"include_usage": True}}
        said, finish, tokens = list[str](), "", 0
        with self._reaching(), self._http.stream("POST", "/v1/completions", json=body) as response:
            if not response.is_success:
                response.read()
                raise _failure(response.status_code, response.text)
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise _failure(int(event["error"].get("code") or 500), json.dumps(event["error"]))
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                for choice in event["choices"]:
                    finish = choice["finish_reason"] or finish
                    if choice["text"]:
                        said.append(choice["text"])
                        yield said[-1]
        if finish not in ("stop", "length"):
            raise ModelUnavailable(f"vLLM left an answer where it was ({finish or 'no end came'}): ask again")
        whole.append(Answer("".join(said), tokens, "stop" if finish == "stop" else "length"))

    def check(self) -> None:
        """Raises ModelUnavailable unless it answers."""
        with self._reaching():
            response = self._http.get("/health", timeout=5)
        if not response.is_success:
            raise ModelUnavailable(f"vLLM at {self.url} is not well ({response.status_code}); its log says why")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _called(self, method: str, path: str, **how: Any) -> Any:
        with self._reaching():
            response = self._http.request(method, path, **how)
        if not response.is_success:
            raise _failure(response.status_code, response.text)
        return response.json()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as exc:
            raise ModelUnavailable(f"vLLM at {self.url} does not answer: {exc!r}") from exc


def _prompt(ids: Sequence[int], asked: Asked | None) -> dict[str, Any]:
    return {"prompt": list(ids)} | ({} if asked is None else {"kv_transfer_params": asked.params()})


def _failure(status: int, said: str) -> InputError | ModelError:
    if status == 400:
        return InputError(f"vLLM refuses the question: {said:.500}")
    return ModelError(f"vLLM failed ({status}); its log says why: {said:.500}")
