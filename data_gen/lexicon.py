"""Word lists drawn by Zipf's law, with English inflection and a memory of the words a document has already used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_gen.scene import Scene

TABLE_SIZE = 4096
REUSE = 0.35  # share of draws that repeat a word of this document: the burstiness of real text (Simon 1955)

NOUN_FORMS = ("", "s")
VERB_FORMS = ("", "s", "ed", "en", "ing")
_VOWELS = "aeiou"


def word_list(text: str) -> tuple[str, ...]:
    """The words of a text, split at white space: a list that stays readable in the source."""
    return tuple(text.split())


def zipf_table(size: int, *, exponent: float = 0.9, offset: float = 2.0) -> list[int]:
    """Indices 0..size-1 repeated in proportion to 1 / (rank + offset)**exponent; a uniform draw from it is Zipfian.

    Every index occurs at least once, so the table may be a little longer than TABLE_SIZE.
    """
    weights = [1.0 / (rank + offset) ** exponent for rank in range(size)]
    scale = TABLE_SIZE / sum(weights)
    ends = list(accumulate(weight * scale for weight in weights))
    table: list[int] = []
    for index, end in enumerate(ends):
        table.extend([index] * max(1, round(end) - len(table)))
    return table


def _doubles(word: str) -> bool:
    """Whether the last consonant doubles before -ed and -ing (one-syllable consonant-vowel-consonant words)."""
    vowels = sum(letter in _VOWELS for letter in word)
    return (
        len(word) > 2
        and vowels == 1
        and word[-2] in _VOWELS
        and word[-1] not in _VOWELS + "wxy"
        and word[-3] not in _VOWELS
    )


def plural(noun: str) -> str:
    """The regular plural: loan -> loans, duty -> duties, box -> boxes."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in _VOWELS:
        return noun[:-1] + "ies"
    return noun + "s"


def past(verb: str) -> str:
    """The regular past: rise -> rised is not handled here; carry -> carried, stop -> stopped, move -> moved."""
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in _VOWELS:
        return verb[:-1] + "ied"
    return verb + (verb[-1] if _doubles(verb) else "") + "ed"


def participle(verb: str) -> str:
    """The -ing form: make -> making, see -> seeing, stop -> stopping, lie -> lying."""
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return verb[:-1] + "ing"
    return verb + (verb[-1] if _doubles(verb) else "") + "ing"


def _on_head(inflect: Callable[[str], str], phrase: str, *, first: bool) -> str:
    """Inflect the first word of a phrasal verb ("carry out") or the last word of a compound noun ("loan book")."""
    if first:
        head, _, rest = phrase.partition(" ")
        return f"{inflect(head)} {rest}".rstrip()
    rest, _, head = phrase.rpartition(" ")
    return f"{rest} {inflect(head)}".lstrip()


def noun_forms(entry: str) -> tuple[str, str]:
    """("loan", "loans"); an irregular plural is written "datum/data"."""
    singular, _, irregular = entry.partition("/")
    return singular, irregular or _on_head(plural, singular, first=False)


def verb_forms(entry: str) -> tuple[str, str, str, str, str]:
    """Base, third person, past, participle, -ing; irregular ones are written "hold/held" or "get/got/got/getting"."""
    base, *irregular = entry.split("/")
    past_form = irregular[0] if irregular else _on_head(past, base, first=True)
    perfect = irregular[1] if len(irregular) > 1 else past_form
    rest = base.partition(" ")[2]
    if irregular and rest:  # "give up/gave/given": the particle is written once
        past_form, perfect = f"{past_form} {rest}", f"{perfect} {rest}"
    ending = irregular[2] if len(irregular) > 2 else _on_head(participle, base, first=True)
    return base, _on_head(plural, base, first=True), past_form, perfect, ending


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
