"""A folder laid out like the real data, of made up contents."""

from __future__ import annotations

import json
from pathlib import Path

RUMOURS = ("the weather", "a long film", "football", "old songs", "the news", "bread", "chess", "the sea", "a queue")


def folder_of(folder: Path) -> Path:
    """The folder, with two novels, two stories, a dozen dialogues and small talk."""
    (folder / "novels").mkdir()
    for name in ("a", "b"):
        lines = [f"The {i}th {name} house is {('red', 'green')[i % 2]} and has {i % 7} doors. " for i in range(120)]
        (folder / "novels" / f"{name}.txt").write_text("".join(lines))
    (folder / "fairytaleqa").mkdir()
    stories = [
        {
            "story": name,
            "sections": [f"In the year {n} the king of {name} had {n} ships." for n in range(8)],
            "questions": [
                {"section": str(n + 1), "question": f"How many ships in {n}?", "answer": [f"{n} ships"]}
                for n in range(8)
            ],
        }
        for name in ("York", "Kent")
    ]
    (folder / "fairytaleqa" / "val.jsonl").write_text("\n".join(map(json.dumps, stories)))
    (folder / "dialogues").mkdir()
    dialogues = [
        {
            "turns": [
                {"role": "user", "content": f"A table in town{n} please.", "slots": {"city": f"town{n}"}},
                {"role": "assistant", "content": "At what time?", "slots": {}},
                {"role": "user", "content": "At noon.", "slots": {"time": "noon"}},
            ]
        }
        for n in range(12)
    ]
    (folder / "dialogues" / "sgd-train.jsonl").write_text("\n".join(map(json.dumps, dialogues)))
    talks = [
        {"turns": [{"speaker": "agent_1", "content": f"I like {RUMOURS[(i * j) % 9]}, you  know."} for j in range(8)]}
        for i in range(20)
    ]
    (folder / "dialogues" / "topical-chat.jsonl").write_text("\n".join(map(json.dumps, talks)))
    return folder
