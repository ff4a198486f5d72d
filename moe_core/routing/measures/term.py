"""One term of the glossary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """One term. `formula`, `chance` and `source` are "" where there is none."""

    name: str
    one_line: str
    """One sentence in plain words."""
    formula: str = ""
    """With T tokens, E experts, K slots per token, c_e assignments of expert e, f_e = c_e / sum c."""
    chance: str = ""
    """The value that chance, evenness or a perfect score gives: what to hold a figure against."""
    source: str = ""
    """arXiv id and equation, or the standard work."""

    @property
    def help(self) -> str:
        """One line for a tooltip: the sentence, and the value to compare with."""
        return f"{self.one_line} Compare with: {self.chance}." if self.chance else self.one_line
