"""Tokenizers whose chat templates (templates/) do what the public ones do, and whose tokens are added as theirs are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from beacon_memory.testing.models import tiny_tokenizer

_FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Public:
    """What a model's tokenizer is beside its vocabulary."""

    name: str
    bos: str | None = None
    eos: str = "<|im_end|>"
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()  # and not special
    opens: bool = False  # whether the tokenizer puts its bos in front of every text
    stripping: bool = False  # whether its tokens swallow the white space behind them

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token that is added to the vocabulary."""
        return tuple(dict.fromkeys([*([self.bos] if self.bos else []), self.eos, *self.special, *self.added]))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tiny tokenizer with this model's tokens and template."""
        tokenizer = tiny_tokenizer()
        space = {"rstrip": True} if self.stripping else {}
        special = dict.fromkeys([*([self.bos] if self.bos else []), self.eos, *self.special])
        tokenizer.add_tokens([AddedToken(t, special=True, normalized=False, **space) for t in special], True)
        tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in self.added])
        tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = self.bos, self.eos, self.eos
        path = _FOLDER / f"{self.name}.jinja"
        tokenizer.chat_template = path.read_text() if path.exists() else None
        if self.opens:
            front = [(str(self.bos), tokenizer.bos_token_id)]
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"{self.bos} $A", special_tokens=front
            )
        return tokenizer


_LLAMA3 = {
    "bos": "<|begin_of_text|>",
    "eos": "<|eot_id|>",
    "special": ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"),
    "opens": True,
}
_MISTRAL = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
_MISTRAL += ("[TOOL_RESULTS]", "[/TOOL_RESULTS]")
_QWEN = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
_GEMMA = {"bos": "<bos>", "eos": "<end_of_turn>", "special": ("<eos>", "<start_of_turn>"), "opens": True}
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
_DEEPSEEK += ("<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>")

PUBLIC = {
    one.name: one
    for one in (
        Public("llama-2", "<s>", "</s>", opens=True),
        Public("llama-3", **_LLAMA3),
        Public("llama-3.1", **_LLAMA3),
        Public("llama-3.2", **_LLAMA3),
        Public("mistral-v0.1", "<s>", "</s>", opens=True),
        Public("mistral-v0.2", "<s>", "</s>", opens=True),
        Public("mistral-v0.3", "<s>", "</s>", _MISTRAL, opens=True),
        Public("mistral-nemo", "<s>", "</s>", _MISTRAL, opens=True),
        Public("qwen2.5", added=_QWEN[:2]),
        Public("qwen3", added=_QWEN),
        Public("gemma-2", **_GEMMA, added=("<table>", "<h1>", "[toxicity=0]")),
        Public("gemma-3", **_GEMMA, added=("<start_of_image>", "<unused0>")),
        Public("phi-3", "<s>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>"), opens=True, stripping=True),
        Public("phi-4", "<|endoftext|>", special=("<|im_sep|>",)),
        Public("phi-4-mini", "<|endoftext|>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")),
        Public("smollm2", "<|im_start|>", special=("<file_sep>", "<repo_name>")),
        Public("smollm3", "<|begin_of_text|>", added=("<think>", "</think>", "<tool_call>", "</tool_call>")),
        Public(
            "deepseek-r1-distill",
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            special=_DEEPSEEK,
            added=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
            opens=True,
        ),
        Public(
            "granite-3", "<|end_of_text|>", "<|end_of_text|>", ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>")
        ),
        Public("olmo-2", "<|endoftext|>", "<|endoftext|>", added=("<|extra_id_0|>",)),
        Public("no template", "<s>", "</s>", opens=True),
    )
}
