"""What a worker reads for a request is what our engine reads, or the request is refused in our own words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_beacon import asked as asking
from vllm_beacon.asked import Asked
from vllm_beacon.places import placeholders
from vllm_beacon.reading import Reader, pieces_of
from vllm_beacon.requests import Loads, check_settings
from vllm_beacon.weights import FAMILIES, check_layers, checkpoint_fingerprint, own_dtype, rotary_of

from beacon_memory import BeaconMemory
from beacon_memory.config import BeaconConfig
from beacon_memory.errors import (
    CodecError,
    ConfigError,
    InputError,
    ModelError,
    ModelMismatch,
    SessionConflict,
    SessionNotFound,
    SessionRolledBack,
    UnsupportedModel,
)
from beacon_memory.fold.family import slot_shape
from beacon_memory.fold.prefix import Rope
from beacon_memory.models.model import BeaconModel
from beacon_memory.sessions import stored
from beacon_memory.state.state import Segment
from beacon_memory.testing import tiny_checkpoint, tiny_model
from beacon_memory.testing.models import tiny_lm

SALT = b"salt"


def reader_of(memory: BeaconMemory, **changes: Any) -> Reader:
    config = memory.model.lm.config
    how = {"vocabulary": config.vocab_size, "shape": slot_shape(config), "dtype": torch.float32, "salt": SALT}
    return Reader(
        **{
            **how,
            "store": memory.store,
            "rope": Rope(rotary_of(config)),
            "model": memory.model.fingerprint.model,
            "device": torch.device("cpu"),
            **changes,
        }
    )


def asked_of(memory: BeaconMemory, session: str, *contexts: str) -> tuple[Asked, list[int], list[Segment]]:
    """What the client asks for, its placeholders, and the segments that our engine would read."""
    owned = []
    for name in [*(stored.CONTEXT + name for name in contexts), session]:
        state, _, version = memory.view(name, memory.state)
        owned += [(name, segment) for segment in state.segments]
    ids = placeholders(pieces_of(owned), vocabulary=memory.model.lm.config.vocab_size, salt=SALT)
    asked = Asked(len(ids), memory.model.fingerprint, session, version, contexts)
    return asked, ids, [segment for _, segment in owned]


@pytest.fixture
def memory(config: BeaconConfig, model_of: Callable[..., BeaconModel]) -> BeaconMemory:
    memory = BeaconMemory.open(model_of(config))
    memory.session("ada").add("I live in Lyon, near the river. " * 5)
    memory.session("bob").add("I live in Lyon, near the river. " * 5)
    memory.context("house").add_text("The door is green, the roof is red. " * 3, name="door")
    return memory


def test_a_context_is_named_in_the_store_as_sessions_name_it() -> None:
    assert asking.CONTEXT == stored.CONTEXT


@settings(max_examples=25, deadline=None)
@given(
    said=st.lists(st.integers(1, 12), max_size=4),
    read=st.lists(st.integers(1, 12), max_size=2),
    ratio=st.sampled_from([1, 2, 4, 8, 16]),
    slot_dtype=st.sampled_from(["float32", "bfloat16", "int8", "int4"]),
    family=st.sampled_from(["llama", "qwen3"]),
)
def test_a_worker_reads_bit_for_bit_what_our_engine_reads(
    model_of: Callable[..., BeaconModel],
    config: BeaconConfig,
    said: list[int],
    read: list[int],
    ratio: int,
    slot_dtype: str,
    family: str,
) -> None:
    memory = BeaconMemory.open(model_of(config, family))
    session = memory.session("ada", ratio=ratio, slot_dtype=slot_dtype)
    session.add("Hello.")
    for times in said:
        session.add("I live in Lyon. " * times)
    for n, times in enumerate(read):
        memory.context(f"{n}", ratio=ratio).add_text(f"Door {n} is green. " * times, name="door")
    asked, ids, segments = asked_of(memory, "ada", *(f"{n}" for n in range(len(read))))
    found = reader_of(memory).read(asked, ids)
    expected = memory.model.empty.extend(segments)
    assert found.slots == expected.slots == len(ids)
    if ids:
        assert torch.equal(found.keys, expected.keys)  # type: ignore[arg-type]
        assert torch.equal(found.values, expected.values)  # type: ignore[arg-type]


def test_a_session_that_has_grown_serves_the_slots_it_had(memory: BeaconMemory) -> None:
    asked, ids, segments = asked_of(memory, "ada")
    memory.session("ada").add("And I moved to Paris in the winter. " * 5)
    assert len(asked_of(memory, "ada")[1]) > len(ids)
    found, expected = reader_of(memory).read(asked, ids), memory.model.empty.extend(segments)
    assert torch.equal(found.keys, expected.keys)  # type: ignore[arg-type]


def test_a_session_that_has_changed_is_refused(memory: BeaconMemory) -> None:
    asked, ids, _ = asked_of(memory, "ada")
    memory.session("ada").set([{"role": "user", "content": "I live in Rome, and there is no river here. " * 5}])
    with pytest.raises(SessionConflict, match="make the prompt again"):
        reader_of(memory).read(asked, ids)


def test_nobody_reads_a_memory_by_the_placeholders_of_another(memory: BeaconMemory) -> None:
    """Both have said the same, so their slots are equal; their placeholders are not."""
    (ada, _, mine), (_, bobs, theirs) = asked_of(memory, "ada"), asked_of(memory, "bob")
    assert [segment.digest for segment in mine] == [segment.digest for segment in theirs]
    with pytest.raises(SessionConflict):
        reader_of(memory).read(ada, bobs)


def test_another_salt_is_refused(memory: BeaconMemory) -> None:
    asked, ids, _ = asked_of(memory, "ada")
    with pytest.raises(SessionConflict, match="salt"):
        reader_of(memory, salt=b"other").read(asked, ids)


def test_what_another_model_or_adapter_wrote_is_refused(memory: BeaconMemory) -> None:
    asked, ids, _ = asked_of(memory, "ada")
    with pytest.raises(ModelMismatch, match="vLLM serves ffff"):
        reader_of(memory, model="ffff").read(asked, ids)
    with pytest.raises(ModelMismatch, match="adapter"):
        reader_of(memory).read(replace(asked, fingerprint=replace(asked.fingerprint, adapter="other")), ids)
    with pytest.raises(CodecError, match="slots of"):
        reader_of(memory, shape=(2, 4, 8)).read(asked, ids)


def test_a_session_that_is_not_there_or_went_back_is_refused(memory: BeaconMemory) -> None:
    asked, ids, _ = asked_of(memory, "ada")
    with pytest.raises(SessionNotFound):
        reader_of(memory).read(replace(asked, session="eve"), ids)
    memory.session("ada").forget()
    memory.session("ada").add("I live in Lyon, near the river. " * 5)
    with pytest.raises(SessionRolledBack, match="make the prompt again"):
        reader_of(memory).read(asked, ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_slots_are_handed_over_in_the_dtype_of_the_model_that_answers(memory: BeaconMemory, dtype: Any) -> None:
    asked, ids, _ = asked_of(memory, "ada")
    found = reader_of(memory, dtype=own_dtype(dtype)).read(asked, ids)
    assert found.keys is not None
    assert found.keys.dtype == dtype


def test_a_dtype_that_slots_do_not_have_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="choose --dtype"):
        own_dtype(torch.float64)


@pytest.mark.parametrize("family", ["gemma3_text", "phi3", "olmo2"])
def test_a_family_that_was_not_tried_with_vllm_is_refused(family: str) -> None:
    with pytest.raises(UnsupportedModel, match="ask our own engine"):
        rotary_of(tiny_lm(family).config)


def test_sliding_windows_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="without sliding windows"):
        rotary_of(tiny_lm("mistral", sliding_window=64).config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_has_the_fingerprint_of_the_model_that_is_loaded_from_it(tmp_path: Path, family: str) -> None:
    folder = tiny_checkpoint(tmp_path, family)
    model = BeaconModel.from_pretrained(str(folder))
    assert checkpoint_fingerprint(str(folder), model.lm.config) == model.fingerprint.model
    assert tiny_model(family, seed=1).fingerprint.model != model.fingerprint.model


def test_a_checkpoint_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found none"):
        checkpoint_fingerprint(str(tmp_path), None)


def test_an_attention_backend_that_takes_no_slots_is_refused(memory: BeaconMemory) -> None:
    config = memory.model.lm.config
    takes = SimpleNamespace(do_kv_cache_update=print)
    check_layers({"0": SimpleNamespace(impl=takes, head_size=8)}, config=config)
    with pytest.raises(UnsupportedModel, match="do_kv_cache_update"):
        check_layers({"0": SimpleNamespace(impl=SimpleNamespace(), head_size=8)}, config=config)
    with pytest.raises(UnsupportedModel, match="16 channels"):
        check_layers({"0": SimpleNamespace(impl=takes, head_size=16)}, config=config)


def test_the_connector_says_that_it_runs_inside_vllm() -> None:
    with pytest.raises(UnsupportedModel, match="runs inside vLLM"):
        import vllm_beacon.connector  # noqa: F401


@given(st.integers(0, 9), st.none() | st.text(), st.integers(0, 1 << 130), st.lists(st.text()))
def test_what_is_asked_travels_as_json(slots: int, session: str | None, version: int, contexts: list[str]) -> None:
    import json

    from beacon_memory.state.state import Fingerprint

    asked = Asked(slots, Fingerprint("m", "a", "t", "select"), session, version, tuple(contexts))
    if asked.owners or not slots:
        assert Asked.of(json.loads(json.dumps(asked.params()))) == asked


GARBAGE = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists)


@given(st.dictionaries(st.sampled_from(["slots", "fingerprint", "session", "version", "contexts"]), GARBAGE) | GARBAGE)
def test_what_is_none_of_ours_is_refused_by_our_own_error(value: Any) -> None:
    with pytest.raises(InputError, match="kv_transfer_params"):
        Asked.of({"beacon": value})


class Request(SimpleNamespace):
    """A request as vLLM's scheduler has it."""

    def update_block_hashes(self) -> None:
        self.block_hashes.append(self.cache_salt)


def request_of(asked: Asked | None, ids: list[int], **changes: Any) -> Request:
    about = {"request_id": "one", "prompt_token_ids": ids, "lora_request": None, "cache_salt": None}
    about |= {"kv_transfer_params": asked.params() if asked else None, "skip_reading_prefix_cache": True}
    sampling = SimpleNamespace(prompt_logprobs=None)
    return Request(**{**about, "sampling_params": sampling, "block_hashes": ["of others"], **changes})


def test_only_what_the_prefix_cache_lacks_is_loaded_once(memory: BeaconMemory) -> None:
    asked, ids, _ = asked_of(memory, "ada")
    loads, request = Loads(), request_of(asked, [*ids, 5, 6])
    assert loads.matched(request, 8) == len(ids) - 8
    loads.allocated(request, [3, 4, 9], len(ids) - 8)
    (load,) = loads.step()
    assert (load.start, load.end, load.ids, load.blocks) == (8, len(ids), tuple(ids), (3, 4, 9))
    assert loads.step() == []
    assert loads.matched(request, len(ids)) == 0
    assert loads.matched(request_of(None, [1, 2]), 0) == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kv_transfer_params": {"beacon": {}}}, "is not what VLLMServer writes"),
        ({"prompt_token_ids": [1, 2]}, "placeholders and at least one id"),
        ({"lora_request": "lora"}, "LoRA"),
        ({"sampling_params": SimpleNamespace(prompt_logprobs=1)}, "prompt_logprobs"),
    ],
)
def test_a_request_that_is_refused_finds_no_blocks_and_fails(
    memory: BeaconMemory, changes: dict[str, Any], why: str
) -> None:
    asked, ids, _ = asked_of(memory, "ada")
    loads, request = Loads(), request_of(asked, [*ids, 5, 6], **changes)
    assert why in loads.wanted(request)[1]
    loads.refuse(request)
    assert (request.block_hashes, request.skip_reading_prefix_cache) == (["refused one"], False)
    count = len(request.prompt_token_ids) - 1
    assert loads.matched(request, 0) == count
    loads.allocated(request, [0], count)
    (load,) = loads.step()
    assert load.asked is None
    assert why in load.refused


def test_settings_that_would_answer_from_placeholders_are_refused() -> None:
    check_settings({"store": "memory://"}, policy="fail", known=("store", "salt"))
    with pytest.raises(ConfigError, match="placeholders as words"):
        check_settings({"store": "memory://"}, policy="recompute", known=("store", "salt"))
    with pytest.raises(ConfigError, match="needs a store"):
        check_settings({}, policy="fail", known=("store", "salt"))
    with pytest.raises(ConfigError, match="takes store, salt, not sotre"):
        check_settings({"sotre": "memory://"}, policy="fail", known=("store", "salt"))
