"""`moescope data dedup`: documents without those that are copies of others."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from moe_core.cli.options import Parser, command, finish, output_folder, positive
from moe_core.cli.output import Output, check_regular, progress_on_stderr, table
from moe_core.words import count_of, percent

if TYPE_CHECKING:
    from moe_core.data.deduplication import Copy
    from moe_core.data.document import Document

BEGINNING = 200
"""Characters of a text that the list of what was removed shows."""


def parser() -> Parser:
    """Its options."""
    parser = command(
        "data dedup",
        "Remove documents that are copies of others: exactly, or nearly (Jaccard similarity of their three-word "
        "shingles,\nfound by MinHash and then computed). Of copies the one in training stays, before validation,\n"
        "before unseen. What was removed is listed, each with the document that stays.",
        "data dedup texts.jsonl --out out/texts.jsonl",
        "data dedup out/corpus/train.jsonl out/corpus/unseen.jsonl --out out/fresh --threshold 0.8",
        "data dedup texts/ --out out/texts.jsonl --exact-only",
        "data dedup --dataset tiny-shakespeare --out out/shakespeare",
    )
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="*", help="a .jsonl, .parquet, .csv or .txt file, or a folder whose "
        "subfolders are domains; several are read one after the other. Rows may name their split",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", metavar="NAME", help="instead of files, a data set of the datasets library, as for data prepare "
        "(needs requirements-data.txt)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="PATH", required=True, help="a .jsonl file (the list then lies beside it, as "
        "NAME.removed.jsonl), or a folder for documents.jsonl and removed.jsonl",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", metavar="J", type=positive(1), default=0.7, help="similarity from which a document is a near "
        "copy (default 0.7)",
    )  # fmt: skip
    parser.add_argument("--exact-only", action="store_true", help="look for exact copies alone")
    return finish(parser, dedup)


def dedup(arguments: argparse.Namespace, output: Output) -> int:
    """Write the documents that stay and the list of those that do not. The inputs are read twice, never held."""
    from moe_core.data.deduplication import find_copies
    from moe_core.data.hub_datasets import write_dataset
    from moe_core.data.sources import PartCounter, TextFiles
    from moe_core.errors import UsageError

    if bool(arguments.inputs) == bool(arguments.dataset):
        raise UsageError("data dedup takes files or folders, or else --dataset NAME; expected one of the two")
    kept_path, removed_path = _targets(arguments.out)
    with progress_on_stderr() as progress, TemporaryDirectory() as folder:
        inputs = arguments.inputs
        if arguments.dataset:
            inputs = [Path(folder, "dataset.jsonl")]
            write_dataset(arguments.dataset, inputs[0], progress)
        texts = [TextFiles([path]) for path in inputs]
        counters = [PartCounter(files.plain_sources) for files in texts]
        copies = find_copies(
            (
                (counter.seen(document).text, document.split)
                for files, counter in zip(texts, counters, strict=True)
                for document in files
            ),
            threshold=arguments.threshold,
            exact_only=arguments.exact_only,
            progress=progress,
        )
        again = (counter.parts().named(files) for files, counter in zip(texts, counters, strict=True))
        written = _write_kept(kept_path, chain.from_iterable(again), copies)
    _write_removed(removed_path, copies, written)
    exact = sum(copy.exact for copy in copies)
    output.say(
        f"{written.kept:,} of {count_of(written.documents, 'document')} in {kept_path}; removed: {exact:,} exact and "
        f"{len(copies) - exact:,} near copies, {percent(written.removed_bytes / max(1, written.bytes))} of the bytes"
    )
    splits = Counter((written.named[copy.document].split, written.named[copy.kept].split) for copy in copies)
    rows = [[one or "-", other or "-", f"{count:,}"] for (one, other), count in sorted(splits.items())]
    if rows:
        output.say(table(["removed from split", "a copy of one in", "documents"], rows))
    output.say(f"listed in {removed_path}")
    output.figures(
        {
            "out": str(kept_path),
            "removed": str(removed_path),
            "documents": written.documents,
            "kept": written.kept,
            "exact_copies": exact,
            "near_copies": len(copies) - exact,
            "threshold": None if arguments.exact_only else arguments.threshold,
        }
    )
    return 0


@dataclass
class _Written:
    """What the second reading met."""

    named: dict[int, Document]
    """Those removed and those they are copies of, by their place; of the text only the beginning."""
    documents: int = 0
    kept: int = 0
    bytes: int = 0
    removed_bytes: int = 0


def _targets(out: str) -> tuple[Path, Path]:
    """Files for what stays and for the list, from --out."""
    path = Path(out)
    if path.suffix == ".jsonl":
        check_regular(out, "--out")
        return path, path.with_name(f"{path.stem}.removed.jsonl")
    folder = output_folder(out)
    return folder / "documents.jsonl", folder / "removed.jsonl"


def _write_kept(target: Path, documents: Iterable[Document], copies: Sequence[Copy]) -> _Written:
    from moe_core.files import replaced

    gone = {copy.document for copy in copies}
    wanted = gone | {copy.kept for copy in copies}
    written = _Written({})
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced(target) as file:
        for number, document in enumerate(documents):
            size = len(document.text.encode())
            written.documents += 1
            written.bytes += size
            if number in wanted:
                written.named[number] = replace(document, text=document.text[:BEGINNING])
            if number in gone:
                written.removed_bytes += size
                continue
            row = asdict(document) if document.split else {k: v for k, v in asdict(document).items() if k != "split"}
            file.write(json.dumps(row).encode() + b"\n")
            written.kept += 1
    return written


def _write_removed(target: Path, copies: Sequence[Copy], written: _Written) -> None:
    from moe_core.files import replaced

    with replaced(target) as file:
        for copy in copies:
            row = {
                **asdict(written.named[copy.document]),
                "document": copy.document + 1,
                "copy": "exact" if copy.exact else "near",
                "jaccard": round(copy.similarity, 6),
                "kept": {**asdict(written.named[copy.kept]), "document": copy.kept + 1},
            }
            file.write(json.dumps(row).encode() + b"\n")
