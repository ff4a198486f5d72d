"""Folders of shards merged in an asked mix, and damage of every kind found and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_core.cli.main import main
from moe_core.data.shards.merge_plan import merge_plan
from moe_core.data.shards.shard_contents import Contents, contents_of
from moe_core.data.shards.shard_index import INDEX, TOKEN_COUNTS, TOKENIZER, ShardIndex, Split
from moe_core.data.shards.shard_merge import Drawn, Merged, merge, mix_tests
from moe_core.data.shards.shard_reader import ShardFolder
from moe_core.data.shards.shard_verification import verify
from moe_core.data.shards.shard_writer import ShardWriter
from moe_core.data.splits import ALL_SPLITS
from moe_core.data.tokenizer import Tokenizer
from moe_core.errors import DataError, UsageError
from moe_core.runs.checksum import with_checksum

SPLIT_OF: tuple[Split, ...] = ("train", "train", "train", "validation", "train", "unseen")


def text_of(name: str, number: int) -> str:
    return f"{name} {number} € " + "says a word of it " * (1 + number % 9)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([text_of(name, number) for name in "ab" for number in range(20)], 300)


def write(folder: Path, tokenizer: Tokenizer, documents: int, cut_every: int = 50, shared: int = 0) -> Path:
    """Documents of two domains; the first `shared` are the same in every folder."""
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, tokenizer)
    for number in range(documents):
        text = text_of("shared" if number < shared else folder.name, number)
        ids = np.array([tokenizer.end_of_text, *tokenizer.encode(text)])
        split = SPLIT_OF[(number + len(folder.name)) % 6]
        writer.add(split, "xy"[number % 7 < 2], f"s{number // 2}", ids, len(text.encode()))
        if number % cut_every == cut_every - 1:
            writer.cut()
    writer.finish(["x", "y"], {})
    return folder


@pytest.fixture(scope="module")
def two(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("shards")
    return write(root / "a", tokenizer, 900), write(root / "b", tokenizer, 300)


def documents_of(folder: Path, split: str) -> list[tuple[str, str, bytes]]:
    """Domain, source and ids of every document."""
    read = ShardFolder(folder)
    found = []
    for shard in read.index.of_split(split):
        ids = read.ids(shard)
        for row in read.documents(shard).to_pylist():
            part = ids[row["start"] : row["start"] + row["tokens"]]
            found.append((row["domain"], row["source"], part.tobytes()))
    return found


@pytest.mark.parametrize(
    ("strategy", "weights", "asked"),
    [("proportional", [], None), ("equal", [], [0.5, 0.5]), ("weighted", [7, 3], [0.7, 0.3])],
)
def test_the_mix_is_the_one_asked_for_and_no_document_comes_twice(
    strategy: str, weights: list[float], asked: list[float] | None, two: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "mixed"
    merged = merge(two, out, strategy=strategy, weights=weights, seed=5)  # type: ignore[arg-type]
    assert not verify(out).faults
    originals = {
        label: {s: set(documents_of(folder, s)) for s in ALL_SPLITS} for label, folder in zip("ab", two, strict=True)
    }
    for split in ALL_SPLITS:
        found = documents_of(out, split)
        by_label = {
            label: {(d, s.partition("/")[2], ids) for d, s, ids in found if s.startswith(f"{label}/")} for label in "ab"
        }
        assert sum(map(len, by_label.values())) == len(found)
        assert all(by_label[label] <= originals[label][split] for label in "ab")
        sizes = [sum(len(ids) for *_, ids in by_label[label]) for label in "ab"]
        available = [sum(len(ids) for *_, ids in originals[label][split]) for label in "ab"]
        if asked is None:
            assert sizes == available
        else:
            longest = max(len(ids) for *_, ids in found)
            whole = min(have / share for have, share in zip(available, asked, strict=True))
            assert [abs(size - share * whole) <= longest for size, share in zip(sizes, asked, strict=True)] == [
                True
            ] * 2
            for prefix in (found[: len(found) // 3], found[: len(found) // 2]):  # any long stretch has the mix
                of_a = sum(len(ids) for _, source, ids in prefix if source.startswith("a/"))
                assert of_a / sum(len(ids) for *_, ids in prefix) == pytest.approx(asked[0], abs=0.05)
    assert all(test.p > 1e-3 for test in mix_tests(merged))
    assert len([test for test in mix_tests(merged) if test.of == "folders"]) == 3


def test_a_seed_decides_the_draw_to_the_byte(two: tuple[Path, Path], tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        merge(two, tmp_path / name, strategy="equal", seed=seed)
    files = {name: {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "again", "other")}
    assert files["one"] == files["again"]
    assert files["one"]["train-00000.bin"] != files["other"]["train-00000.bin"]


def test_draws_over_many_seeds_are_fair(two: tuple[Path, Path], tmp_path: Path) -> None:
    """p of the domains' test is below .1 about every tenth time: the test can fail, and the draw does not make it."""
    small = 0
    for seed in range(12):
        merged = merge(two, tmp_path / str(seed), strategy="equal", seed=seed)
        (test,) = (one for one in mix_tests(merged) if one.of == "domains of a" and one.split == "train")
        small += test.p < 0.1
    assert small <= 4


def test_the_chi_squared_test_sees_a_wrong_mix() -> None:
    def drawn(label: str, tokens: int, of_x: int) -> Drawn:
        whole = {"x": Contents(500, 5000, 20_000), "y": Contents(500, 5000, 20_000)}
        part = {"x": Contents(of_x, tokens // 2, 1), "y": Contents(200 - of_x, tokens // 2, 1)}
        return Drawn(label, "train", 0.5, whole, part)

    fair = mix_tests(Merged([drawn("a", 2000, 100), drawn("b", 2000, 104)], 0))
    assert all(test.p > 0.5 for test in fair)
    folders, of_a, _ = mix_tests(Merged([drawn("a", 3000, 140), drawn("b", 2000, 100)], 0))
    assert folders.statistic == pytest.approx(400 * ((0.6 - 0.5) ** 2 / 0.5 * 2))
    assert of_a.statistic == pytest.approx((40**2 / 100 * 2) / 0.8)
    assert max(folders.p, of_a.p) < 1e-3


def test_what_one_folder_holds_out_and_another_trains_on_is_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", tokenizer, 60, shared=30), write(tmp_path / "bb", tokenizer, 60, shared=30)
    out = tmp_path / "mixed"
    merged = merge([a, b], out)
    train = {ids for *_, ids in documents_of(out, "train")}
    validation = {ids for *_, ids in documents_of(out, "validation")}
    assert merged.left_out > 5
    assert not train & validation
    assert not (train | validation) & {ids for *_, ids in documents_of(out, "unseen")}
    assert not verify(out).faults


def test_folders_that_do_not_fit_are_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two
    other = write(tmp_path / "other", Tokenizer.train(["other words"], 270), 30)
    with pytest.raises(DataError, match=r"another tokenizer.*--tokenizer PATH"):
        merge([a, other], tmp_path / "x")
    for weights in ([1.0], [1.0, -1.0], [0.5, 0.2, 0.3]):
        with pytest.raises(UsageError, match="one above 0 for each of the 2 folders"):
            merge(two, tmp_path / "x", strategy="weighted", weights=weights)
    with pytest.raises(UsageError, match="goes with the strategy weighted"):
        merge(two, tmp_path / "x", strategy="equal", weights=[1, 2])
    with pytest.raises(UsageError, match="at least two folders of shards, none of them twice"):
        merge([a, a], tmp_path / "x")
    with pytest.raises(UsageError, match="has something in it"):
        merge(two, b)
    assert not (tmp_path / "x").exists()


def test_a_file_says_the_mix_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "mix.hocon"
    file.write_text('folders = [a, b]\nout = "mixed"\nstrategy = weighted\nweights = [0.7, 0.3]\nseed = 4\n')
    plan = merge_plan(file)
    assert (plan.folders, plan.out) == ([tmp_path / "a", tmp_path / "b"], tmp_path / "mixed")
    assert (plan.strategy, plan.weights, plan.seed) == ("weighted", [0.7, 0.3], 4)
    plan = merge_plan(file, out=Path("o"), strategy="equal", seed=0)
    assert (plan.out, plan.strategy, plan.weights, plan.seed) == (Path("o"), "equal", [], 0)
    assert merge_plan(None, folders=[Path("a")], out=Path("o"), weights=[1, 2]).strategy == "weighted"
    for content, message in (("weights = [0]", "weights.0: input should be greater than 0"), ("mix = 1", "mix: ")):
        file.write_text(content)
        with pytest.raises(UsageError, match=message):
            merge_plan(file)
    with pytest.raises(UsageError, match="needs folders and --out"):
        merge_plan(None, folders=[Path("a")])


def edit_index(folder: Path, change: Callable[[dict], None], checksum: bool = True) -> None:  # type: ignore[type-arg]
    tree = json.loads((folder / INDEX).read_bytes())
    tree.pop("sha256")
    change(tree)
    content = with_checksum(tree) if checksum else json.dumps(tree).encode()
    (folder / INDEX).write_bytes(content)


def edit_shard(folder: Path, number: int, **changes: object) -> None:
    edit_index(folder, lambda tree: tree["shards"][number].update(changes))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "train-00001.bin").read_bytes())
    content[len(content) // 2] ^= 4
    (folder / "train-00001.bin").write_bytes(content)


def truncate(folder: Path) -> None:
    content = (folder / "train-00001.bin").read_bytes()
    (folder / "train-00001.bin").write_bytes(content[:-2])


def duplicate(folder: Path) -> None:
    shutil.copy(folder / "train-00001.bin", folder / "train-00009.bin")


def duplicate_in_index(folder: Path) -> None:
    edit_index(folder, lambda tree: tree["shards"].append(tree["shards"][0]))


def replace_tokenizer(folder: Path) -> None:
    Tokenizer.train(["quite other text " * 9], 300).save(folder / TOKENIZER)


def replace_tokenizer_and_its_checksum(folder: Path) -> None:
    """As many ids and the same end-of-text: only the bytes of its tokens tell."""
    tree = json.loads((folder / TOKENIZER).read_bytes())
    vocabulary = tree["model"]["vocab"]
    joined = sorted((name for name in vocabulary if len(name) > 1 and name[0] != "<"), key=vocabulary.__getitem__)
    vocabulary.update(zip(joined, [vocabulary[name] for name in reversed(joined)], strict=True))
    (folder / TOKENIZER).write_text(json.dumps(tree))
    digest = hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()
    edit_index(folder, lambda tree: tree.update(tokenizer_sha256=digest))


def miscount_documents(folder: Path) -> None:
    edit_shard(folder, 0, documents=7)


def miscount_tokens(folder: Path) -> None:
    counts = np.frombuffer((folder / TOKEN_COUNTS).read_bytes(), dtype="<i8").copy()
    counts[65] += 1
    (folder / TOKEN_COUNTS).write_bytes(counts.tobytes())
    digest = hashlib.sha256(counts.tobytes()).hexdigest()
    edit_index(folder, lambda tree: tree.update(token_counts_sha256=digest))


def change_table(folder: Path) -> None:
    content = bytearray((folder / "train-00000.parquet").read_bytes())
    content[40] ^= 1
    (folder / "train-00000.parquet").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "file", "said"),
    [
        (flip_a_bit, "train-00001.bin", "was changed: its SHA-256"),
        (lambda folder: (folder / "train-00001.bin").unlink(), "train-00001.bin", "is missing"),
        (lambda folder: (folder / "train-00001.parquet").unlink(), "train-00001.parquet", "is missing"),
        (truncate, "train-00001.bin", "is truncated"),
        (duplicate, "train-00009.bin", "is a duplicate of train-00001.bin, which the index does not name"),
        (duplicate_in_index, "train-00000.bin", "is in the index 2 times"),
        (replace_tokenizer, TOKENIZER, "was changed"),
        (replace_tokenizer_and_its_checksum, "train-00000.parquet", "a tokenizer that did not make them"),
        (miscount_documents, "train-00000.parquet", "is not as the index says"),
        (miscount_tokens, TOKEN_COUNTS, "occurrences of id 65 in training; there are"),
        (change_table, "train-00000.parquet", "was changed"),
        (lambda folder: (folder / TOKEN_COUNTS).unlink(), TOKEN_COUNTS, "is missing"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_damage_is_found_and_named(
    damage: Callable[[Path], None],
    file: str,
    said: str,
    two: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(two[1], folder)
    assert main(["data", "verify", str(folder)]) == 0
    assert "is sound" in capsys.readouterr().out
    damage(folder)
    assert main(["data", "verify", str(folder), "--json"]) == 1
    figures = json.loads(capsys.readouterr().out)
    assert not figures["sound"]
    assert file in {fault["file"] for fault in figures["faults"]}
    assert [fault["fault"] for fault in figures["faults"] if fault["file"] == file and said in fault["fault"]]


@pytest.mark.parametrize(
    ("change", "checksum", "said"),
    [
        (lambda tree: tree.update(version=2), True, "not an index of shards of this version"),
        (lambda tree: tree.update(schema="other"), True, "not an index of shards of this version"),
        (lambda tree: tree["shards"][0].update(tokens=5), False, "index.json"),
    ],
)
def test_an_index_of_another_schema_or_a_changed_one_is_named(
    change: Callable[[dict], None],  # type: ignore[type-arg]
    checksum: bool,
    said: str,
    two: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(two[1], folder)
    edit_index(folder, change, checksum)
    assert main(["data", "verify", str(folder)]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_counts_that_contradict_sound_bytes_are_found(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Whoever wrote the shards was wrong: the checksums fit, and what they say does not."""
    read = ShardFolder(two[1])
    shard = read.index.of_split("train")[0]
    table = read.documents(shard)

    def faults_with(column: str, change: Callable[[np.ndarray], None]) -> str:  # type: ignore[type-arg]
        folder = tmp_path / column
        shutil.copytree(two[1], folder)
        values = table[column].to_pylist()
        changed = np.array(values, dtype=object)
        change(changed)
        import pyarrow as pa
        import pyarrow.parquet as pq

        kind = table.schema.field(column).type
        wrong = table.set_column(table.column_names.index(column), column, pa.array(changed.tolist(), kind))
        pq.write_table(wrong, folder / shard.documents_file)
        digest = hashlib.sha256((folder / shard.documents_file).read_bytes()).hexdigest()
        edit_shard(folder, read.index.shards.index(shard), documents_sha256=digest)
        (fault,) = verify(folder).faults
        assert fault.file == shard.documents_file or fault.file == shard.file
        return fault.fault

    def add_one(values: np.ndarray) -> None:  # type: ignore[type-arg]
        values[3] += 1

    assert "row 4 says" in faults_with("bytes", add_one)
    assert "does not cut the shard's tokens" in faults_with("tokens", add_one)
    assert "does not cut" in faults_with("start", add_one)
    assert "names the domain 'z'" in faults_with("domain", lambda values: values.__setitem__(0, "z"))


def test_info_counts_by_split_and_domain(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", str(two[0]), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    contents = contents_of(ShardFolder(two[0]))
    assert sum(one.documents for one in contents.values()) == 900
    for row in figures["contents"]:
        found = [document for document in documents_of(two[0], row["split"]) if document[0] == row["domain"]]
        assert row["documents"] == len(found)
        assert row["tokens"] == sum(len(ids) // 2 for *_, ids in found)
    texts = sum(len(text_of("a", number).encode()) for number in range(900))
    assert sum(row["bytes"] for row in figures["contents"]) == texts
    assert figures["tokenizer"]["vocab_size"] == ShardFolder(two[0]).tokenizer.vocab_size
    assert main(["data", "info", str(two[0])]) == 0
    assert "shards of uint16" in capsys.readouterr().out
    assert main(["data", "info", "missing"]) == 1
    assert "index.json" in capsys.readouterr().err


def test_the_command_merges_and_says_the_mix(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mixed"
    assert main(["data", "merge", *map(str, two), "--out", str(out), "--weights", "7", "3", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["strategy"] == "weighted"
    assert {one["label"]: round(one["asked"], 2) for one in figures["mix"]} == {"a": 0.7, "b": 0.3}
    assert {test["of"] for test in figures["tests"]} == {"folders", "domains of a", "domains of b"}
    assert main(["data", "merge", *map(str, two), "--out", str(out)]) == 2
    assert "has something in it" in capsys.readouterr().err
    assert ShardIndex.read(out).notes == {"merged": "a 0.7, b 0.3", "strategy": "weighted", "seed": 0}
