"""LlamaIndex: a query engine over a folder of texts, all of which it has read. The second process folds nothing.

    python examples/06_llama_index_query_engine.py [--model MODEL] [--folder FOLDER]

The first process folds every text of the folder (two books when none is given) and asks. The second one
opens the index by its id, asks again, and reads the folder once more: only what has changed is folded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llama_index.core import SimpleDirectoryReader
from llama_index.core.schema import Document
from llama_index.indices.managed.beacon import BeaconIndex
from llama_index.llms.beacon import BeaconLLM
from transformers.utils import logging

from beacon_memory.evaluation.data import Data

QUESTIONS = ["What was the name of Naomi's husband?", "What happened to Jonah in the sea?"]


def read(folder: str) -> list[Document]:
    """The folder's texts, each under its path."""
    return SimpleDirectoryReader(folder, filename_as_id=True, required_exts=[".txt"]).load_data()


def first(llm: BeaconLLM, folder: str) -> None:
    """The first process: fold, and ask."""
    began = time.perf_counter()
    index = BeaconIndex.from_documents(read(folder), llm=llm, index_id="books", show_progress=True)
    print(f"{len(index.ref_doc_info)} texts read in {time.perf_counter() - began:.0f} s")
    print(f"windows folded: {index.windows_folded}")
    ask(index)


def second(llm: BeaconLLM, folder: str) -> None:
    """The second process: open, ask, and read what has changed."""
    began = time.perf_counter()
    index = BeaconIndex(index_id="books", llm=llm)
    print(f"opened in {time.perf_counter() - began:.1f} s, the model's loading counted")
    index.refresh_ref_docs(read(folder))
    print(f"windows folded: {index.windows_folded}")
    ask(index)

    index.insert(Document(text="The lease of the house in Mill Lane ends on the fourth of May.", id_="lease"))
    print(f"\na text is added; windows folded: {index.windows_folded}")
    print(index.as_query_engine().query("When does the lease of the house in Mill Lane end?"))


def ask(index: BeaconIndex) -> None:
    """Answers in pieces, with where they come from and what they took."""
    engine = index.as_query_engine(streaming=True)
    for question in QUESTIONS:
        print(f"\n{question}")
        response = engine.query(question)
        response.print_response_stream()
        usage, slots = response.metadata["usage"], response.metadata["beacon"]["beacon_tokens"]
        nodes = response.source_nodes
        what = "read again for this" if any(found.score is not None for found in nodes) else "all there are"
        print(
            f"\n  ({usage['prompt_tokens']} tokens in front, {usage['prompt_tokens_details']['cached_tokens']} of them "
            f"from memory, in {slots} slots; {len(nodes)} source nodes: {what})"
        )


def shelf(folder: Path) -> None:
    """Two short books, each in a file of its own."""
    for name, text in Data().texts().items():
        if name in ("Ruth", "Jonah"):
            (folder / f"{name.lower()}.txt").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--folder", help="of .txt files")
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=("first", "second"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        llm = BeaconLLM(model=args.model, store=args.store, max_new_tokens=48)
        {"first": first, "second": second}[args.stage](llm, args.folder)
        return
    with tempfile.TemporaryDirectory() as work:
        folder = args.folder
        if folder is None:
            folder = str(Path(work, "books"))
            Path(folder).mkdir()
            shelf(Path(folder))
        for stage in ("first", "second"):
            print(f"\n---- the {stage} process ----", flush=True)
            how = ["--stage", stage, "--store", f"sqlite:///{work}/memory.db"]
            subprocess.run([sys.executable, __file__, *how, "--model", args.model, "--folder", folder], check=True)


if __name__ == "__main__":
    main()
