"""Word lists drawn by Zipf's law, with English inflection and a memory of the words a document has already used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from data_gen.inflection import noun_forms, verb_forms
from data_gen.scene import Scene

TABLE_SIZE = 4096
EXPONENT, OFFSET = 0.9, 2.0  # of Zipf's law as Mandelbrot has it
REUSE = 0.35  # share of draws that repeat a word of this document: the burstiness of real text (Simon 1955)

NOUN_FORMS = ("", "s")
VERB_FORMS = ("", "s", "ed", "en", "ing")


def zipf_table(size: int) -> list[int]:
    """Indices 0..size-1 repeated in proportion to 1 / (rank + OFFSET)**EXPONENT; a uniform draw from it is Zipfian.

    Every index occurs at least once, so the table may be a little longer than TABLE_SIZE.
    """
    weights = [1.0 / (rank + OFFSET) ** EXPONENT for rank in range(size)]
    scale = TABLE_SIZE / sum(weights)
    ends = list(accumulate(weight * scale for weight in weights))
    table: list[int] = []
    for index, end in enumerate(ends):
        table.extend([index] * max(1, round(end) - len(table)))
    return table


class Lexicon:
    """A Zipf-ranked word list; each entry holds its inflected forms."""

    def __init__(self, name: str, kind: str, entries: Sequence[str]) -> None:
        """`kind` is "n" (nouns), "v" (verbs) or "" (words that do not inflect); the first entry is the commonest."""
        self.name = name
        self.suffixes: tuple[str, ...] = {"n": NOUN_FORMS, "v": VERB_FORMS, "": ("",)}[kind]
        inflect: Callable[[str], tuple[str, ...]] = {"n": noun_forms, "v": verb_forms, "": lambda word: (word,)}[kind]
        forms = [inflect(entry) for entry in entries]
        self.words: tuple[tuple[str, ...], ...] = tuple(zip(*forms, strict=True))  # [form][entry]
        self.table = zipf_table(len(entries))

    def pick(self, scene: Scene) -> int:
        """The index of one entry: a word this document has used before, or a Zipf draw."""
        draw = scene.random()
        used = scene.used_words.get(self.name)
        if used is None:
            used = scene.used_words[self.name] = []
        if draw < REUSE and used:
            return used[int(draw / REUSE * len(used))]
        index = self.table[int(scene.random() * len(self.table))]
        if used and index == used[-1]:  # "equity and equity" is rare in prose
            index = self.table[int(scene.random() * len(self.table))]
        used.append(index)
        return index

    def form(self, suffix: str) -> Callable[[Scene], str]:
        """A slot that writes a drawn entry in the form named by `suffix` ("" is the base form)."""
        words = self.words[self.suffixes.index(suffix)]
        pick = self.pick
        return lambda scene: words[pick(scene)]
