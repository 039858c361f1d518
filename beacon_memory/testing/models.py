"""Real models small enough for a test: random weights, two layers, a tokenizer that round-trips any text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import UnsupportedModel
from beacon_memory.fold.family import FAMILIES, FULL, SLIDING
from beacon_memory.models.model import BeaconModel

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# In the order they are merged; "Ġ" is the byte-level alphabet's space.
MERGES = (
    "t h,th e,Ġ the,i n,Ġ a,e r,o n,r e,Ġ s,a n,an d,Ġ and,Ġ t,Ġ w,o r,Ġ h,e n,o u,i t,Ġ b,e d,Ġ o,Ġo f,in g,i s,Ġ m,"
    "a t,Ġ l,a r,Ġ p,e s,Ġ f,Ġ in,l l,o m,Ġt o,Ġ I,Ġ y,Ġy ou,v e,Ġ c"
)
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
# What a tiny model of a family needs beyond what all have: few experts, every kind of layer in two layers.
OF_FAMILY: dict[str, dict[str, Any]] = {
    "smollm3": {"no_rope_layer_interval": 2},
    "granite": {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 24},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 24},
    "gemma4_text": {"sliding_window": 24, "global_head_dim": 16, "hidden_size_per_layer_input": 4},
    "gemma4_unified_text": {"sliding_window": 24, "global_head_dim": 16},
    "olmo3": {"sliding_window": 24},
    "qwen3_5_text": LINEAR,
    "lfm2": {},
    "lfm2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_dense_layers": 1},
    "granitemoehybrid": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "num_local_experts": 4,
        "shared_intermediate_size": 32,
        "mamba_n_heads": 4,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
        "position_embedding_type": "nope",
    },
    "qwen3_5_moe_text": {
        **LINEAR,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_next": {
        **LINEAR,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 24,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    },
}
# SmolLM2's: without a system message, a default one is put in front.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_model(
    family: str = "llama", *, config: BeaconConfig | None = None, seed: int = 0, **changes: Any
) -> BeaconModel:
    """A beacon model of any supported family with random weights, the same ones for the same seed.

    `changes` go to the transformers config. Raises UnsupportedModel.

    >>> model = tiny_model("qwen3", config=BeaconConfig(window=16, keep_last=8))
    >>> model.compress(model.encode("I live in Lyon. " * 9)).slots > 0
    True
    """
    return BeaconModel(tiny_lm(family, seed=seed, **changes), tiny_tokenizer(), config)


def tiny_checkpoint(
    folder: str | Path, family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """The folder, after `tiny_model`'s language model and tokenizer were written there for `from_pretrained`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     BeaconModel.from_pretrained(str(tiny_checkpoint(folder))).lm.config.model_type
    'llama'
    """
    folder = Path(folder)
    tiny_lm(family, seed=seed, **changes).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_lm(family: str = "llama", *, seed: int = 0, attn_implementation: str = "sdpa", **changes: Any) -> Any:
    """The language model of `tiny_model` alone, as transformers makes it. Raises UnsupportedModel.

    >>> tiny_lm("mistral").config.num_hidden_layers
    2
    """
    if family not in FAMILIES:
        raise UnsupportedModel(f"no tiny model of family {family!r}; there are {', '.join(FAMILIES)}")
    tokenizer = tiny_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "sliding_window": None,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    settings = {**settings, **OF_FAMILY.get(family, {}), **changes}
    if family == "gemma4_text":
        settings.setdefault("vocab_size_per_layer_input", settings["vocab_size"])
    if family in ("gemma4_text", "gemma4_unified_text"):  # their last layer is a full one
        last = settings["num_hidden_layers"] - 1
        settings.setdefault("layer_types", [FULL if at % 2 or at == last else SLIDING for at in range(last + 1)])
    if family in ("gemma3_text", "olmo3"):  # by default, their first full layer is the fourth or sixth
        layers = range(settings["num_hidden_layers"])
        settings.setdefault("layer_types", [FULL if layer % 2 else SLIDING for layer in layers])
    if FAMILIES[family].recurrent:  # by default, their first full layer is the fourth
        layers = range(settings["num_hidden_layers"])
        kind = "conv" if FAMILIES[family].recurrent == "conv" else "linear_attention"
        settings.setdefault("layer_types", [FULL if layer % 2 else kind for layer in layers])
    config = AutoConfig.for_model(family, **settings)
    if attn_implementation == "sdpa" and not FAMILIES[family].sdpa:
        attn_implementation = "eager"
    lm = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            # Far wider than a training's start: flat logits would forgive a wrong key.
            around, width = (1.0, 0.1) if "norm" in name else (0.0, 0.3)
            parameter.copy_(around + width * torch.randn(parameter.shape, generator=random))
    return lm.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with ChatML's special tokens and SmolLM2's kind of chat template.

    >>> tokenizer = tiny_tokenizer()
    >>> tokenizer.decode(tokenizer("où? 去哪里\\n")["input_ids"])
    'où? 去哪里\\n'
    """
    merges = [(first, second) for first, second in (merge.split(" ") for merge in MERGES.split(","))]
    tokens = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(first + second for first, second in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIALS[0],
        bos_token=SPECIALS[1],
        eos_token=SPECIALS[2],
        pad_token=SPECIALS[2],
        chat_template=CHAT_TEMPLATE,
    )
