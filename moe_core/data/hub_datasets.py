"""Text of a data set that the datasets library knows: by its name on the Hub, from its cache, or from a folder.

What is in the library's cache, or lies in a folder, is read without a network. Only a name that is in neither is asked
of the Hub, and then its rows are streamed. Code that comes with a data set is never run.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.data.document import Document
from moe_core.data.rows import Columns, checked_row
from moe_core.errors import DataError, UsageError
from moe_core.files import replaced
from moe_core.progress import Progress

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ALIASES = {"tiny-shakespeare": "Trelis/tiny-shakespeare", "tiny_shakespeare": "Trelis/tiny-shakespeare"}
OUR_SPLITS = {"valid": "validation", "val": "validation", "dev": "validation", "test": "unseen"}
"""What data sets call our splits; any other name is kept."""
ROWS_TOGETHER = 1024
HUB_SECONDS = 20


def read_dataset(which: str) -> Iterator[Document]:
    """The documents of the data set `which`: a NAME of the Hub, NAME:CONFIGURATION, or a folder of a saved one.

    Columns are those of every table (see rows.py): `text`, optionally `domain`, `source` and `split`. A missing
    domain is the data set's name, a missing split the data set's own; test is unseen.
    Raises UsageError where datasets is missing or the data set is not to be had, DataError for rows without text.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UsageError(
            "--dataset needs the library datasets, which is not installed; python -m pip install -r "
            "requirements-data.txt in a checkout, else pip install 'moescope[data]'"
        )
    name = ALIASES.get(which, which)
    label = (Path(name).name if Path(name).exists() else name.partition(":")[0].rpartition("/")[2]) or "text"
    for split, dataset in _parts(name).items():
        yield from _documents(dataset, label, split, Path(which))


def write_dataset(which: str, target: Path, progress: Progress) -> int:
    """Its documents as a .jsonl file, whole or not at all, which can be read again and again; how many they are."""
    count = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced(target) as file:
        for document in read_dataset(which):
            if count % ROWS_TOGETHER == 0:
                progress("reading the data set", count, count)
            file.write(json.dumps(asdict(document)).encode() + b"\n")
            count += 1
        if not count:
            raise DataError(f"the data set {which!r} holds no text")
    return count


def _parts(name: str) -> dict[str, Dataset | IterableDataset]:
    """The data set's splits by their names; "" for one without."""
    import datasets

    if Path(name).exists():
        found = _local(Path(name))
    else:
        repository, _, configuration = name.partition(":")
        found = _cached(repository, configuration or None)
        if found is None:
            found = _streamed(repository, configuration or None)
    if isinstance(found, datasets.DatasetDict | datasets.IterableDatasetDict):
        return dict(found)
    return {str(found.split or ""): found}


def _local(path: Path) -> Any:
    import datasets

    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return datasets.load_from_disk(str(path))
        if path.is_dir():
            return datasets.load_dataset(str(path), streaming=True)
    except Exception as error:  # the library raises what its readers raise
        raise DataError(f"{str(path)!r} is no data set that the datasets library reads: {_line(error)}") from None
    raise UsageError(
        f"--dataset {str(path)!r} is a file; give it as the input itself, or name a folder that save_to_disk wrote"
    )


def _cached(repository: str, configuration: str | None) -> Any:
    """From the library's cache; None where it is not there."""
    from datasets.packaged_modules.cache.cache import Cache
    from datasets.utils import logging

    logging.set_verbosity_error()  # it warns that it found what it was asked for
    try:
        dataset_name = repository.rpartition("/")[2]
        builder = Cache(
            dataset_name=dataset_name, repo_id=repository, config_name=configuration, version="auto", hash="auto"
        )
    except ValueError as error:
        if "multiple" in str(error):
            raise UsageError(f"--dataset {repository}: {_line(error)}; say NAME:CONFIGURATION") from None
        return None
    try:
        return builder.as_dataset()
    except Exception as error:
        raise DataError(f"the cached data set {repository!r} cannot be read: {_line(error)}; fetch it anew") from None


def _streamed(repository: str, configuration: str | None) -> Any:
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # One request that is not tried again: without a network this says so at once.
        HfApi().dataset_info(repository, timeout=HUB_SECONDS)
        return datasets.load_dataset(repository, configuration, streaming=True)
    except (HfHubHTTPError, HFValidationError, ValueError, RuntimeError, FileNotFoundError) as error:
        raise UsageError(f"no data set {repository!r} to read: {_line(error)}") from None
    except Exception as error:
        raise UsageError(
            f"the data set {repository!r} is not on this machine, and the Hub cannot be reached ({_line(error)}); "
            "connect, name a folder that save_to_disk wrote, or give a file as the input instead"
        ) from None


def _documents(dataset: Any, label: str, split: str, shown: Path) -> Iterator[Document]:
    columns: Columns | None = None
    number = 0
    try:
        for batch in dataset.iter(batch_size=ROWS_TOGETHER):
            columns = columns or Columns.find(list(batch), shown, "its columns")
            cells = [None if key is None else batch[key] for key in columns.keys]
            for place in range(len(next(iter(batch.values())))):
                number += 1
                values = [None if column is None else column[place] for column in cells]
                row = checked_row(shown, f"{split or 'its'} row {number}", number, *values)
                if row.text.strip():
                    source = row.source or f"{label}:{split}:{number}"
                    own_split = row.split or OUR_SPLITS.get(split, split)
                    yield Document(row.text, row.domain or label, source, own_split)
    except DataError:
        raise
    except Exception as error:  # of a network, or of a file that is damaged
        raise DataError(f"{str(shown)!r} cannot be read beyond {split} row {number}: {_line(error)}") from None


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")[:300]
