"""The facts of one document: who, where, when and how much. Templates read them, so a text stays consistent.

Figures obey arithmetic: profit = revenue - costs, interest = principal * rate * years, dates only move forward.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TypeVar

from data_gen.code_rules import TOPICS
from data_gen.inflection import plural, word_list
from data_gen.names import FIRMS, GIVEN_FEMALE, GIVEN_MALE, SURNAMES, TOWNS

T = TypeVar("T")

MONTHS = word_list("January February March April May June July August September October November December")
WEEKDAYS = word_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
NUMBER_WORDS = word_list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
ORDINALS = word_list("zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
CURRENCIES = ("${}", "${}", "${}", "EUR {}", "£{}", "€{}", "CHF {}", "USD {}")
FIRM_KINDS = word_list(
    "Holdings Group Industries Foods Energy Logistics Systems Capital Partners Textiles Motors Media Health "
    "Metals Paper Shipping Chemicals Software Retail Insurance Pharma Mining Water Rail Stores Brewing Optics "
    "Seeds Cement Glass"
)
FIRM_FORMS = ("Inc.", "Ltd.", "plc", "AG", "LLC", "Corp.", "S.A.", "Co.", "GmbH")
REGIONS = (
    "the north", "the south", "the coast", "the highlands", "the capital", "the delta", "the islands",
    "the border region", "the eastern provinces", "the western plains", "the inner city", "the lake district",
    "the valley", "the old quarter",
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """A character: the pronouns follow the given name."""

    given: str
    surname: str
    is_female: bool

    @property
    def full(self) -> str:
        return f"{self.given} {self.surname}"


@dataclass(frozen=True)
class Firm:
    """A company with its registered name and the short name used after the first mention."""

    short: str
    full: str


class Scene:
    """State of one document. `random` is the document's own generator; every draw goes through it."""

    def __init__(self, domain: str, seed: int, overlap: float) -> None:
        """`overlap` in 0..1 is the chance that a name comes from the pool all domains share."""
        self.rng = random.Random(seed)
        self.random = self.rng.random
        self.domain = domain
        self.overlap = overlap
        self.used_words: dict[str, list[int]] = {}
        self._used_sentences: dict[str, set[int]] = {}
        self.mentioned: set[str] = set()
        self.firm, self.partner, self.rival = self.new_firm(), self.new_firm(), self.new_firm()
        self.hero, self.friend = self.new_person(), self.new_person()
        self.town, self.far_town = self.pick(self.pool(TOWNS)), self.pick(self.pool(TOWNS))
        self.today = date(2003, 1, 1) + timedelta(days=int(self.random() * 8000))
        self.year = self.today.year
        self.date_style = int(self.random() * 3)
        self.percent_sign = "%" if self.random() < 0.5 else " percent"
        self.currency = self.pick(CURRENCIES)
        self.in_millions = self.random() < 0.5
        self.topics = self.rng.sample(TOPICS, 5) if domain == "code" else []
        self._set_figures()

    def _set_figures(self) -> None:
        """Revenue, costs and a loan, all whole units so that sums are exact."""
        scale = 10 ** (1 + int(self.random() * 3))
        self.revenue_before = (100 + int(self.random() * 900)) * scale
        self.growth = round(self.random() * 34 - 12, 1) or 0.4  # percent
        self.revenue = round(self.revenue_before * (1 + self.growth / 100))
        self.costs = round(self.revenue * (0.6 + 0.35 * self.random()))
        self.principal = (5 + int(self.random() * 195)) * 5000
        self.rate = 2 + int(self.random() * 33) * 0.25  # percent per year
        self.years = 2 + int(self.random() * 9)

    @property
    def interest(self) -> float:
        """Simple interest of the loan for one year, in units of currency."""
        return self.principal * self.rate / 100

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely."""
        return options[int(self.random() * len(options))]

    def between(self, low: int, high: int) -> int:
        """A whole number in low..high, both included."""
        return low + int(self.random() * (high - low + 1))

    def fresh(self, rule: str, index: int, size: int) -> int:
        """The first production at or after `index` that this document has not used; forgets when all are used."""
        used = self._used_sentences.setdefault(rule, set())
        if len(used) >= size:
            used.clear()
        while index in used:
            index = (index + 1) % size
        used.add(index)
        return index

    def pool(self, pools: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
        """The name pool of this domain, or with probability `overlap` the pool all domains share."""
        return pools["shared" if self.random() < self.overlap else self.domain]

    def new_person(self) -> Person:
        is_female = self.random() < 0.5
        given = self.pick(GIVEN_FEMALE if is_female else GIVEN_MALE)
        return Person(given, self.pick(self.pool(SURNAMES)), is_female)

    def new_firm(self) -> Firm:
        short = self.pick(self.pool(FIRMS if self.random() < 0.6 else SURNAMES))
        kind = self.pick(FIRM_KINDS)
        full = f"{short} {kind} {self.pick(FIRM_FORMS)}" if self.random() < 0.7 else f"{short} {self.pick(FIRM_FORMS)}"
        return Firm(short if self.random() < 0.6 else f"{short} {kind}", full)

    def money(self, amount: float, *, cents: bool = False) -> str:
        """An amount in the document's currency, e.g. "$1,250.00" or "EUR 3,400"."""
        return self.currency.format(f"{amount:,.2f}" if cents else f"{amount:,.0f}")

    def large(self, amount: float) -> str:
        """A company figure kept in thousands: "$4.2 million" or "$4,200 thousand"; the style is the document's."""
        if self.in_millions:
            return self.currency.format(f"{amount / 1000:,.1f} million")
        return self.currency.format(f"{amount:,.0f} thousand")

    def percent(self, value: float) -> str:
        return f"{value:.1f}{self.percent_sign}"

    def date_text(self, day: date) -> str:
        if self.date_style == 0:
            return f"{day.day} {MONTHS[day.month - 1]} {day.year}"
        if self.date_style == 1:
            return f"{MONTHS[day.month - 1]} {day.day}, {day.year}"
        return day.isoformat()

    def next_date(self) -> date:
        """Move the document's clock forward by 2 to 60 days and return the day."""
        self.today += timedelta(days=self.between(2, 60))
        return self.today

    def mention(self, key: str, first: str, later: Sequence[str]) -> str:
        """The full form at first mention, one of the short forms afterwards."""
        if key in self.mentioned:
            return self.pick(later)
        self.mentioned.add(key)
        return first


def _pronoun(female: str, male: str, who: str) -> Callable[[Scene], str]:
    return lambda scene: female if getattr(scene, who).is_female else male


def _person(who: str, title: bool = False) -> Callable[[Scene], str]:
    def write(scene: Scene) -> str:
        person: Person = getattr(scene, who)
        if title:
            return f"{'Ms' if person.is_female else 'Mr'} {person.surname}"
        story = scene.domain == "general"  # stories call people by their given name, reports by their surname
        return scene.mention(who, person.full, (person.given if story else person.surname,))

    return write


def _firm(who: str) -> Callable[[Scene], str]:
    def write(scene: Scene) -> str:
        firm: Firm = getattr(scene, who)
        return scene.mention(
            who, firm.full, (firm.short, firm.short, "the company") if who == "firm" else (firm.short,)
        )

    return write


def _number_word(scene: Scene) -> str:
    return NUMBER_WORDS[scene.between(2, 14)]


SLOTS: dict[str, Callable[[Scene], str]] = {
    "topic": lambda scene: scene.pick(scene.topics),
    "topic.s": lambda scene: plural(scene.pick(scene.topics)),
    "hero": _person("hero"),
    "friend": _person("friend"),
    "hero_title": _person("hero", title=True),
    "friend_title": _person("friend", title=True),
    "hero_full": lambda scene: scene.hero.full,
    "friend_full": lambda scene: scene.friend.full,
    "he": _pronoun("she", "he", "hero"),
    "him": _pronoun("her", "him", "hero"),
    "his": _pronoun("her", "his", "hero"),
    "himself": _pronoun("herself", "himself", "hero"),
    "friend_he": _pronoun("she", "he", "friend"),
    "friend_his": _pronoun("her", "his", "friend"),
    "someone": lambda scene: scene.new_person().full,
    "surname": lambda scene: scene.new_person().surname,
    "firm": _firm("firm"),
    "firm_full": lambda scene: scene.firm.full,
    "partner": _firm("partner"),
    "partner_full": lambda scene: scene.partner.full,
    "rival": _firm("rival"),
    "some_firm": lambda scene: scene.new_firm().short,
    "town": lambda scene: scene.town,
    "far_town": lambda scene: scene.far_town,
    "some_town": lambda scene: scene.pick(scene.pool(TOWNS)),
    "region": lambda scene: scene.pick(REGIONS),
    "date": lambda scene: scene.date_text(scene.next_date()),
    "month": lambda scene: MONTHS[scene.today.month - 1],
    "weekday": lambda scene: scene.pick(WEEKDAYS),
    "year": lambda scene: str(scene.year),
    "last_year": lambda scene: str(scene.year - 1),
    "next_year": lambda scene: str(scene.year + 1),
    "old_year": lambda scene: str(scene.year - scene.between(3, 90)),
    "quarter": lambda scene: scene.pick(ORDINALS[1:5]),
    "ordinal": lambda scene: ORDINALS[scene.between(2, 12)],
    "few": _number_word,
    "count": lambda scene: str(scene.between(11, 480)),
    "days": lambda scene: str(scene.pick((5, 7, 10, 14, 15, 20, 21, 28, 30, 45, 60, 90, 120, 180))),
    "money": lambda scene: scene.money(scene.between(2, 990) * 10 ** scene.between(1, 4)),
    "price": lambda scene: scene.money(scene.between(101, 99900) / 100, cents=True),
    "percent": lambda scene: scene.percent(scene.between(2, 390) / 10),
    "large": lambda scene: scene.large(scene.between(200, 90000)),
    "points": lambda scene: str(scene.between(2, 85)),
    "revenue": lambda scene: scene.large(scene.revenue),
    "revenue_before": lambda scene: scene.large(scene.revenue_before),
    "growth": lambda scene: scene.percent(abs(scene.growth)),
    "rose": lambda scene: "rose" if scene.growth > 0 else "fell",
    "growing": lambda scene: "growth" if scene.growth > 0 else "decline",
    "costs": lambda scene: scene.large(scene.costs),
    "profit": lambda scene: scene.large(scene.revenue - scene.costs),
    "margin": lambda scene: scene.percent(100 * (scene.revenue - scene.costs) / scene.revenue),
    "principal": lambda scene: scene.money(scene.principal),
    "rate": lambda scene: f"{scene.rate:.2f}{scene.percent_sign}",
    "interest": lambda scene: scene.money(scene.interest, cents=True),
    "years": lambda scene: NUMBER_WORDS[scene.years],
    "total_interest": lambda scene: scene.money(scene.interest * scene.years, cents=True),
    "total_due": lambda scene: scene.money(scene.principal + scene.interest * scene.years, cents=True),
}
