"""The commands that ask a session, and search it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_memory.cli.opening import (
    DEFAULT_STORE,
    Server,
    Store,
    asked,
    named,
    opened,
    question_to,
    remembering,
    session_of,
)
from beacon_memory.cli.sessions import Anchors, Ratio, SessionName, SlotDtype
from beacon_memory.cli.terminal import Adapter, AsJson, Finder, Model, lines, say, standard_input, write
from beacon_memory.errors import InputError, SessionNotFound

if TYPE_CHECKING:
    from beacon_memory import BeaconMemory
    from beacon_memory.client.engine import RemoteEngine
    from beacon_memory.client.reply import RemoteReply
    from beacon_memory.state.source import Source

app = typer.Typer()

MaxTokens = Annotated[int, typer.Option("--max-tokens", help="the longest answer, in tokens")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token each time")]
System = Annotated[str | None, typer.Option(help="a system prompt for this answer; not remembered")]
Recall = Annotated[
    int | None,
    typer.Option(
        "--recall", help="tokens of what the question is about to read again, at most; 0: none", show_default="256"
    ),
]
Sources = Annotated[bool, typer.Option("--sources", help="say which passages were read again, on standard error")]


@app.command()
def ask(
    session: SessionName,
    question: Annotated[str, typer.Argument(help="the question, or - for standard input", show_default=False)],
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    server: Server = None,
    adapter: Adapter = "auto",
    finder: Finder = None,
    system: System = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    recall: Recall = None,
    sources: Sources = False,
    as_json: AsJson = False,
) -> None:
    """Answer from a session's memory; nothing is written."""
    question = standard_input() if question == "-" else question
    if server is not None:
        engine = asked(server, model, store, adapter=adapter, finder=finder)
        how = {"system": system, "recall_tokens": recall, "max_new_tokens": max_tokens, "temperature": temperature}
        reply = question_to(engine, session, question, **how)
        if as_json:
            typer.echo(json.dumps({"answer": "".join(reply), "sources": reply.physical["sources"]}))
            return
        write(reply)
        if sources:
            _tell(reply.sources, finder=engine.about().finder)
        return
    with remembering(model, store, adapter=adapter, finder=finder, must_exist=session) as memory:
        from beacon_memory.sessions.turn import stream_answer

        prompt = session_of(memory, session).prompt_for(
            question, system=system, recall_tokens=recall, answer=max_tokens
        )
        pieces = stream_answer(memory, prompt, max_new_tokens=max_tokens, temperature=temperature)
        if as_json:
            told = [source.to_dict() for source in prompt.sources]
            typer.echo(json.dumps({"answer": "".join(pieces), "sources": told}))
            return
        write(pieces)
        if sources:
            _tell(prompt.sources, finder=memory.model.finder is not None)


@app.command()
def chat(
    session: SessionName,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    server: Server = None,
    adapter: Adapter = "auto",
    finder: Finder = None,
    ratio: Ratio = None,
    anchors: Anchors = None,
    slot_dtype: SlotDtype = None,
    system: System = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    recall: Recall = None,
    sources: Sources = False,
) -> None:
    """Talk with a session, turn by turn; an empty line or Ctrl-D leaves. It remembers when you come back."""
    local = {"anchors": anchors, "slot_dtype": slot_dtype}
    with opened(model, store, server, adapter=adapter, finder=finder, **local) as memory:
        answer, finds = _talk(memory, session, ratio=ratio, slot_dtype=slot_dtype)
        known = 0
        with suppress(SessionNotFound):
            known = named(memory, session).info().messages
        say(f"session {session}: {known} messages remembered. An empty line leaves.")
        for line in lines():
            pieces = answer(
                line, system=system, recall_tokens=recall, max_new_tokens=max_tokens, temperature=temperature
            )
            try:
                write(pieces)
                if sources:
                    _tell(pieces.sources, finder=finds)
            except KeyboardInterrupt:
                pieces.close()
                say("\n(stopped; this turn is not remembered)")
            except InputError as exc:
                say(f"beacon-memory: {exc}")


@app.command()
def search(
    session: SessionName,
    text: Annotated[str, typer.Argument(help="a question, or - for standard input", show_default=False)],
    limit: Annotated[int, typer.Option(min=1, help="passages, at most")] = 5,
    model: Model = "smollm2",
    store: Store = DEFAULT_STORE,
    server: Server = None,
    adapter: Adapter = "auto",
    finder: Finder = None,
    as_json: AsJson = False,
) -> None:
    """The passages of a session that a question is about: those that it would read again, the best first."""
    text = standard_input() if text == "-" else text
    with opened(model, store, server, adapter=adapter, finder=finder, must_exist=session) as memory:
        found = named(memory, session).search(text, limit=limit)
    if as_json:
        typer.echo(json.dumps([source.to_dict() for source in found]))
        return
    for source in found:
        typer.echo(_line(source))


def _talk(memory: BeaconMemory | RemoteEngine, name: str, **how: Any) -> tuple[Callable[..., Any], bool]:
    """What answers a line of a talk, in pieces that have sources, and whether the model has a finder."""
    from beacon_memory.client.engine import RemoteEngine

    if isinstance(memory, RemoteEngine):

        def there(line: str, **answer: Any) -> RemoteReply:
            said = [{"role": "user", "content": line}]
            return memory.reply(said, session_id=name, ratio=how["ratio"], history="append", **answer)

        return there, memory.about().finder
    session = session_of(memory, name, **how)
    return partial(session.chat, stream=True), memory.model.finder is not None


def _tell(sources: Sequence[Source], *, finder: bool) -> None:
    if not finder:
        say("no sources: this model has no finder (beacon-memory fit-finder makes one)")
    elif not sources:
        say("no sources: nothing that was read is about this")
    for source in sources:
        say(_line(source))


def _line(source: Source) -> str:
    """A source as a line: its score, where it was read, and its text."""
    place = source.document or " ".join(
        str(part) for part in (source.role or "message", source.id or source.message) if part is not None
    )
    return f"[{source.score:.1f}] {place}: {' '.join(source.text.split())}"
