"""The answers that a model makes now, all in the same passes; whoever needs a token makes the next pass for everyone.

There is no thread of its own: an answer that nobody reads is not made, but for a few tokens ahead.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any

import torch

from beacon_memory.errors import ModelError
from beacon_memory.fold.fold import embed, entering
from beacon_memory.fold.place import reads_on
from beacon_memory.locks import renewed
from beacon_memory.models.running.line import SHORT, Line
from beacon_memory.models.running.rows import Row, RowsPass

ALONE = 512  # prompt rows of a pass while nobody waits for the next token


class Running:
    """Answers of one model that are on their way."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm
        self.line = Line()  # for whoever wants to use the model
        self.passes = Counter[int]()  # how many passes read this many answers, for whoever counts
        self.line.attach(lm)
        self.after_fork()
        renewed(self)

    def after_fork(self) -> None:
        """Begin with no answers: those that were on their way are the parent's."""
        self._rows: list[Row] = []
        self._stepping, self._leader = False, 0  # whether a pass is made now, and by which thread
        self._moved = threading.Condition()

    @property
    def answers(self) -> int:
        """How many answers are on their way."""
        return len(self._rows)

    def tokens(self, row: Row) -> Generator[int, None, None]:
        """The tokens of an answer as they come. Closing it leaves the answer where it is.

        Raises what a pass raises; what a failed pass has read is not kept for the next turn.
        """
        with self._moved:
            self._rows.append(row)
        try:
            while (token := self._next(row)) is not None:
                yield token
        finally:
            self._leave(row)

    def whole(self, rows: Sequence[Row]) -> None:
        """Make answers to their ends, all of them in the same passes. Raises what a pass raises."""
        for row in rows:
            row.ahead = row.limit
        with self._moved:
            self._rows += rows
        try:
            for row in rows:
                while self._next(row) is not None:
                    pass
        finally:
            for row in rows:
                self._leave(row)

    def _next(self, row: Row) -> int | None:
        while True:
            with self._moved:
                while not (row.unread or row.over or row.failure) and self._stepping:
                    self._moved.wait()
                if row.unread:
                    return row.unread.popleft()
                if row.failure:
                    raise row.failure
                if row.over or row.gone.is_set():
                    return None
                self._stepping = True
                pieces = self._pieces()
            try:
                self._step(pieces)
            finally:
                with self._moved:
                    self._stepping = False
                    for one, _ in pieces:
                        one.stepping = False
                        if one.left:
                            self._settle(one)
                    self._moved.notify_all()

    def _leave(self, row: Row) -> None:
        with self._moved:
            row.left = True
            if not row.stepping:
                self._settle(row)
                return
            # A collected generator may be closed within the pass that it is in: that pass settles it then.
            while row in self._rows and self._stepping and self._leader != threading.get_ident():
                self._moved.wait()

    def _settle(self, row: Row) -> None:
        if row in self._rows:
            self._rows.remove(row)
            row.settle()

    def _pieces(self) -> list[tuple[Row, int]]:
        """Which rows the next pass reads, and how many ids of each: those that speak, and prompts as far as there is
        room, the first come first.
        """
        self._leader = threading.get_ident()
        wanted = [row for row in self._rows if row.wanted]
        speaking = [row for row in wanted if row.made]
        room = max(SHORT - len(speaking), SHORT // 4) if speaking else ALONE
        pieces = [(row, 1) for row in speaking]
        for row in wanted:
            if not row.made and room:
                pieces.append((row, min(room, len(row.pending))))
                room -= pieces[-1][1]
        for row, _ in pieces:
            row.stepping = True
        return pieces

    def _step(self, pieces: Sequence[tuple[Row, int]]) -> None:
        """One pass: its rows' next tokens, where their prompts are read."""
        rows, sizes = [row for row, _ in pieces], [size for _, size in pieces]
        try:
            with self.line, torch.inference_mode():
                logits = self._read(rows, sizes)
        except BaseException as exc:
            failure = (
                exc if isinstance(exc, Exception) else ModelError("the pass that this answer was in was broken off")
            )
            for row in rows:
                row.failure = failure
            raise
        self.passes[len(rows)] += 1
        at = 0
        for row, size in pieces:
            row.pending = row.pending[size:]
            if row.pending:
                continue
            row.told(logits[at : at + 1])
            at += 1

    def _read(self, rows: Sequence[Row], sizes: Sequence[int]) -> torch.Tensor:
        """The logits behind the last ids of the rows that are read whole.  # (rows, vocabulary)"""
        device = reads_on(self._lm)
        ids = torch.tensor([[i for row, n in zip(rows, sizes, strict=True) for i in row.pending[:n]]], device=device)
        embedded = embed(self._lm, ids)
        pieces = RowsPass(rows, sizes, dtype=embedded.dtype)
        ends = torch.tensor(sizes).cumsum(dim=0) - 1
        whole = torch.tensor([n == len(row.pending) for row, n in zip(rows, sizes, strict=True)])
        output = self._lm(
            **entering(self._lm, embedded),
            position_ids=pieces.positions[None].to(device),
            attention_mask=torch.zeros(1, 1, 1, 1, dtype=embedded.dtype, device=device),  # the pass has its own
            use_cache=False,
            logits_to_keep=ends[whole].to(device),
            beacon_pass=pieces,
        )
        logits: torch.Tensor = output.logits[0]
        return logits
