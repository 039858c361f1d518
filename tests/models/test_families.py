"""Every law over every family, what is refused, and the tables of docs/models.md, which say what came of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from laws import CASES, LAWS, Case, failure, refused, table
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from beacon_memory.errors import UnsupportedModel
from beacon_memory.fold.family import FAMILIES
from beacon_memory.models.families import REFUSED, check_supported

DOC = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_law_holds_for_a_family(case: Case, law: str) -> None:
    if (found := failure(case.name, law)) is not None:
        raise found


def test_the_documents_tables_are_what_the_laws_give() -> None:
    text = DOC.read_text()
    assert "\n".join(table()) in text
    assert "\n".join(refused()) in text


@pytest.mark.parametrize("kind", REFUSED)
def test_a_known_architecture_is_refused_with_its_reason_and_the_nearest(kind: str) -> None:
    reason, nearest = REFUSED[kind]
    assert nearest in FAMILIES
    newer = PretrainedConfig.from_dict({"model_type": kind})  # than the oldest transformers that is allowed
    config = AutoConfig.for_model(kind) if kind in CONFIG_MAPPING else newer
    with pytest.raises(UnsupportedModel, match=f"model type '{kind}' is not supported: {reason}; nearest: {nearest} "):
        check_supported(config)


@pytest.mark.parametrize(
    ("kind", "nearest"),
    [("gemma3", "gemma3_text"), ("qwen2_5_vl", "llama"), ("llava", "llama"), ("mistral3", "mistral")],
)
def test_a_checkpoint_that_sees_is_refused_with_the_nearest_that_reads(kind: str, nearest: str) -> None:
    with pytest.raises(
        UnsupportedModel, match=f"'{kind}' is not supported: it reads more than text.*nearest: {nearest} "
    ):
        check_supported(AutoConfig.for_model(kind))


def test_attention_in_both_directions_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="both directions"):
        check_supported(AutoConfig.for_model("gemma3_text", use_bidirectional_attention=True))
