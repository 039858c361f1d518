"""Turns through a fleet, event by event: sessions come and go, replicas answer, workers fold, Redis gives slots."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.fleet.service import HEAD, KEEP_LAST, REDIS, ROUND_TRIP, VERIFY, WINDOW, Service


@dataclass(frozen=True)
class Use:
    """How sessions are used in the busy hour."""

    sessions: int = 1_000_000
    visits: float = 0.1  # of a session in the busy hour: each comes once a day, a tenth of them then
    turns: float = 6.0  # of a visit, on average (geometric)
    pause: float = 60.0  # s between an answer and the next question (exponential)
    question: int = 60  # tokens
    history: float = 8_192.0  # tokens at the beginning of a visit, median (log-normal)
    spread: float = 0.7  # sigma of its logarithm
    longest: int = 32_768


@dataclass(frozen=True)
class Fleet:
    """What serves them. `beside`: slots are read beside the steps; our connector reads between two steps. `reads`: so
    many times as fast as measured Redis gives slots, and they are checked and rotated.
    """

    service: Service
    replicas: int
    folders: int
    nodes: int  # of Redis
    ratio: int = 8
    folded: bool = True  # else each prompt is the whole history, raw
    beside: bool = False
    reads: float = 1.0
    most: int = 256  # sequences of a batch

    def raw(self) -> Fleet:
        """The same GPUs with raw prompts: the folders' serve too."""
        freed = self.folders if not self.service.gpus else self.folders * self.service.folder_gpus // self.service.gpus
        return Fleet(self.service, self.replicas + freed, 0, self.nodes, self.ratio, folded=False)


@dataclass(slots=True)
class Session:
    """A session: what is folded, what is raw, and how much of it is still to be said in this visit."""

    number: int
    slots: int
    raw: int
    queued: bool = False  # for the folders
    left: int = 0  # turns of this visit


@dataclass(slots=True)
class Turn:
    """A question on its way to its answer."""

    session: Session
    asked: float
    answer: int
    entries: int = 0
    slots: int = 0
    first: float = 0.0  # when its first token was there


@dataclass
class Replica:
    """A vLLM server. It reads prompts one after the other; between them all that are answered go on at one pace."""

    waiting: deque[Turn] = field(default_factory=deque)
    reading: Turn | None = None
    answering: list[tuple[float, int, Turn]] = field(default_factory=list)  # by the token at which they end
    entries: int = 0  # of what is read or answered
    context: int = 0  # of what is answered
    kept: OrderedDict[int, tuple[int, int]] = field(default_factory=OrderedDict)  # by session: slots, entries
    idle: int = 0  # entries of `kept`
    tokens: float = 0.0  # that each answer has gone on by, since the beginning
    since: float = 0.0
    plan: int = 0  # the newest event of it; older ones are void
    busy: float = 0.0


@dataclass
class Outcome:
    """What came of it, after the warm-up."""

    asked: int = 0  # turns, all in all
    answered: int = 0
    inside: int = 0  # turns that are neither when it ends
    first_tokens: list[float] = field(default_factory=list)  # seconds, in order of answers
    stayed: float = 0.0  # seconds of all turns in the system, after the warm-up
    area: float = 0.0  # the same by the number of turns inside, over time
    cold: int = 0  # turns that read Redis because nothing was on the GPU
    grown: int = 0  # turns that read it because the session was folded since
    hot: int = 0
    arrived: int = 0  # turns asked after the warm-up
    answered_after: int = 0
    seconds: float = 0.0
    read: float = 0.0  # bytes out of Redis, after the warm-up
    written: float = 0.0
    replicas: float = 0.0  # share of the time that they are at work
    redis: float = 0.0
    folders: float = 0.0
    waiting: int = 0  # fold jobs at the end
    windows: int = 0  # folded
    tokens_said: int = 0  # of all answered turns
    tokens_begun: int = 0  # of all sessions that came, when they came
    tokens_kept: int = 0  # of the same at the end, slots counted as what they stand for

    def late(self, share: float = 0.95) -> float:
        """The time to the first token that so many turns stay within, in seconds."""
        ordered = sorted(self.first_tokens)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.inf

    def holds(self, patience: float) -> bool:
        """Whether the fleet keeps up: first tokens in time, as many answers as questions, folding not behind."""
        keeps_up = self.answered_after >= 0.97 * self.arrived
        return keeps_up and self.late() <= patience and self.folders < 0.98


class Simulation:
    """One run. The same seed gives the same run."""

    def __init__(self, fleet: Fleet, use: Use, *, seed: int = 0) -> None:
        self.fleet, self.use, self._draw = fleet, use, random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.now, self._warm, self._end = 0.0, 0.0, math.inf
        self.sessions: dict[int, Session] = {}
        self._replicas = [Replica() for _ in range(fleet.replicas)]
        self._redis = [0.0] * fleet.nodes  # when each is free
        self._jobs: deque[Session] = deque()
        self._idle = fleet.folders
        self._redis_busy = self._fold_busy = 0.0
        self._inside: dict[int, Turn] = {}
        self._number = itertools.count()
        self.out = Outcome()
        self._moved = 0.0

    def run(self, *, warm: float = 300.0, seconds: float = 300.0) -> Outcome:
        """So many seconds after a warm-up. It begins in the middle: as many visits are in a pause as on average."""
        self._warm, self._end = warm, warm + seconds
        for _ in range(round(self._visits * (self.use.turns - 1) * self.use.pause)):
            self._come(self._pause)
        self._at(self._draw.expovariate(self._visits), self._visit)
        end, out = self._end, self.out
        while self._events and self._events[0][0] <= end:
            at, _, act = heapq.heappop(self._events)
            self._count(at)
            self.now = at
            act()
        self._count(end)
        out.seconds, out.inside, out.waiting = seconds, len(self._inside), len(self._jobs)
        out.stayed += sum(end - max(warm, turn.asked) for turn in self._inside.values())
        for replica in self._replicas:
            replica.busy += self._after(replica.since, end) if replica.answering or replica.reading else 0.0
        out.replicas = sum(one.busy for one in self._replicas) / seconds / len(self._replicas)
        out.redis = self._redis_busy / seconds / self.fleet.nodes
        out.folders = self._fold_busy / seconds / self.fleet.folders if self.fleet.folders else 0.0
        out.tokens_kept = sum(one.slots * self.fleet.ratio + one.raw for one in self.sessions.values())
        return out

    # --- people

    @property
    def _visits(self) -> float:
        return self.use.sessions * self.use.visits / 3600  # a second

    def _visit(self) -> None:
        self._at(self._draw.expovariate(self._visits), self._visit)
        self._come(self._ask)

    def _come(self, act: Callable[[Session], None]) -> None:
        session = self._session(self._draw.randrange(self.use.sessions))
        if not session.left:  # else it is here already
            draw = self._draw.random()
            session.left = 1 + int(math.log(1 - draw) / math.log(1 - 1 / self.use.turns))
            act(session)

    def _pause(self, session: Session) -> None:
        self._at(self._draw.expovariate(1 / self.use.pause), lambda: self._ask(session))

    def _session(self, number: int) -> Session:
        if number not in self.sessions:
            use, ratio = self.use, self.fleet.ratio
            tokens = int(min(use.longest, use.history * math.exp(use.spread * self._draw.gauss(0, 1))))
            windows = max(0, tokens - KEEP_LAST) // WINDOW
            self.sessions[number] = Session(number, windows * WINDOW // ratio, tokens - windows * WINDOW)
            self.out.tokens_begun += tokens
        return self.sessions[number]

    def _ask(self, session: Session) -> None:
        turn = Turn(session, self.now, max(1, int(self._draw.expovariate(1 / self.fleet.service.answer))))
        self._inside[id(turn)] = turn
        self.out.asked += 1
        self.out.arrived += self.now >= self._warm
        replica = self._replicas[session.number % len(self._replicas)]
        if self.fleet.beside and self.fleet.folded and not self._has(replica, session):
            ready = self._read(session) - self.now
            self._at(ready, lambda: self._wait(replica, turn))
        else:
            self._wait(replica, turn)

    # --- replicas

    def _wait(self, replica: Replica, turn: Turn) -> None:
        replica.waiting.append(turn)
        self._next(replica)

    def _has(self, replica: Replica, session: Session) -> bool:
        kept = replica.kept.get(session.number)
        return kept is not None and kept[0] == session.slots

    def _next(self, replica: Replica) -> None:
        """Begin to read the next prompt, if there is room; else go on with the answers."""
        fleet, service = self.fleet, self.fleet.service
        self._go_on(replica)
        if replica.reading is None and replica.waiting and len(replica.answering) < fleet.most:
            turn = replica.waiting[0]
            session, question = turn.session, self.use.question
            behind = session.slots if fleet.folded else session.slots * fleet.ratio
            need = behind + session.raw + question + turn.answer
            if not replica.entries or replica.entries + need <= service.room:
                replica.waiting.popleft()
                kept = replica.kept.pop(session.number, None)
                replica.idle -= kept[1] if kept else 0
                while replica.kept and replica.entries + need + replica.idle > service.room:
                    replica.idle -= replica.kept.popitem(last=False)[1][1]
                turn.entries, turn.slots = need, session.slots
                replica.entries += need
                replica.reading = turn
                hot = kept is not None and (kept[0] == session.slots or not fleet.folded)
                if self.now >= self._warm:
                    self.out.hot += hot
                    self.out.cold += kept is None
                    self.out.grown += kept is not None and not hot
                ready = self.now
                if hot:
                    reading = service.prompt(question, behind + session.raw)
                elif fleet.folded:
                    reading = service.prompt(session.raw + question, behind)
                    ready = self.now if fleet.beside else self._read(session)
                else:
                    reading = service.prompt(behind + session.raw + question, 0)
                self._plan(replica, ready - self.now + reading, self._was_read)
                return
        if replica.reading is None and replica.answering:
            left = replica.answering[0][0] - replica.tokens
            self._plan(replica, max(0.0, left) * self._pace(replica), self._next_answer)

    def _pace(self, replica: Replica) -> float:
        return self.fleet.service.step(len(replica.answering), replica.context)

    def _go_on(self, replica: Replica) -> None:
        """What was answered since the replica was last looked at: nothing while a prompt is read."""
        passed = self.now - replica.since
        if replica.reading is None and replica.answering:
            replica.tokens += passed / self._pace(replica)
        if replica.reading is not None or replica.answering:
            replica.busy += self._after(replica.since, self.now)
        replica.since = self.now

    def _was_read(self, replica: Replica) -> None:
        self._go_on(replica)
        turn, replica.reading = replica.reading, None
        assert turn is not None
        turn.first = self.now
        heapq.heappush(replica.answering, (replica.tokens + turn.answer, next(self._number), turn))
        replica.context += turn.entries
        self._next(replica)

    def _next_answer(self, replica: Replica) -> None:
        self._go_on(replica)
        end, _, turn = heapq.heappop(replica.answering)
        replica.tokens = max(replica.tokens, end)
        replica.context -= turn.entries
        replica.entries -= turn.entries
        replica.kept[turn.session.number] = (turn.slots, turn.entries)
        replica.idle += turn.entries
        self._answered(turn)
        self._next(replica)

    def _answered(self, turn: Turn) -> None:
        session, out = turn.session, self.out
        del self._inside[id(turn)]
        out.answered += 1
        said = self.use.question + turn.answer
        session.raw += said
        out.tokens_said += said
        if self.now >= self._warm:
            out.answered_after += 1
            out.first_tokens.append(turn.first - turn.asked)
            out.stayed += self.now - max(self._warm, turn.asked)
        self._redis_takes(session, HEAD, write=True)
        if self.fleet.folded and session.raw >= WINDOW + KEEP_LAST and not session.queued:
            session.queued = True
            self._jobs.append(session)
            self._fold()
        session.left -= 1
        if session.left:
            self._pause(session)

    # --- folders and Redis

    def _fold(self) -> None:
        while self._idle and self._jobs:
            self._idle -= 1
            session, service = self._jobs.popleft(), self.fleet.service
            windows, slots = (session.raw - KEEP_LAST) // WINDOW, WINDOW // self.fleet.ratio
            ends = self._read(session) + sum(service.fold(session.slots + n * slots) for n in range(windows))
            self._fold_busy += self._after(self.now, ends)
            self._at(ends - self.now, lambda session=session, windows=windows: self._folded(session, windows))  # type: ignore[misc]

    def _folded(self, session: Session, windows: int) -> None:
        slots = windows * WINDOW // self.fleet.ratio
        self._redis_takes(session, slots * self.fleet.service.slot() + HEAD, write=True)
        session.slots += slots
        session.raw -= windows * WINDOW
        session.queued = session.raw >= WINDOW + KEEP_LAST  # more was said meanwhile
        if session.queued:
            self._jobs.append(session)
        self.out.windows += windows
        self._idle += 1
        self._fold()

    def _read(self, session: Session) -> float:
        """When the session's slots are out of Redis, verified and rotated."""
        size = session.slots * self.fleet.service.slot() + HEAD
        return self._redis_takes(session, size) + size / VERIFY / self.fleet.reads

    def cost(self, slots: int) -> float:
        """Seconds that a session of so many slots takes out of a Redis that nobody else asks."""
        size = slots * self.fleet.service.slot() + HEAD
        return (size / REDIS + size / VERIFY) / self.fleet.reads + ROUND_TRIP

    def _redis_takes(self, session: Session, size: float, *, write: bool = False) -> float:
        node = session.number % self.fleet.nodes
        begins = max(self.now, self._redis[node])
        self._redis[node] = ends = begins + size / REDIS / self.fleet.reads
        self._redis_busy += self._after(begins, ends)
        if self.now >= self._warm:
            self.out.read += 0 if write else size
            self.out.written += size if write else 0
        return ends + ROUND_TRIP

    # --- time

    def _at(self, later: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + later, next(self._order), act))

    def _plan(self, replica: Replica, later: float, act: Callable[[Replica], None]) -> None:
        """The replica's next event, in place of the one that was planned."""
        replica.plan += 1
        plan = replica.plan
        self._at(later, lambda: act(replica) if replica.plan == plan else None)

    def _after(self, begins: float, ends: float) -> float:
        """So much of a span lies between the warm-up and the end."""
        return max(0.0, min(ends, self._end) - max(begins, self._warm))

    def _count(self, until: float) -> None:
        """The turns inside, over the time since the last event."""
        self.out.area += self._after(self._moved, until) * len(self._inside)
        self._moved = until
