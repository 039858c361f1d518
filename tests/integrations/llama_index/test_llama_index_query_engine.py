"""What LlamaIndex's users ask of a query engine beside words: classes, postprocessors, its steps by themselves."""

from __future__ import annotations

import json
import logging
import re

import pytest
from llama_index.core.base.response.schema import PydanticResponse
from llama_index.core.evaluation import BaseEvaluator, EvaluationResult
from llama_index.core.indices.query.query_transform.base import IdentityQueryTransform
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine, RetryQueryEngine, TransformQueryEngine
from llama_index.core.schema import Document, NodeWithScore, QueryBundle
from llama_index.indices.managed.beacon import BeaconIndex, BeaconSynthesizer
from llama_index.llms.beacon import BeaconLLM
from pydantic import BaseModel, Field
from remembering import HERE

from beacon_memory.errors import ConfigError
from beacon_memory.serving.engine import BeaconEngine
from beacon_memory.testing import scripted_engine

HOUSE = ["The lease ends in May1.", "The door is May2 green.", "The cellar floods in May3."]


class Months(BaseModel):
    """The months that were read."""

    found: str = Field(max_length=40)


class Other(BaseModel):
    """Another class."""

    found: int


def calendar(seen: str) -> str:
    """Says what it has seen, as JSON where it is asked so."""
    found = " ".join(sorted(set(re.findall(r"May\d", seen))) or ["nothing"])
    return json.dumps({"found": found}) if "as JSON" in seen else f"I read {found}"


@pytest.fixture(scope="module")
def shared() -> BeaconEngine:
    return scripted_engine(calendar)


@pytest.fixture
def index(llm: BeaconLLM) -> BeaconIndex:
    made = [Document(text=text, id_=f"d{n}") for n, text in enumerate(HOUSE)]
    return BeaconIndex.from_documents(made, llm=llm, index_id="house")


class Backwards(BaseNodePostprocessor):
    """All nodes but the first, the last one first."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return nodes[:0:-1]


# Classes


@pytest.mark.parametrize("way", ["output_cls", "structured LLM", "both"])
async def test_an_answer_is_of_the_class_that_was_asked_for(index, llm, way):
    how = {} if way == "structured LLM" else {"output_cls": Months}
    engine = index.as_query_engine(llm=None if way == "output_cls" else llm.as_structured_llm(Months), **how)
    for response in (engine.query("When? (as JSON)"), await engine.aquery("When? (as JSON)")):
        assert isinstance(response, PydanticResponse)
        assert response.response == Months(found="May1 May2 May3")
        assert response.metadata["usage"]["completion_tokens"] > 0
        assert len(response.source_nodes) == 3


@pytest.mark.parametrize("way", ["output_cls", "structured LLM"])
async def test_a_synthesizers_answer_is_of_that_class_too(index, llm, way):
    synthesizer = (
        BeaconSynthesizer(llm, output_cls=Months)
        if way == "output_cls"
        else BeaconSynthesizer(llm.as_structured_llm(Months))
    )
    engine = RetrieverQueryEngine(index.as_retriever(), synthesizer)
    for response in (engine.query("When? (as JSON)"), await engine.aquery("When? (as JSON)")):
        assert response.response == Months(found="May1 May2 May3")


def test_classes_that_make_no_sense_are_refused(index, llm):
    for make, match in (
        (lambda: index.as_query_engine(output_cls=Months, streaming=True), "streaming"),
        (lambda: BeaconSynthesizer(llm.as_structured_llm(Months), streaming=True), "streaming"),
        (lambda: index.as_query_engine(llm=llm.as_structured_llm(Months), output_cls=Other), "another class"),
        (lambda: index.as_query_engine(llm=MockLLM().as_structured_llm(Months)), "MockLLM"),
        (lambda: index.as_chat_engine(llm=llm.as_structured_llm(Months)), "StructuredLLM"),
        (lambda: BeaconIndex(index_id="house", llm=llm.as_structured_llm(Months)), "StructuredLLM"),
        (lambda: index.as_chat_engine(output_cls=Months), "output_cls"),
        (lambda: index.as_query_engine(response_mode="refine"), "response_mode"),
        (lambda: index.as_query_engine(output_cls=dict), "output_cls is a pydantic class"),
        (lambda: BeaconSynthesizer(llm, output_cls=3), "output_cls is a pydantic class"),
        (lambda: index.as_query_engine(node_postprocessors=[str]), "node_postprocessors"),
        (lambda: index.as_query_engine(node_postprocessors=5), "node_postprocessors"),
        (lambda: index.as_query_engine(text_qa_template="{query_str}"), "text_qa_template"),
        (lambda: index.as_query_engine(similarity_cutoff="high"), "similarity_cutoff"),
    ):
        with pytest.raises(ConfigError, match=match):
            make()


# Postprocessors


async def test_what_postprocessors_leave_is_all_that_is_read(index):
    for streaming in (False, True):
        engine = index.as_query_engine(node_postprocessors=[Backwards()], streaming=streaming)
        one, other = engine.query("When?"), await engine.aquery("When?")
        said = [str(one), str(await other.get_response()) if streaming else str(other)]
        assert said == ["I read May2 May3"] * 2
        for response in (one, other):
            assert [found.node.node_id for found in response.source_nodes] == ["d2", "d1"]
    twice = index.as_query_engine(node_postprocessors=[Backwards(), Backwards()])
    assert str(twice.query("When?")) == "I read May2"
    assert str(index.as_query_engine().query("When?")) == "I read May1 May2 May3"


def test_postprocessors_that_leave_nothing_give_llama_indexs_empty_response(index):
    """All nodes are without a score, so a cutoff leaves none."""
    engine = index.as_query_engine(node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=0.5)])
    response = engine.query("When?")
    assert (str(response), response.source_nodes) == ("Empty Response", [])


@HERE
def test_what_was_read_for_the_index_is_not_folded_again_for_a_postprocessor(index, llm):
    passes: list[int] = []
    counting = llm.opened.memory.model.lm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    one = BeaconLLM(engine=llm.opened, max_new_tokens=1)
    index.as_query_engine(llm=one, node_postprocessors=[Backwards()]).query("When?")
    counting.remove()
    assert len(passes) == 1


# Its steps by themselves


async def test_the_steps_of_a_query_are_taken_one_by_one(index):
    engine, retriever, asked = index.as_query_engine(), index.as_retriever(verbose=True), QueryBundle("When?")
    for nodes in (
        engine.retrieve(asked),
        await engine.aretrieve(asked),
        retriever.retrieve("When?"),
        await retriever.aretrieve("When?"),
    ):
        assert [found.node.node_id for found in nodes] == ["d0", "d1", "d2"]
    assert str(engine.synthesize(asked, nodes[:2])) == "I read May1 May2"
    response = await engine.asynthesize(asked, nodes[1:], additional_source_nodes=nodes[:1])
    assert str(response) == "I read May2 May3"
    assert [found.node.node_id for found in response.source_nodes] == ["d1", "d2", "d0"]
    assert str(engine.synthesize(asked, [])) == "Empty Response"
    streamed = index.as_query_engine(streaming=True).synthesize(asked, nodes[:1])
    assert str(streamed) == "I read May1"
    assert (
        index.as_query_engine(output_cls=Months).synthesize(QueryBundle("as JSON"), nodes[:1]).response.found == "May1"
    )


def test_engines_that_stand_on_a_query_engine_stand_on_this_one(index):
    class Pleased(BaseEvaluator):
        """Takes every answer."""

        def _get_prompts(self):
            return {}

        def _update_prompts(self, prompts):
            return None

        async def aevaluate(self, *args, **kwargs):
            return EvaluationResult(passing=True)

    engine = index.as_query_engine()
    assert str(TransformQueryEngine(engine, IdentityQueryTransform()).query("When?")) == "I read May1 May2 May3"
    assert str(RetryQueryEngine(engine, Pleased()).query("When?")) == "I read May1 May2 May3"


def test_verbose_logs_what_an_answer_took(index, caplog):
    with caplog.at_level(logging.INFO):
        index.as_query_engine().query("When?")
        assert "nodes read" not in caplog.text
        index.as_query_engine(verbose=True).query("When?")
        assert re.search(r"3 nodes read: .*beacon_tokens", caplog.text)
    assert index.as_chat_engine(verbose=True).chat("When?").response == "I read May1 May2 May3"
