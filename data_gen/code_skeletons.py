"""Program skeletons: the productions of the code domain, filled with names, expressions and comments by `code_tree`."""

# Each skeleton is one production; those in HELD_OUT_SKELETONS are written in the unseen split only.
SKELETONS = """
def FUNC(XS: list[T], LIMIT: int) -> list[T]:
    RESULT: list[T] = []
    for X in XS:
        NOTE
        if HOLE(bool):
            RESULT.append(X)
    return RESULT[:LIMIT]
---
def FUNC(XS: list[float], FACTOR: float = 1.0) -> float:
    if not XS:
        return HOLE(float)
    TOTAL: float = 0.0
    for X in XS:
        TOTAL += X * FACTOR
        STMTS
    return TOTAL / len(XS)
---
def FUNC(XS: list[str]) -> dict[str, int]:
    COUNTS: dict[str, int] = {}
    for X in XS:
        KEY: str = HOLE(str)
        COUNTS[KEY] = COUNTS.get(KEY, 0) + HOLE(int)
    NOTE
    return COUNTS
---
def FUNC(XS: list[str], KEY: str, DEFAULT: int = 0) -> int:
    for INDEX, X in enumerate(XS):
        if X == KEY:
            return INDEX
        STMTS
    NOTE
    return DEFAULT
---
def FUNC(XS: list[int], TARGET: int) -> int:
    LOW: int = 0
    HIGH: int = len(XS) - 1
    while LOW <= HIGH:
        MIDDLE: int = (LOW + HIGH) // 2
        NOTE
        if XS[MIDDLE] == TARGET:
            return MIDDLE
        if XS[MIDDLE] < TARGET:
            LOW = MIDDLE + 1
        else:
            HIGH = MIDDLE - 1
    return HOLE(int)
---
def FUNC(LINE: str, SEPARATOR: str = ',') -> list[str]:
    FIELDS: list[str] = [part.strip() for part in LINE.split(SEPARATOR or ',')]
    NOTE
    if HOLE(bool):
        raise ValueError(HOLE(str))
    return HOLE(list[str])
---
def FUNC(TABLE: dict[str, T], KEYS: list[str]) -> dict[str, T]:
    RESULT: dict[str, T] = {}
    for KEY in KEYS:
        if KEY not in TABLE:
            NOTE
            continue
        VALUE: T = TABLE[KEY]
        STMTS
        RESULT[KEY] = VALUE
    return RESULT
---
def FUNC(X: T, LOW: int, HIGH: int) -> T:
    if LOW > HIGH:
        raise ValueError(HOLE(str))
    STMTS
    NOTE
    return HOLE(T)
---
def FUNC(LEFT: dict[str, T], RIGHT: dict[str, T]) -> dict[str, T]:
    MERGED: dict[str, T] = dict(LEFT)
    for KEY, VALUE in RIGHT.items():
        if KEY in MERGED and HOLE(bool):
            continue
        NOTE
        MERGED[KEY] = VALUE
    return MERGED
---
def FUNC(XS: list[T], SIZE: int) -> list[T]:
    NOTE
    START: int = HOLE(int)
    STMTS
    for INDEX in range(min(SIZE, 8)):
        STMTS
    return sorted(XS)[:SIZE]
---
def FUNC(ROWS: dict[str, float], PRECISION: int = 2) -> str:
    LINES: list[str] = []
    for KEY, VALUE in ROWS.items():
        NOTE
        LINES.append(f'{KEY}: {VALUE:.2f}')
        STMTS
    return '\\n'.join(LINES)
---
def FUNC(NUMBER: int, DEPTH: int = 0) -> int:
    if NUMBER <= 1 or DEPTH > 20:
        return HOLE(int)
    NOTE
    return FUNC(NUMBER // 2, DEPTH + 1) + HOLE(int)
---
def FUNC(TEXT: str, FALLBACK: float = 0.0) -> float:
    try:
        VALUE: float = float(TEXT)
    except ValueError:
        NOTE
        return FALLBACK
    return HOLE(float)
---
def FUNC(XS: list[T], FLAG: bool = False) -> tuple[list[T], list[T]]:
    KEPT: list[T] = []
    REST: list[T] = []
    for X in XS:
        if HOLE(bool):
            KEPT.append(X)
        else:
            NOTE
            REST.append(HOLE(T))
    return (KEPT, REST)
---
def FUNC(XS: list[str]) -> dict[str, list[str]]:
    GROUPS: dict[str, list[str]] = {}
    for X in XS:
        KEY: str = HOLE(str)
        GROUPS.setdefault(KEY, []).append(X)
    NOTE
    return GROUPS
---
def FUNC(XS: list[T], SIZE: int = 4) -> Iterator[list[T]]:
    STEP: int = max(1, SIZE)
    NOTE
    for START in range(0, len(XS), STEP):
        yield XS[START:START + STEP]
---
def FUNC(FIRST: float, SECOND: float, WEIGHT: float = 0.5) -> float:
    STMTS
    if HOLE(bool):
        NOTE
        return HOLE(float)
    return FIRST + (SECOND - FIRST) * WEIGHT
---
def FUNC(TEXT: str) -> str:
    STMTS
    WORDS: list[str] = TEXT.split()
    NOTE
    return HOLE(str)
---
class CLASS:
    DOC
    def __init__(self, ATTRA: str, ATTRB: int = 0) -> None:
        self.ATTRA: str = ATTRA
        self.ATTRB: int = ATTRB
        self.ATTRS: list[str] = []

    def METHODA(self, X: str) -> None:
        if HOLE(bool):
            raise ValueError(HOLE(str))
        NOTE
        self.ATTRS.append(X)
        self.ATTRB += HOLE(int)

    def METHODB(self) -> int:
        STMTS
        return HOLE(int)
---
@dataclass
class CLASS:
    DOC
    ATTRA: str
    ATTRB: float = 0.0
    ATTRC: int = 0

    def METHODA(self, FACTOR: float) -> float:
        NOTE
        return self.ATTRB * FACTOR + HOLE(float)

    def METHODB(self, OTHER: str) -> bool:
        STMTS
        return self.ATTRA == OTHER
---
class CLASS:
    DOC
    def __init__(self, SIZE: int) -> None:
        self.ATTRB: int = SIZE
        self.ATTRD: dict[str, T] = {}

    def METHODA(self, KEY: str, VALUE: T) -> None:
        NOTE
        if len(self.ATTRD) >= self.ATTRB:
            self.ATTRD.clear()
        self.ATTRD[KEY] = VALUE

    def METHODB(self, KEY: str, DEFAULT: T) -> T:
        STMTS
        return self.ATTRD.get(KEY, DEFAULT)

    def __len__(self) -> int:
        return len(self.ATTRD)
---
class CLASS(Exception):
    DOC
    def __init__(self, ATTRA: str, ATTRB: int) -> None:
        super().__init__(HOLE(str))
        self.ATTRA: str = ATTRA
        self.ATTRB: int = ATTRB
---
class CLASS:
    DOC
    def __init__(self) -> None:
        self.ATTRS: list[T] = []

    def METHODA(self, X: T) -> int:
        self.ATTRS.append(X)
        return len(self.ATTRS)

    def METHODB(self) -> T:
        if not self.ATTRS:
            raise IndexError(HOLE(str))
        NOTE
        return self.ATTRS.pop()
"""

HELD_OUT_SKELETONS = """
def FUNC(XS: list[float], YS: list[float]) -> float:
    SCORE: float = HOLE(float)
    for X, Y in zip(XS, YS):
        SCORE += abs(X - Y)
        STMTS
    NOTE
    return SCORE
---
def FUNC(VALUE: float, TOLERANCE: float = 0.001) -> float:
    GUESS: float = max(VALUE, 1.0)
    ROUND: int = 0
    while abs(GUESS * GUESS - VALUE) > TOLERANCE and ROUND < 50:
        NOTE
        GUESS = (GUESS + VALUE / GUESS) / 2
        ROUND += 1
    STMTS
    return GUESS
---
def FUNC(TEXT: str) -> list[tuple[str, int]]:
    RUNS: list[tuple[str, int]] = []
    for LETTER in TEXT.lower():
        if RUNS and RUNS[-1][0] == LETTER:
            RUNS[-1] = (LETTER, RUNS[-1][1] + 1)
        else:
            NOTE
            RUNS.append((LETTER, 1))
    return RUNS
---
def FUNC(MATRIX: list[list[int]]) -> list[int]:
    SUMS: list[int] = [sum(row) for row in MATRIX]
    NOTE
    STMTS
    assert len(SUMS) == len(MATRIX), HOLE(str)
    return HOLE(list[int])
---
def FUNC(PARTS: list[str], WIDTH: int = 80) -> str:
    OUTPUT: str = ''
    while PARTS:
        PART: str = PARTS.pop(0)
        if len(OUTPUT) + len(PART) > WIDTH:
            NOTE
            break
        OUTPUT += HOLE(str)
    else:
        STMTS
    return OUTPUT
---
class CLASS:
    DOC
    def __init__(self, ATTRB: float) -> None:
        self.ATTRB: float = ATTRB
        self.ATTRN: int = 0

    def __enter__(self) -> 'CLASS':
        NOTE
        self.ATTRN = HOLE(int)
        return self

    def __exit__(self, *details: object) -> None:
        self.ATTRB -= HOLE(float)
---
class CLASS:
    DOC
    ATTRN: int = 0

    @classmethod
    def METHODA(cls, TEXT: str) -> 'CLASS':
        STMTS
        CREATED = cls()
        CREATED.ATTRN = HOLE(int)
        return CREATED

    @property
    def METHODB(self) -> bool:
        NOTE
        return self.ATTRN > 0 or HOLE(bool)
"""
