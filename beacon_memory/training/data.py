"""What is trained on: texts, dialogues and questions from local files, made into examples.

A text file is prose. A JSONL file holds, on each line, a dialogue or a text with questions:

    {"messages": [{"role": "user", "content": "…"}, …]}        also "turns", and "speaker" in place of "role";
                                                               a turn's "slots" {"city": "Lyon"} are facts to ask for
    {"text": "…", "question": "…", "answer": "…"}              also "sections" (a list), "questions" (a list of
                                                               {"question", "answer", "section"}), several answers

Example number i depends on the seed and i alone, so a resumed run goes on with the data it would have had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beacon_memory.errors import InputError
from beacon_memory.talk.sources import check_text, read_lines, read_source


@dataclass(frozen=True)
class Question:
    """Something asked about a text or a dialogue, and the words that answer it."""

    ask: str
    answer: str
    part: int = -1  # the section, or turn, that tells; -1 where it is not known


@dataclass(frozen=True)
class Dialogue:
    """Messages in order, and what can be asked about them."""

    messages: tuple[Mapping[str, str], ...]
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Document:
    """A text in sections, and what can be asked about it."""

    sections: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclass
class Corpus:
    """All that was read, by kind."""

    texts: list[str] = field(default_factory=list)
    dialogues: list[Dialogue] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)

    def __str__(self) -> str:
        questions = sum(len(document.questions) for document in self.documents)
        return f"{len(self.texts)} texts, {len(self.dialogues)} dialogues, {questions} questions"


def read_corpus(paths: Sequence[str | Path]) -> Corpus:
    """The files' contents; a folder stands for its .txt and .jsonl files, by name.

    Raises InputError, which names the line, for what is empty, is not text or does not parse.
    """
    corpus = Corpus()
    for given in map(Path, paths):
        inside = (
            sorted(file for kind in ("*.txt", "*.jsonl") for file in given.glob(kind)) if given.is_dir() else [given]
        )
        if not inside:
            raise InputError(f"folder {given} holds no .txt and no .jsonl file")
        for path in inside:
            if path.suffix != ".jsonl":
                corpus.texts.append(read_source(path)[0])
                continue
            for where, entry in read_lines(path):
                _add(corpus, entry, where=where)
    return corpus


# How a fact is asked for. Several wordings, so that none of them is learnt by heart.
_ASKED = (
    "What {fact} did I mention?",
    "Which {fact} did we talk about?",
    "Remind me: what was the {fact}?",
    "What is the {fact}? Answer in a few words.",
    "Earlier in this conversation, what {fact} was given?",
)


def _add(corpus: Corpus, entry: Any, *, where: str) -> None:
    turns = entry.get("messages") or entry.get("turns") if isinstance(entry, dict) else None
    try:
        if turns:
            corpus.dialogues.append(_dialogue(turns))
        elif isinstance(entry, dict) and ("questions" in entry or "question" in entry):
            corpus.documents.append(_document(entry))
        else:
            raise InputError("expected 'messages' or 'turns', or 'text' with 'question' and 'answer'")
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as exc:
        reason = f"{exc.args[0]!r} is missing" if isinstance(exc, KeyError) else exc
        raise InputError(f"{where}: {reason}") from exc


def _dialogue(turns: Sequence[Mapping[str, Any]]) -> Dialogue:
    speakers: list[str] = []
    messages, facts = [], {}
    for number, turn in enumerate(turns):
        speaker = str(turn.get("role") or turn["speaker"])
        if speaker not in speakers:
            speakers.append(speaker)
        # Who speaks first asks; two people who talk are a user and an assistant all the same.
        role = speaker if speaker in ("user", "assistant") else ("user", "assistant")[speakers.index(speaker) % 2]
        if not (content := str(turn["content"]).strip()):
            continue
        messages.append({"role": role, "content": content})
        for fact, value in (turn.get("slots") or {}).items():
            # The last word counts, and only what was really said can be remembered.
            if str(value).lower() in content.lower():
                facts[str(fact)] = (str(value), number)
    if not messages:
        raise InputError("a dialogue without a word")
    questions = tuple(
        Question(_ASKED[(number + len(fact)) % len(_ASKED)].format(fact=fact.replace("_", " ")), value, number)
        for fact, (value, number) in facts.items()
    )
    return Dialogue(tuple(messages), questions)


def _document(entry: Mapping[str, Any]) -> Document:
    given = entry.get("sections") or [entry.get("text") or entry["context"]]
    sections = tuple(check_text(str(section)) for section in given)
    questions = []
    for asked in entry.get("questions") or [entry]:
        answer = asked.get("answer", asked.get("answers"))
        answer = answer[0] if isinstance(answer, list) and answer else answer
        if not isinstance(answer, str) or not answer.strip():
            raise InputError(f"question {asked['question']!r:.60} has no answer")
        # Some files number several sections ("3,4"): the last of them must have been read.
        numbers = [int(n) for n in str(asked.get("section", "")).replace(",", " ").split() if n.isdigit()]
        part = max(numbers) - 1 if numbers else len(sections) - 1
        if not 0 <= part < len(sections):
            raise InputError(f"question {asked['question']!r:.60} is about section {part + 1} of {len(sections)}")
        questions.append(Question(check_text(str(asked["question"])), answer.strip(), part))
    return Document(sections, tuple(questions))
