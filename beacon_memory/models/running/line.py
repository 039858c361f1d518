"""Who may use a model: threads, one forward at a time, in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from beacon_memory.locks import renewed

SHORT = 64  # rows; a forward of more lets others in between its parts


class Line:
    """A lock that is handed on in order. Its holder may take it again, and may let those who wait go first.

    >>> line = Line()
    >>> with line, line: line.give_way()
    """

    def __init__(self) -> None:
        self._hooks: list[Any] = []
        self.after_fork()
        renewed(self)

    def after_fork(self) -> None:
        """Be free, whoever held it."""
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._holder, self._depth = 0, 0

    def __enter__(self) -> None:
        self._take(1)

    def __exit__(self, *exc: object) -> None:
        self._give(1)

    @property
    def waiting(self) -> int:
        """How many threads wait for it."""
        return len(self._waiting)

    def give_way(self) -> None:
        """Let those who wait go first, if the caller holds it."""
        if self._waiting and self._holder == threading.get_ident():
            depth = self._depth
            self._give(depth)
            self._take(depth)

    def attach(self, lm: Any) -> None:
        """Make the model's long forwards give way between their parts, and short ones where they begin."""
        for index, layer in enumerate(lm.model.layers):
            for part in {layer, getattr(layer, "mlp", layer)}:
                first = index == 0 and part is layer
                self._hooks.append(part.register_forward_pre_hook(self._hook(first=first), with_kwargs=True))

    def detach(self) -> None:
        """Leave the model as it was."""
        while self._hooks:
            self._hooks.pop().remove()

    def _hook(self, *, first: bool) -> Any:
        def between(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if self._waiting and (first or hidden.shape[:-1].numel() > SHORT):
                self.give_way()

        return between

    def _take(self, depth: int) -> None:
        me = threading.get_ident()
        with self._lock:
            if self._depth == 0 or self._holder == me:
                self._holder, self._depth = me, self._depth + depth
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append((me, gate))
        try:
            gate.acquire()  # until it is handed on
        except BaseException:
            with self._lock:
                if not (handed := (me, gate) not in self._waiting):
                    self._waiting.remove((me, gate))
            if handed:
                self._give(1)
            raise
        self._depth = depth

    def _give(self, depth: int) -> None:
        with self._lock:
            self._depth -= depth
            if self._depth == 0 and self._waiting:
                self._holder, gate = self._waiting.popleft()
                self._depth = 1
                gate.release()
