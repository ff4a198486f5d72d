"""Lists of words, and English inflection: plurals, verb forms, and how an irregular word is written down."""

from __future__ import annotations

from collections.abc import Callable

_VOWELS = "aeiou"


def word_list(text: str) -> tuple[str, ...]:
    """The words of a text, split at white space: a list that stays readable in the source."""
    return tuple(text.split())


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
    """The regular past: carry -> carried, stop -> stopped, move -> moved. An irregular one is written with the word."""
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
