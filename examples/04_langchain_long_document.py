"""LangChain: a document longer than the model's window in `prompt | llm`, without a retriever.

    python examples/04_langchain_long_document.py [--model MODEL] [--document FILE] [--store URL]

The document is read once and kept folded under its id; every question of the chain stands behind it. With a store that
lasts (sqlite:///memory.db, redis://…) a second run reads nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from langchain_beacon import ChatBeacon
from langchain_core.prompts import ChatPromptTemplate
from transformers.utils import logging

BOOK = Path(__file__).with_name("kjv_stories.txt")
QUESTIONS = ["Who was swallowed by a great fish?", "Who was the mother in law of Ruth?"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--document", type=Path, default=BOOK)
    parser.add_argument("--store", default="memory://")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    llm = ChatBeacon(model=args.model, store=args.store, max_tokens=32)
    prompt = ChatPromptTemplate.from_messages([("system", "Answer in one short sentence."), ("human", "{question}")])

    print(f"reading {args.document.name} (16K tokens take about a minute on two cores) …", flush=True)
    began = time.perf_counter()
    chain = prompt | llm.with_context(args.document, context_id="book")
    print(f"read in {time.perf_counter() - began:.1f} s")
    for question in QUESTIONS:
        began = time.perf_counter()
        said = chain.invoke({"question": question})
        seen, beacon = said.usage_metadata, said.response_metadata["beacon"]
        print(f"\n{question}\n  {said.text}")
        print(
            f"  ({time.perf_counter() - began:.1f} s; seen: {seen['input_tokens']} tokens, of them from memory: "
            f"{seen['input_token_details']['cache_read']}, in {beacon['beacon_tokens']} slots)"
        )


if __name__ == "__main__":
    main()
