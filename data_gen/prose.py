"""Writing prose from the three prose grammars: sentences, paragraphs, and the mixing of domains by the overlap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from data_gen.code_rules import CODE_RULES
from data_gen.finance_rules import FINANCE_RULES
from data_gen.general_rules import GENERAL_RULES
from data_gen.grammar import Grammar, capitalise
from data_gen.legal_rules import LEGAL_RULES
from data_gen.row import PROSE_DOMAINS
from data_gen.scene import SLOTS, Scene

RULES = {"finance": FINANCE_RULES, "legal": LEGAL_RULES, "general": GENERAL_RULES, "code": CODE_RULES}
MIXED_AT_FULL_OVERLAP = 0.8  # share of sentences written by a grammar drawn from all prose domains when overlap is 1


@lru_cache(maxsize=8)
def prose_grammar(domain: str, held_out: bool) -> Grammar:
    """The compiled grammar of a prose domain; compiled once per process and side of the hold-out."""
    return Grammar(RULES[domain], SLOTS, held_out=held_out, prefix=domain)


@dataclass(frozen=True)
class Writer:
    """Writes sentences of one domain on one side of the hold-out; `overlap` mixes in the other prose domains."""

    domain: str
    held_out: bool
    overlap: float

    def sentence(self, scene: Scene, rule: str) -> str:
        """One sentence by `rule`, or at the overlap's rate one by any rule of any prose domain."""
        if scene.random() < self.overlap * MIXED_AT_FULL_OVERLAP:
            return self.mixed(scene)
        return capitalise(prose_grammar(self.domain, self.held_out).rules[rule](scene))

    def mixed(self, scene: Scene) -> str:
        """One sentence of a prose domain drawn evenly: at full overlap the domains share this one distribution."""
        grammar = prose_grammar(scene.pick(PROSE_DOMAINS), self.held_out)
        return capitalise(grammar.rules["any"](scene))

    def phrase(self, scene: Scene, rule: str) -> str:
        """An expansion of the domain's own rule as it stands (headings, labels): never mixed."""
        return prose_grammar(self.domain, self.held_out).rules[rule](scene)

    def paragraph(self, scene: Scene, rule: str, sentences: int) -> str:
        """`sentences` sentences by one rule, in one line; no more than the rule has productions."""
        most = len(prose_grammar(self.domain, self.held_out).rules[rule].options)
        sentences = min(sentences, most)
        return " ".join([self.sentence(scene, rule) for _ in range(sentences)])

    def fill(self, blocks: list[str], scene: Scene, rules: list[str], length: int) -> None:
        """Append paragraphs by `rules` in turn until the blocks hold about `length` characters."""
        turn = 0
        while sum(map(len, blocks)) < length - 200:
            blocks.append(self.paragraph(scene, rules[turn % len(rules)], scene.between(2, 5)))
            turn += 1
