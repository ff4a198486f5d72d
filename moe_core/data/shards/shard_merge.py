"""Several folders of shards as one: which documents are drawn from each, and whether the mix came out as asked.

No document is cut or drawn twice. Of every split the shares of tokens are those that were asked, so that the folder
that has least for its share is taken whole and the others are drawn from, in a seeded order. Drawn documents keep their
order within their folder. Where folders alternate, the one that is furthest behind its share comes next: any long
stretch of the result has the asked mix.

Held-out documents whose exact text is in training or in an earlier held-out split are left out, as where one text is
split: one folder may hold out what another trains on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moe_core.data.shards.shard_contents import Contents, shard_contents
from moe_core.data.shards.shard_index import Split
from moe_core.data.shards.shard_reader import ShardFolder
from moe_core.data.shards.shard_writer import ShardWriter
from moe_core.data.splits import ALL_SPLITS, HELD_OUT_SPLITS
from moe_core.errors import DataError, UsageError
from moe_core.progress import Progress, silent

Strategy = Literal["equal", "proportional", "weighted"]
STRATEGIES: tuple[Strategy, ...] = ("equal", "proportional", "weighted")


@dataclass(frozen=True)
class Drawn:
    """What one folder gave to one split."""

    label: str
    """The folder's name in the result's sources."""
    split: Split
    asked: float
    """Share of the split's tokens."""
    available: dict[str, Contents]
    """By domain."""
    drawn: dict[str, Contents]
    """By domain."""

    @property
    def total(self) -> Contents:
        """Of all domains that were drawn."""
        return sum(self.drawn.values(), Contents())


@dataclass(frozen=True)
class Merged:
    """What a merge wrote."""

    drawn: list[Drawn]
    left_out: int
    """Held-out documents that also stand in training."""


def merge(
    paths: Sequence[Path],
    out: Path,
    *,
    strategy: Strategy = "proportional",
    weights: Sequence[float] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Merged:
    """Write the folders at `paths` as one at `out`, an empty or missing folder.

    `weights`: for the strategy "weighted", one a folder; only their proportions count.
    Raises UsageError for weights that do not fit or a folder that has something in it, DataError for folders of
    different tokenizers or without text for their share.
    """
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("merge takes at least two folders of shards, none of them twice")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{str(out)!r} has something in it; expected an empty folder, or one that is not there yet")
    report = progress or silent
    folders = [ShardFolder(path) for path in paths]
    _check_tokenizers(folders)
    labels = _labels(paths)
    sources = [_Source(folder, label) for folder, label in zip(folders, labels, strict=True)]
    shares = {split: _shares(sources, split, strategy, weights) for split in ALL_SPLITS}
    chosen = {split: _choose(sources, split, shares[split], seed) for split in ALL_SPLITS}
    out.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(out, folders[0].tokenizer)
    drawn: list[Drawn] = []
    # Held-out text is the smaller part, so only its digests are held.
    held_out = {
        _digest(document)
        for split in HELD_OUT_SPLITS
        for source, mask in zip(sources, chosen[split], strict=True)
        for document in source.documents(split, mask)
    }
    known: set[bytes] = set()
    left_out = 0
    total = sum(int(mask.sum()) for masks in chosen.values() for mask in masks)
    done = 0
    for split in ALL_SPLITS:
        found: list[dict[str, Contents]] = [{} for _ in sources]
        for number, document in _alternating(sources, split, chosen[split], shares[split]):
            if done % 1024 == 0:
                report("merging", done, total)
            done += 1
            digest = _digest(document)
            if split != "train" and digest in known:
                left_out += 1
                continue
            if digest in held_out:
                known.add(digest)
            contents = Contents(1, len(document.token_ids), document.bytes)
            of_source = found[number]
            of_source[document.domain] = of_source.get(document.domain, Contents()) + contents
            writer.add(
                split, document.domain, f"{labels[number]}/{document.source}", document.token_ids, document.bytes
            )
            if writer.is_full:
                writer.cut()
        for source, share, of_source in zip(sources, shares[split], found, strict=True):
            drawn.append(Drawn(source.label, split, share, source.contents(split), of_source))
    report("merging", total, total)
    domains = sorted({domain for one in drawn if one.split == "train" for domain in one.drawn})
    asked = ", ".join(f"{label} {share:.4g}" for label, share in zip(labels, shares["train"], strict=True))
    writer.finish(domains, {"merged": asked, "strategy": strategy, "seed": seed})
    return Merged(drawn, left_out)


@dataclass(frozen=True)
class _Document:
    domain: str
    source: str
    token_ids: NDArray[np.unsignedinteger]
    bytes: int


class _Source:
    """One of the folders. Of its documents only the numbers of tokens are held."""

    def __init__(self, folder: ShardFolder, label: str) -> None:
        self.folder, self.label = folder, label
        self._contents: dict[str, dict[str, Contents]] = {split: {} for split in ALL_SPLITS}
        lengths: dict[str, list[NDArray[np.int64]]] = {split: [] for split in ALL_SPLITS}
        for shard in folder.index.shards:
            lengths[shard.split].append(folder.documents(shard)["tokens"].to_numpy())
            of_split = self._contents[shard.split]
            for domain, contents in shard_contents(folder, shard).items():
                of_split[domain] = of_split.get(domain, Contents()) + contents
        nothing = [np.zeros(0, dtype=np.int64)]
        self.lengths = {split: np.concatenate(found or nothing) for split, found in lengths.items()}

    def contents(self, split: str) -> dict[str, Contents]:
        return self._contents[split]

    def documents(self, split: str, mask: NDArray[np.bool_]) -> Iterator[_Document]:
        """Those that `mask` [documents of the split] has, in order; one table in memory at a time."""
        before = 0
        for shard in self.folder.index.of_split(split):
            table = self.folder.documents(shard)
            ids = self.folder.ids(shard)
            rows = np.flatnonzero(mask[before : before + shard.documents])
            before += shard.documents
            for row in table.take(rows).to_pylist():
                yield _Document(
                    row["domain"], row["source"], ids[row["start"] : row["start"] + row["tokens"]], row["bytes"]
                )


def _digest(document: _Document) -> bytes:
    return hashlib.blake2b(document.token_ids.tobytes(), digest_size=16).digest()


def _check_tokenizers(folders: Sequence[ShardFolder]) -> None:
    first = folders[0]
    for folder in folders[1:]:
        if folder.index.tokenizer_sha256 != first.index.tokenizer_sha256:
            raise DataError(
                f"{str(folder.path)!r} has another tokenizer than {str(first.path)!r}, so their ids mean different "
                "things; prepare one of them with --tokenizer PATH, the tokenizer.json of the other"
            )


def _labels(paths: Sequence[Path]) -> list[str]:
    """The folders' names; where two are alike, the paths."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [path.as_posix() for path in paths]


def _shares(sources: Sequence[_Source], split: Split, strategy: Strategy, weights: Sequence[float]) -> list[float]:
    """[folders] of the split's tokens; add up to 1 unless nobody has any."""
    tokens = [float(source.lengths[split].sum()) for source in sources]
    if strategy == "weighted":
        if len(weights) != len(sources) or min(weights, default=0) <= 0 or not np.isfinite(sum(weights)):
            raise UsageError(
                f"--weights has {len(weights)} numbers ({' '.join(f'{one:g}' for one in weights)}); expected one above "
                f"0 for each of the {len(sources)} folders"
            )
        wanted = [float(weight) for weight in weights]
    elif weights:
        raise UsageError(f"--weights goes with the strategy weighted; the strategy is {strategy}")
    else:
        wanted = tokens if strategy == "proportional" else [1.0] * len(sources)
    if strategy != "proportional" and split == "train" and not all(tokens):
        empty = next(source for source in sources if not source.lengths[split].sum())
        raise DataError(f"{str(empty.folder.path)!r} has no training text to draw its share from")
    # A folder that holds nothing out leaves that split to the others.
    wanted = [weight if has else 0.0 for weight, has in zip(wanted, tokens, strict=True)]
    whole = sum(wanted)
    return [weight / whole if whole else 0.0 for weight in wanted]


def _choose(sources: Sequence[_Source], split: Split, shares: Sequence[float], seed: int) -> list[NDArray[np.bool_]]:
    """For each folder which documents of the split are drawn."""
    tokens = [int(source.lengths[split].sum()) for source in sources]
    whole = min((have / share for have, share in zip(tokens, shares, strict=True) if share > 0), default=0.0)
    masks: list[NDArray[np.bool_]] = []
    for number, (source, share) in enumerate(zip(sources, shares, strict=True)):
        lengths = source.lengths[split]
        mask = np.zeros(len(lengths), dtype=bool)
        if share > 0:
            order = np.random.default_rng([seed, ALL_SPLITS.index(split), number]).permutation(len(lengths))
            # A document belongs to the draw if more than half of it lies within the budget.
            middle = np.cumsum(lengths[order]) - lengths[order] / 2
            mask[order[middle < share * whole * (1 + 1e-12)]] = True
        masks.append(mask)
    return masks


def _alternating(
    sources: Sequence[_Source], split: Split, masks: Sequence[NDArray[np.bool_]], shares: Sequence[float]
) -> Iterator[tuple[int, _Document]]:
    """The chosen documents with the number of their folder, each time of that which is furthest behind its share."""
    streams = [source.documents(split, mask) for source, mask in zip(sources, masks, strict=True)]
    waiting = {number: next(stream, None) for number, stream in enumerate(streams)}
    given = np.zeros(len(sources))
    goal = np.array([max(share, 1e-300) for share in shares])
    while open_ones := [number for number, document in waiting.items() if document is not None]:
        number = min(open_ones, key=lambda one: given[one] / goal[one])
        document = waiting[number]
        assert document is not None
        yield number, document
        given[number] += len(document.token_ids)
        waiting[number] = next(streams[number], None)


@dataclass(frozen=True)
class MixTest:
    """A chi-squared test of drawn documents against what was asked."""

    of: str
    """What is compared: the folders, or the domains of one folder."""
    split: Split
    statistic: float
    degrees: int
    p: float
    """How often a fair draw deviates at least as much; 1 where there is nothing to compare."""


def mix_tests(merged: Merged) -> list[MixTest]:
    """One test a split of the folders' shares of tokens, and one a folder and split of its domains.

    Documents are the unit, for they are what is drawn: tokens of one document come together. For the folders, drawn
    tokens are counted in documents of the split's mean length. For the domains of a folder, drawn documents are held
    against those left behind; what was taken whole cannot deviate.
    """
    tests: list[MixTest] = []
    for split in ALL_SPLITS:
        rows = [one for one in merged.drawn if one.split == split and one.asked > 0]
        total = sum((one.total for one in rows), Contents())
        if total.documents:
            observed = np.array([one.total.tokens for one in rows]) * (total.documents / total.tokens)
            asked = np.array([one.asked for one in rows])
            tests.append(_tested("folders", split, observed, asked * total.documents))
        for one in rows:
            domains = sorted(one.available)
            observed = np.array([one.drawn.get(domain, Contents()).documents for domain in domains], dtype=float)
            available = np.array([one.available[domain].documents for domain in domains], dtype=float)
            share = observed.sum() / available.sum()
            tests.append(_tested(f"domains of {one.label}", split, observed, available * share, left=1 - share))
    return tests


def _tested(
    of: str, split: Split, observed: NDArray[np.float64], expected: NDArray[np.float64], left: float = 1.0
) -> MixTest:
    """`left`: the share that was not drawn. Without replacement a draw deviates less, by just that."""
    from scipy.stats import chi2

    degrees = len(expected) - 1
    if degrees < 1 or left <= 0 or not expected.all():
        return MixTest(of, split, 0.0, 0, 1.0)
    statistic = float(((observed - expected) ** 2 / expected).sum()) / left
    return MixTest(of, split, statistic, degrees, float(chi2.sf(statistic, degrees)))
