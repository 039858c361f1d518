"""BeaconRedisChatStore: a queue and its archive on a real server, shared by workers and event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import redis
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, ToolCallBlock
from llama_index.core.memory import Memory
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.memory.beacon import BeaconRedisChatStore

from beacon_memory.errors import CodecError, ConfigError, InputError, StoreUnavailable
from beacon_memory.testing import redis_cluster, redis_server

ACTIVE, ARCHIVED = MessageStatus.ACTIVE, MessageStatus.ARCHIVED


@pytest.fixture(scope="module", params=["redis", "valkey"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with redis_server(request.param) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        yield client


@pytest.fixture
def store(client: redis.Redis, url: str) -> BeaconRedisChatStore:
    return BeaconRedisChatStore(url)


def said(*words: str) -> list[ChatMessage]:
    return [ChatMessage(word) for word in words]


async def test_messages_come_back_as_they_were_in_order_and_by_status(store):
    call = ChatMessage(
        role="assistant", blocks=[ToolCallBlock(tool_call_id="1", tool_name="n", tool_kwargs={"a": "é"})]
    )
    talk = [
        ChatMessage("Hi", additional_kwargs={"id": 1}),
        call,
        ChatMessage(blocks=[ImageBlock(url="https://e.org/a")]),
    ]
    await store.add_messages("ada", talk[:2])
    await store.add_message("ada", talk[2])
    await store.add_message("ada", ChatMessage("Old"), status=ARCHIVED)
    assert await store.get_messages("ada") == talk
    assert await store.get_messages("ada", status=ARCHIVED) == said("Old")
    assert await store.get_messages("ada", status=None) == [*said("Old"), *talk]
    assert await store.get_messages("ada", limit=1, offset=1) == talk[1:2]
    assert await store.get_messages("ada", offset=2) == talk[2:]
    assert [await store.count_messages("ada", status=status) for status in (ACTIVE, ARCHIVED, None)] == [3, 1, 4]
    assert await store.get_messages("nobody") == []


async def test_the_oldest_are_archived_or_deleted_and_given_back(store):
    await store.set_messages("ada", said(*"abcde"))
    assert await store.archive_oldest_messages("ada", 2) == said("a", "b")
    assert await store.delete_oldest_messages("ada", 1) == said("c")
    assert await store.get_messages("ada") == said("d", "e")
    assert await store.get_messages("ada", status=ARCHIVED) == said("a", "b")
    assert await store.archive_oldest_messages("ada", 0) == []
    assert await store.archive_oldest_messages("ada", 9) == said("d", "e")
    assert await store.archive_oldest_messages("ada", 1) == []
    await store.set_messages("ada", said("x"))
    assert await store.get_messages("ada", status=None) == said("x")


async def test_messages_are_deleted_by_place_status_or_altogether(store):
    await store.add_messages("ada", said("a", "b", "c", "b"))
    await store.archive_oldest_messages("ada", 1)
    assert await store.delete_message("ada", 3) == ChatMessage("b")
    assert await store.delete_message("ada", 0) == ChatMessage("a")
    assert await store.delete_message("ada", 7) is None
    assert await store.delete_message("ada", -1) is None
    assert await store.get_messages("ada", status=None) == said("b", "c")
    await store.add_message("ada", ChatMessage("z"), status=ARCHIVED)
    await store.delete_messages("ada", status=ACTIVE)
    assert await store.get_messages("ada", status=None) == said("z")
    await store.delete_messages("ada")
    assert await store.get_messages("ada", status=None) == []


async def test_names_are_listed_while_they_have_messages(store, client):
    for key in ("ada", "a:{b} é", "gone", "emptied"):
        await store.add_message(key, ChatMessage("Hi"))
    await store.delete_messages("gone")
    await store.delete_oldest_messages("emptied", 1)
    assert sorted(await store.get_keys()) == ["a:{b} é", "ada"]
    assert not [key for key in client.scan_iter() if b"gone" in key or b"emptied" in key]


async def test_a_conversation_expires_whole_after_its_last_use(client, url):
    store = BeaconRedisChatStore(url, ttl=100)
    await store.add_messages("ada", said("a", "b"))
    await store.archive_oldest_messages("ada", 1)
    keys = [f"beacon:chat:{{ada}}:{status}" for status in ("active", "archived")]
    assert all(0 < client.pttl(key) <= 100_000 for key in keys)
    for key in keys:
        client.pexpire(key, 5000)
    await store.get_messages("ada")
    assert all(client.pttl(key) > 50_000 for key in keys)
    short = BeaconRedisChatStore(url, ttl=1)
    await short.add_message("bob", ChatMessage("Hi"))
    client.zadd("beacon:chat:names", {"bob": 1})  # as if its second were over
    client.delete("beacon:chat:{bob}:active")
    assert await store.get_keys() == ["ada"]


async def test_workers_that_archive_at_once_double_and_lose_nothing(store, url):
    words = [str(n) for n in range(120)]
    await store.add_messages("ada", said(*words))
    workers = [BeaconRedisChatStore(url) for _ in range(4)]
    taken = await asyncio.gather(*(w.archive_oldest_messages("ada", 5) for w in workers for _ in range(6)))
    assert sorted(int(m.content) for part in taken for m in part) == list(range(120))
    assert await store.get_messages("ada", status=ARCHIVED) == said(*words)


def test_any_event_loop_will_do(store):
    memory = Memory.from_defaults(session_id="ada", tokenizer_fn=str.split, chat_store=store)
    for n in range(3):
        asyncio.run(store.add_message("ada", ChatMessage(f"{n}")))
        memory.put(ChatMessage(f"again {n}"))
    assert len(memory.get()) == 6
    assert len(asyncio.run(store.get_messages("ada"))) == 6


async def test_the_loop_goes_on_while_the_server_is_asked(store):
    class Slow(redis.Redis):
        def unlink(self, *names):
            time.sleep(0.2)

    slow = BeaconRedisChatStore(redis_client=Slow.from_url(store.redis_url.get_secret_value()))
    ticks, asking = 0, asyncio.create_task(slow.delete_messages("ada"))
    while not asking.done():
        await asyncio.sleep(0.005)
        ticks += 1
    assert ticks > 10


async def test_a_client_of_ones_own_stays_open_whatever_it_decodes(url):
    with redis.Redis.from_url(url, decode_responses=True) as client:
        store = BeaconRedisChatStore(redis_client=client, key_prefix="own")
        await store.add_message("é", ChatMessage("é"))
        assert await store.get_messages("é") == said("é")
        assert await store.get_keys() == ["é"]
        assert client.ping()


async def test_in_a_cluster_each_conversation_has_its_slot():
    with redis_cluster("valkey") as nodes:
        store = BeaconRedisChatStore(f"redis+cluster://127.0.0.1:{nodes[0].port}")
        for n in range(8):
            await store.add_messages(f"talk {n}", said("a", "b"))
            assert await store.archive_oldest_messages(f"talk {n}", 1) == said("a")
        assert sorted(await store.get_keys()) == [f"talk {n}" for n in range(8)]


# Bad input


async def test_a_server_that_is_gone_says_so_and_its_password_stays_here():
    with redis_server("valkey") as url:
        store = BeaconRedisChatStore(url)
        await store.add_message("ada", ChatMessage("Hi"))
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        await store.get_messages("ada")
    assert "secret" not in repr(BeaconRedisChatStore("redis://:secret@localhost:1/0"))
    assert "secret" not in BeaconRedisChatStore("redis://:secret@localhost:1/0").model_dump_json()


async def test_bad_settings_and_what_is_no_message_are_refused(store, client, url):
    for how in ({}, {"redis_url": url, "redis_client": client}, {"redis_url": url, "ttl": 0}):
        with pytest.raises(ConfigError):
            BeaconRedisChatStore(**how)
    with pytest.raises(ConfigError, match=r"not redis\.asyncio"):
        BeaconRedisChatStore(redis_client=redis.asyncio.Redis.from_url(url))
    with pytest.raises(InputError, match="key"):
        await store.get_messages("")
    client.rpush("beacon:chat:{ada}:active", "{no message")
    with pytest.raises(CodecError, match="'ada'"):
        await store.get_messages("ada")
