"""Chat messages in Redis or Valkey, for LlamaIndex's `Memory(chat_store=…)`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from pydantic import Field, PrivateAttr, SecretStr, ValidationError

from beacon_memory.errors import CodecError, ConfigError, InputError
from beacon_memory.stores.redis.client import connect, translated

T = TypeVar("T")

# Every script has a conversation's two lists, active and archived, and the milliseconds they live from now on, or "".
_LIVES = """
if ARGV[1] ~= "" then
  redis.call("PEXPIRE", KEYS[1], ARGV[1])
  redis.call("PEXPIRE", KEYS[2], ARGV[1])
end
"""
_READ = f"""{_LIVES}
return {{redis.call("LRANGE", KEYS[2], 0, -1), redis.call("LRANGE", KEYS[1], 0, -1)}}
"""
_COUNT = """
return {redis.call("LLEN", KEYS[2]), redis.call("LLEN", KEYS[1])}
"""
# 2: the list to write to; 3: whether everything that was there goes; then the messages.
_WRITE = f"""
if ARGV[3] == "1" then redis.call("UNLINK", KEYS[1], KEYS[2]) end
for n = 4, #ARGV do redis.call("RPUSH", KEYS[tonumber(ARGV[2])], ARGV[n]) end
{_LIVES}
"""
# 2: how many of the oldest active messages; 3: whether they are archived.
_TAKE = f"""
local taken = redis.call("LRANGE", KEYS[1], 0, tonumber(ARGV[2]) - 1)
redis.call("LTRIM", KEYS[1], #taken, -1)
if ARGV[3] == "1" then
  for _, message in ipairs(taken) do redis.call("RPUSH", KEYS[2], message) end
end
{_LIVES}
return taken
"""
# 2: the place among all messages, oldest first; 3: a text that is no message.
_DROP = f"""
local archived, list, place = redis.call("LLEN", KEYS[2]), KEYS[2], tonumber(ARGV[2])
if place >= archived then list, place = KEYS[1], place - archived end
local found = redis.call("LINDEX", list, place)
if found then
  redis.call("LSET", list, place, ARGV[3])
  redis.call("LREM", list, 1, ARGV[3])
end
{_LIVES}
return found
"""


class BeaconRedisChatStore(AsyncDBChatStore):
    """The queue and the archive of `Memory`, shared by processes. Each call is one step of the server's: a queue that
    two workers archive at once loses nothing and doubles nothing.

    Keys, with the conversation's percent-encoded name as hash tag:

        beacon:chat:{name}:active      list: messages as JSON, oldest first
        beacon:chat:{name}:archived    list: the same
        beacon:chat:names              sorted set: names, by the millisecond in which they expire or +inf

    With `ttl` (seconds) a conversation is gone that long after it was last read or written. The commands are core ones
    of Redis 6.2 to 8 and Valkey; redis-py's client works on a thread, so any event loop will do.
    """

    redis_url: SecretStr | None = Field(default=None, exclude=True, description="redis://, rediss://, unix://, …")
    key_prefix: str = Field(default="beacon", description="What keys begin with.")
    ttl: int | None = Field(default=None, description="Seconds that a conversation lives after its last use.")

    _client: Any = PrivateAttr()
    _scripts: dict[str, Any] = PrivateAttr()

    def __init__(
        self,
        redis_url: str | SecretStr | None = None,
        *,
        redis_client: Any = None,
        key_prefix: str = "beacon",
        ttl: int | None = None,
    ) -> None:
        """A server by URL, or a redis-py client (Redis or RedisCluster), which stays open. Raises ConfigError."""
        if (redis_url is None) == (redis_client is None):
            raise ConfigError("a chat store takes either a redis_url or a redis_client")
        if asyncio.iscoroutinefunction(getattr(redis_client, "execute_command", None)):
            raise ConfigError("give redis.Redis, not redis.asyncio: calls are made on a thread, whatever loop runs")
        if ttl is not None and (not isinstance(ttl, int) or ttl < 1):
            raise ConfigError(f"ttl is a number of seconds, 1 or more, or None for no limit, not {ttl!r}")
        fields: dict[str, Any] = {"redis_url": redis_url, "key_prefix": key_prefix, "ttl": ttl}
        super().__init__(**fields)
        url = self.redis_url.get_secret_value() if self.redis_url else ""
        self._client = connect(url) if redis_client is None else redis_client
        named = {"read": _READ, "count": _COUNT, "write": _WRITE, "take": _TAKE, "drop": _DROP}
        self._scripts = {name: self._client.register_script(script) for name, script in named.items()}

    @classmethod
    def class_name(cls) -> str:
        return "BeaconRedisChatStore"

    async def get_messages(
        self,
        key: str,
        status: MessageStatus | None = MessageStatus.ACTIVE,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[ChatMessage]:
        first = offset or 0
        raw = await self._read(key, status)
        return [_message(key, one) for one in raw[first : None if limit is None else first + limit]]

    async def count_messages(self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE) -> int:
        archived, active = await self._run("count", key)
        return int(archived + active if status is None else active if status is MessageStatus.ACTIVE else archived)

    async def add_message(self, key: str, message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE) -> None:
        await self.add_messages(key, [message], status)

    async def add_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        if messages:
            await self._write(key, messages, status, anew=False)

    async def set_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        await self._write(key, messages, status, anew=True)

    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Delete the message at a place among all of the conversation's, archived ones first; None for none there."""
        if idx < 0:
            return None
        found = await self._run("drop", key, idx, "(deleted)")
        return None if found is None else _message(key, found)

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        active, archived = self._keys(key)
        gone = {MessageStatus.ACTIVE: [active], MessageStatus.ARCHIVED: [archived]}
        await self._do(lambda client: client.unlink(*(gone[status] if status else [active, archived])))
        await self._do(lambda client: self._listed(client, key))

    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        return await self._take(key, n, archive=False)

    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        return await self._take(key, n, archive=True)

    async def get_keys(self) -> list[str]:
        def read(client: Any) -> list[Any]:
            client.zremrangebyscore(self._names, "-inf", _now())
            return list(client.zrange(self._names, 0, -1))

        return [unquote(_text(name)) for name in await self._do(read)]

    async def _read(self, key: str, status: MessageStatus | None) -> list[Any]:
        """Messages as they are stored."""
        archived, active = await self._run("read", key)
        return [
            *(archived if status is not MessageStatus.ACTIVE else []),
            *(active if status is not MessageStatus.ARCHIVED else []),
        ]

    async def _write(self, key: str, messages: Sequence[ChatMessage], status: MessageStatus, *, anew: bool) -> None:
        values = [message.model_dump_json() for message in messages]
        await self._run("write", key, 1 if status is MessageStatus.ACTIVE else 2, int(anew), *values)

    async def _take(self, key: str, n: int, *, archive: bool) -> list[ChatMessage]:
        if n < 1:
            return []
        return [_message(key, one) for one in await self._run("take", key, n, int(archive))]

    async def _run(self, name: str, key: str, *args: Any) -> Any:
        """One script on a conversation."""
        lives = "" if self.ttl is None else 1000 * self.ttl

        def run(client: Any) -> Any:
            found = self._scripts[name](keys=self._keys(key), args=[lives, *args])
            self._listed(client, key)
            return found

        return await self._do(run)

    def _listed(self, client: Any, key: str) -> None:
        """Have the conversation's name among the names when it has messages, and not when it has none.

        The names are in another slot of a cluster, so this is another step; a message that came in between is seen.
        """
        name = quote(key, safe="")
        until = "+inf" if self.ttl is None else _now() + 1000 * self.ttl
        if client.exists(*self._keys(key)) or (client.zrem(self._names, name) and client.exists(*self._keys(key))):
            client.zadd(self._names, {name: until})

    async def _do(self, act: Callable[[Any], T]) -> T:
        """What `act` gives, on a thread."""

        def work() -> T:
            with translated(self._client):
                return act(self._client)

        return await asyncio.to_thread(work)

    def _keys(self, key: str) -> list[str]:
        if not key:
            raise InputError("a conversation's key is text of 1 character or more")
        tag = f"{quote(self.key_prefix, safe=':')}:chat:{{{quote(key, safe='')}}}"
        return [f"{tag}:active", f"{tag}:archived"]

    @property
    def _names(self) -> str:
        return f"{quote(self.key_prefix, safe=':')}:chat:names"


def _message(key: str, value: Any) -> ChatMessage:
    try:
        return ChatMessage.model_validate_json(value)
    except ValidationError as exc:
        raise CodecError(f"conversation {key!r}: what is stored is no message: {_text(value)[:80]!r}") from exc


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _now() -> int:
    return int(time.time() * 1000)
