"""Invented names, built from syllables once at import with a fixed seed: surnames, towns and firms never repeat a pool.

Each domain has a pool of its own and all share one; the overlap parameter says how often a name comes from the shared
pool, so that names alone tell the domains apart less and less.
"""

from __future__ import annotations

import random

from data_gen.inflection import word_list

GIVEN_FEMALE = word_list(
    "Ada Agnes Alma Amara Anita Beatrix Bella Carmen Celia Clara Cora Dalia Daphne Delia Edith Elena Elsa Emma "
    "Esther Eva Fatima Flora Frieda Gemma Gloria Greta Hana Hazel Helen Ida Ines Irene Iris Jana Joan Judith "
    "Julia Karin Kira Laila Lena Lily Lucia Mabel Maya Mercy Mina Miriam Nadia Nell Nina Nora Olive Paula Petra "
    "Priya Rhea Rosa Ruth Salma Selma Sofia Stella Tamar Tessa Thea Uma Vera Viola Wanda Yara Zelda Zoe"
)
GIVEN_MALE = word_list(
    "Adam Albert Alec Amos Anton Arjun Basil Ben Bruno Caleb Carl Cecil Conrad Cyrus Daniel David Edgar Elias "
    "Emil Ernest Felix Frank Fritz Gilbert Giles Hamid Harold Hector Henry Hugo Ibrahim Isaac Ivan Jacob Jasper "
    "Joel Jonas Julian Karl Kofi Lars Leon Louis Lucas Magnus Marcus Martin Max Miles Nathan Niels Noah Omar "
    "Oscar Otto Pablo Paul Peter Quentin Rafael Ralph Reuben Samir Saul Silas Simon Stefan Theo Tobias Umar "
    "Victor Walter Xavier Yusuf"
)

_FIRST_ONSETS = word_list("B Br C Ch Cl Cr D Dr F Fl G Gl Gr H J K Kr L M N P Pr Qu R S Sh St T Th Tr V W Wh Y Z")
_LATER_ONSETS = word_list("b br d dr f g gr h k l ll m n nd p r rd rr s sh st t tt th v w z")
_NUCLEI = word_list("a a a e e e i i o o u ai ea ei ia oa oo ou")
_SURNAME_ENDS = word_list(
    "ck den der dle field ford gate ham kin ley lin ling man mann mer mont more ner ney ron ser sen son stad ster "
    "stone ton vell vik ward well wick wood worth zer"
)
_TOWN_ENDS = word_list(
    "borough bridge bury by dale fell field ford gate haven holm hurst ley mere minster mouth port shire stead "
    "ton vale view ville wick"
)
_FIRM_ENDS = word_list(
    "ara ax co dyne ex ia ica ion is ix lo luma mark nex ora ova point ris sol star tech tis trix vance via"
)

POOL_NAMES = ("finance", "legal", "code", "general", "shared")
POOL_SIZE = 240


def _stem(rng: random.Random, syllables: int) -> str:
    parts = [rng.choice(_FIRST_ONSETS) + rng.choice(_NUCLEI)]
    parts += [rng.choice(_LATER_ONSETS) + rng.choice(_NUCLEI) for _ in range(syllables - 1)]
    return "".join(parts)


def _pools(ends: tuple[str, ...], seed: int, size: int) -> dict[str, tuple[str, ...]]:
    """`size` distinct names for each pool; no name is in two pools."""
    rng = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < size * len(POOL_NAMES):
        name = _stem(rng, 1 if rng.random() < 0.7 else 2) + rng.choice(ends)
        if len(name) <= 12:
            names[name] = None
    ordered = list(names)
    return {pool: tuple(ordered[i * size : (i + 1) * size]) for i, pool in enumerate(POOL_NAMES)}


SURNAMES = _pools(_SURNAME_ENDS, 11, POOL_SIZE)
TOWNS = _pools(_TOWN_ENDS, 12, POOL_SIZE // 2)
FIRMS = _pools(_FIRM_ENDS, 13, POOL_SIZE // 2)
