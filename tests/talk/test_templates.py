"""What a template can render whole, a memory holds piece by piece: public templates, and generated conversations."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from public import PUBLIC

from beacon_memory import BeaconMemory
from beacon_memory.config import BeaconConfig
from beacon_memory.models.model import BeaconModel
from beacon_memory.talk.messages import read_messages
from beacon_memory.talk.template import LINES
from beacon_memory.talk.tools import as_json
from beacon_memory.talk.transcript import Transcript
from beacon_memory.testing.models import tiny_lm

DOC = Path(__file__).parents[2] / "docs" / "templates.md"
LATER = {"role": "user", "content": "LATER"}


@cache
def opened(name):
    tokenizer = PUBLIC[name].tokenizer()
    return tokenizer, Transcript(tokenizer)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def call(*given, text="", name="add"):
    calls = [
        {"type": "function", "id": f"call{n:05}", "function": {"name": name, "arguments": arguments}}
        for n, arguments in enumerate(given)
    ]
    return {"role": "assistant", "content": text, "tool_calls": calls}


def result(text, n=0):
    return {"role": "tool", "content": text, "tool_call_id": f"call{n:05}"}


def whole(name, messages, system=None, **how):
    """The ids of a conversation as transformers renders it, or None where the template refuses it."""
    tokenizer, transcript = opened(name)
    shown = [{"role": "system", "content": system}] if system else []
    for one, read in zip(messages, read_messages(messages), strict=True):
        # A template that takes no calls is shown them in words.
        shown.append(one if takes_calls(name) or "tool_calls" not in one else assistant(read["content"]))
    source = {} if tokenizer.chat_template else {"chat_template": LINES}
    try:
        text = tokenizer.apply_chat_template(shown, tokenize=False, **source, **how)
    except Exception:
        return None
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if ids[: len(transcript.start)] == transcript.start else [*transcript.start, *ids]


def pieces(name, messages, system=None):
    """The ids of the same conversation, message by message."""
    _, transcript = opened(name)
    ids = [i for message in messages for i in transcript.turn(message)]
    return transcript.opened([*transcript.system(system), *ids])


@cache
def takes_calls(name):
    tokenizer, _ = opened(name)
    if tokenizer.chat_template is None:
        return False
    for arguments in ({"KEY": 1}, as_json({"KEY": 1})):
        try:
            text = tokenizer.apply_chat_template([user("?"), call(arguments, name="NAME")], tokenize=False)
        except Exception:
            continue
        if "NAME" in text and '"KEY"' in text:
            return True
    return False


TALK = [user("Where do I live?"), assistant("In Lyon."), user(" And my dog?\n"), assistant("He too.")]
KINDS = {
    "a talk": (TALK, None),
    "behind a system prompt": (TALK, "Be brief."),
    "two questions in a row": ([user("Hi."), user("Are you there?")], None),
    "a call and its result": ([user("1 + 2?"), call({"a": 1, "b": "x"}), result("3")], None),
    "two results in a row": ([user("1 + 2?"), call({"a": 1}), result("3"), result('4 "x"')], None),
    "an answer behind a result": ([user("1 + 2?"), call({"a": 1}), result("3"), assistant("It is 3.")], None),
}


def compared(name, messages, system):
    """Whether the pieces are what the whole begins with once something follows."""
    ends = [[LATER], [assistant("LATER"), LATER], [assistant("LATER")]]
    shown = [ids for end in ends if (ids := whole(name, [*messages, *end], system)) is not None]
    if not shown:
        return "refused"
    ours = pieces(name, messages, system)
    return "same" if any(ids[: len(ours)] == ours for ids in shown) else "differs"


def table():
    """What docs/templates.md says of the templates."""
    yield f"| like that of | {' | '.join(KINDS)} |"
    yield "|---" * (len(KINDS) + 1) + "|"
    for name in PUBLIC:
        yield f"| {name} | {' | '.join(compared(name, *kind) for kind in KINDS.values())} |"


def test_the_documents_table_is_what_the_templates_do():
    assert "\n".join(table()) in DOC.read_text()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_memory_opens_on_every_template_and_remembers_what_was_said(name):
    tokenizer = PUBLIC[name].tokenizer()
    lm = tiny_lm("mistral" if "mistral" in name else "llama", vocab_size=len(tokenizer))
    memory = BeaconMemory.open(BeaconModel(lm, tokenizer, BeaconConfig(window=64, keep_last=16, anchors="last")))
    session = memory.session("ada")
    session.add([*TALK, user("1 + 2?"), call({"a": 1, "b": "two"}), result("three"), user("Thanks."), user("Bye.")])
    state = session.state()
    told = tokenizer.decode([i for s in state.segments for i in s.ids] + list(state.tail))
    for words in ("Where do I live?", "In Lyon.", "And my dog?", "He too.", '"a": 1', '"two"', "three", "Thanks."):
        assert told.count(words) == 1, words
    assert session.ask("Where?", system="Be brief.", max_new_tokens=3) is not None
    session.chat("And now?", max_new_tokens=3)
    session.rewind(4)
    assert len(session.messages()) == 4


TEXT = st.one_of(
    st.sampled_from(
        ["Hi", " two  spaces ", "line\nbreak\n", "où? 去哪里 🎉", '"quoted" \\n', "{'a': 1}", "a\u200bb", "\u2028"]
    ),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
).filter(str.strip)


def talks(text):
    arguments = st.dictionaries(st.sampled_from(["a", "b", "place"]), text | st.integers() | st.none(), max_size=2)
    message = st.one_of(
        text.map(user),
        text.map(assistant),
        st.lists(arguments, min_size=1, max_size=2).map(lambda given: call(*given)),
        text.map(result),
    )
    strict = st.lists(text, min_size=1, max_size=5).map(
        lambda said: [user(t) if n % 2 == 0 else assistant(t) for n, t in enumerate(said)]
    )
    return st.one_of(strict, st.lists(message, min_size=1, max_size=6))


def spelled(name, *texts):
    _, transcript = opened(name)
    return any(transcript._encoder.spells(text) for text in texts)


def check_pieces(name, talk, system):
    """The pieces of a talk are the whole's; where docs/templates.md says that a kind differs, its words are there."""
    tokenizer, transcript = opened(name)
    ours = pieces(name, talk, system)
    before = pieces(name, talk[:-1], system)
    assert ours[: len(before)] == before
    if "think" in str(talk).lower():  # thoughts are left out: they have tests of their own
        return
    for message in talk:
        if message["role"] == "user" or message["content"]:
            assert shown_words(message["content"], tokenizer.decode(transcript.turn(message))), message
    if differs(name, talk, system) or spelled(name, str(talk), str(system)):
        return
    shown = [ids for end in ([LATER], [assistant("LATER"), LATER]) if (ids := whole(name, [*talk, *end], system))]
    assert not shown or any(ids[: len(ours)] == ours for ids in shown)


def shown_words(content, text):
    """Whether a text has these words, as they are or as JSON."""
    return content.strip() in text or as_json(content)[1:-1].strip() in text


def differs(name, talk, system):
    """Whether this is a talk of a kind of which docs/templates.md says that its pieces differ from the whole."""
    kinds = {kind for kind in KINDS if compared_cached(name, kind) != "same"}
    roles = ["call" if "tool_calls" in m else m["role"] for m in talk]
    if system and "behind a system prompt" in kinds:
        return True
    if "tool" in roles and (
        kinds & {"a call and its result", "two results in a row", "an answer behind a result"}
        or any(later == "tool" and earlier != "call" for earlier, later in pairwise(roles))
        or roles[0] == "tool"
    ):
        return True
    return "call" in roles and (not takes_calls(name) or any(len(m.get("tool_calls", ())) > 1 for m in talk))


@pytest.mark.parametrize("name", PUBLIC)
@settings(max_examples=6, deadline=None)
@given(talk=talks(TEXT), system=st.none() | TEXT)
def test_whatever_the_talk_its_pieces_are_the_wholes(name, talk, system):
    check_pieces(name, talk, system)


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLIC)
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(talk=talks(TEXT), system=st.none() | TEXT)
def test_of_2000_talks_the_pieces_are_the_wholes(name, talk, system):
    check_pieces(name, talk, system)


@cache
def compared_cached(name, kind):
    return compared(name, *KINDS[kind])


@pytest.mark.parametrize("name", PUBLIC)
def test_a_system_prompt_stands_where_the_template_puts_it(name):
    _, transcript = opened(name)
    question = user("Where do I live?")
    ours = transcript.prompt([], behind=False, opens=True, asked=[question], system="Be brief.")
    shown = whole(name, [question], "Be brief.", add_generation_prompt=True)
    assert ours == shown or (shown is None and name in ("mistral-v0.1", "gemma-2"))
    told = transcript.start + transcript.system("Be brief.")
    if shown is None:
        assert ours == [*told, *transcript.turn(question), *transcript.header()]
    # The newest question may have been read before its answer is asked for.
    tail = transcript.opened(transcript.turn(question))
    assert transcript.prompt(tail, behind=False, opens=True, newest=question, system="Be brief.") == ours


@pytest.mark.parametrize("name", ["llama-3.2", "smollm3", "granite-3"])
def test_a_date_in_the_template_is_todays_and_no_messages(name):
    """A server that ran over midnight refused every question: the opening had yesterday's date."""
    tokenizer = PUBLIC[name].tokenizer()
    source = tokenizer.chat_template
    days = ["26 Nov 2031", "27 Nov 2031"]

    def dawns(day):
        tokenizer.chat_template = "{%- macro strftime_now(form) -%}" + day + "{%- endmacro -%}" + source

    dawns(days[0])
    transcript = Transcript(tokenizer)
    turns = [transcript.turn(message) for message in TALK]
    for day, other in (days, days[::-1]):
        dawns(day)
        assert [transcript.turn(message) for message in TALK] == turns
        told = tokenizer.decode(transcript.system(None))
        assert day in told
        assert other not in told


@pytest.mark.parametrize("name", PUBLIC)
def test_thoughts_are_not_remembered_not_even_those_that_were_cut_off(name):
    _, transcript = opened(name)
    answer = transcript.turn(assistant("In Lyon."))
    for said in ("<think>\nWhere?\n</think>\n\nIn Lyon.", "<think>Hm</think>\nIn Lyon.", "[THINK]Hm[/THINK]In Lyon."):
        assert transcript.turn(assistant(said)) == answer
        assert transcript.spoken(said) == "In Lyon."
    for said in ("<think>\nThe user asks", "<think>", "  <thinking>so"):
        assert transcript.turn(assistant(said)) == [] == transcript.read([assistant(said)])
        assert transcript.spoken(said) == ""


@pytest.mark.parametrize("name", PUBLIC)
def test_up_to_a_bare_end_all_is_a_thought_only_where_the_header_opened_one(name):
    tokenizer, transcript = opened(name)
    thought = "Where?\n</think>\n\nIn Lyon."
    if name == "deepseek-r1-distill":
        assert transcript.turn(assistant(thought)) == transcript.turn(assistant("In Lyon."))
        assert transcript.spoken(thought) == "In Lyon."
        assert transcript.spoken("The user asks") == ""  # cut off within the thought
    else:
        assert transcript.read([assistant(thought)])[0]["content"] == transcript.spoken(thought) == thought
        told = tokenizer.decode(transcript.turn(assistant(thought)))
        assert all(words in told for words in thought.split("\n</think>\n\n"))
        assert transcript.spoken("The user asks") == "The user asks"
    for words in ("The tag <think> opens a thought, </think> ends it.", "I <think> so."):
        assert words in tokenizer.decode(transcript.turn(assistant(words)))
