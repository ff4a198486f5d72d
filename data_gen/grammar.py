r"""A small template language: productions with agreement, Zipf lexicons, held-out templates and entity slots.

A grammar is text:

    % adjective: steady, weak, broad           words without inflection, the commonest first
    %n asset: loan, bond, equity/equities      nouns: {asset} and {asset.s}
    %v move: rise/rose/risen, climb            verbs: {move}, {move.s}, {move.ed}, {move.en}, {move.ing}
    = subject                                  a phrase rule; each line below is one production
    the {adjective} {asset}
    == outlook                                 a sentence rule: repeats a production only when all are used
    The <{asset} is|{asset.s} are> [now|still] {adjective}.
    ! We [hold|keep] {asset.s}.                "!" holds it out: the unseen split uses only such templates

`{name}` expands a rule, a lexicon form or a slot of the scene (entity state); `[a|b|]` chooses one alternative;
`<singular|plural>` agrees: one number is drawn for the whole production. A line that starts with a space continues
the line above; `#` starts a comment line. Everything is compiled once, so an expansion is a walk over tuples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from data_gen.lexicon import Lexicon
from data_gen.scene import Scene

_AGREEMENT = re.compile(r"<([^<>|]*)\|([^<>|]*)>")
_TOKEN = re.compile(r"\{([\w.]+)\}|(\[)|(\|)|(\])|([^{}\[\]|]+)")
# "a" before a vowel sound. Letters are judged by spelling with the usual exceptions (a one-off, a unit, an hour).
_ARTICLE = re.compile(
    r"\b(a) (?=[aio](?!ne\b|ne-|nce\b)|e(?!u|we)|u(?!n[ai][^mn]|s[aeiu]|ti|r[aio])|hour|honest|heir|hono|8|11\b|18\b)",
    re.IGNORECASE,
)


class Rule:
    """A named choice among productions; calling it writes one."""

    __slots__ = ("name", "options", "sentence")

    def __init__(self, name: str, *, sentence: bool) -> None:
        self.name = name
        self.sentence = sentence
        self.options: list[tuple[str | Callable[[Scene], str], ...]] = []

    def __call__(self, scene: Scene) -> str:
        options = self.options
        index = int(scene.random() * len(options))
        if self.sentence:
            index = scene.fresh(self.name, index, len(options))
        return "".join([part if type(part) is str else part(scene) for part in options[index]])  # type: ignore[operator]


def split_numbers(template: str) -> list[str]:
    """The singular and the plural version of a template with <singular|plural>, or the template itself."""
    if "<" not in template:
        return [template]
    return [_AGREEMENT.sub(rf"\{group}", template) for group in (1, 2)]


class Grammar:
    """Compiled rules of one domain and one side of the hold-out."""

    def __init__(self, text: str, slots: Mapping[str, Callable[[Scene], str]], *, held_out: bool, prefix: str) -> None:
        """`held_out` selects the templates marked "!"; a rule without marks is shared. `prefix` keeps the lexicon and
        sentence memories of several grammars apart within one document."""
        self.rules: dict[str, Rule] = {}
        self.lexicons: dict[str, Lexicon] = {}
        self._slots = slots
        templates = self._read(text, prefix)
        for name, lines in templates.items():
            marked = any(line.startswith("!") for line in lines)
            for line in lines:
                if not marked or line.startswith("!") is held_out:
                    for version in split_numbers(line.removeprefix("!").strip()):
                        self.rules[name].options.append(self._compile(version, name))
            if not self.rules[name].options:
                raise ValueError(f"rule {name!r} has no template for held_out={held_out}")

    def _read(self, text: str, prefix: str) -> dict[str, list[str]]:
        """The lines of each rule; builds the lexicons and empty rules, so that references may look ahead."""
        templates: dict[str, list[str]] = {}
        lines: list[str] = []
        for raw in re.sub(r"\n +", " ", text).splitlines():
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            if line.startswith("%"):
                head, _, body = line.partition(":")
                kind, name = head[1:].split(" ", 1)
                entries = [entry.strip() for entry in body.split(",")]
                self.lexicons[name.strip()] = Lexicon(f"{prefix}.{name.strip()}", kind, entries)
            elif line.startswith("="):
                name = line.strip("= ")
                lines = templates[name] = []
                self.rules[name] = Rule(f"{prefix}.{name}", sentence=line.startswith("=="))
            else:
                lines.append(line)
        if shared := self.rules.keys() & self.lexicons.keys():
            raise ValueError(f"{sorted(shared)} name both a rule and a lexicon; rename one")
        return templates

    def _reference(self, name: str, where: str) -> Callable[[Scene], str]:
        if name in self.rules:
            return self.rules[name]
        lexicon, _, suffix = name.partition(".")
        if lexicon in self.lexicons:
            return self.lexicons[lexicon].form(suffix)
        if name in self._slots:
            return self._slots[name]
        raise ValueError(f"rule {where!r} refers to {{{name}}}, which is neither a rule, a lexicon nor a slot")

    def _compile(self, template: str, where: str) -> tuple[str | Callable[[Scene], str], ...]:
        """Turn one template into literal strings and callables; inline choices become anonymous rules."""
        stack: list[list[list[str | Callable[[Scene], str]]]] = [[[]]]
        for reference, opens, bar, closes, literal in _TOKEN.findall(template):
            if reference:
                stack[-1][-1].append(self._reference(reference, where))
            elif opens:
                stack.append([[]])
            elif bar:
                stack[-1].append([])
            elif closes:
                choice = Rule("", sentence=False)
                choice.options = [tuple(option) for option in stack.pop()]
                stack[-1][-1].append(choice)
            else:
                stack[-1][-1].append(literal)
        if len(stack) != 1 or len(stack[0]) != 1:
            raise ValueError(f"unbalanced brackets in rule {where!r}: {template}")
        return tuple(stack[0][0])


def polish(text: str) -> str:
    """Mend what a context-free choice cannot know: "a" before a vowel, doubled spaces, space before punctuation."""
    text = _ARTICLE.sub(r"\1n ", text)
    text = re.sub(r" {2,}", " ", text)
    return re.sub(r" (?=[,.;:?!](?:\s|$))", "", text)


def capitalise(sentence: str) -> str:
    """The sentence with its first letter in upper case, also after a quotation mark; nothing else changes."""
    start = 1 if sentence.startswith('"') else 0
    return sentence[:start] + sentence[start : start + 1].upper() + sentence[start + 1 :]
