"""Typed expressions as `ast` trees: every variable is in scope and every operation fits the types of its operands.

Types are written as in annotations: int, float, str, bool, list[int], dict[str, float], and so on.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

from data_gen.scene import Scene

SCALARS = ("int", "float", "str")
LOAD = ast.Load()


def name(identifier: str) -> ast.expr:
    """A variable, or an attribute written with dots ("self.total")."""
    head, *attributes = identifier.split(".")
    node: ast.expr = ast.Name(head, LOAD)
    for attribute in attributes:
        node = ast.Attribute(node, attribute, LOAD)
    return node


def constant(value: object) -> ast.expr:
    return ast.Constant(value)  # type: ignore[arg-type]


def call(function: str | ast.expr, *arguments: ast.expr, **keywords: ast.expr) -> ast.expr:
    target = name(function) if isinstance(function, str) else function
    return ast.Call(target, list(arguments), [ast.keyword(key, value) for key, value in keywords.items()])


def method(owner: ast.expr, attribute: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(owner, attribute, LOAD), list(arguments), [])


def element_type(kind: str) -> str:
    """The type of what a loop over a list yields, or of the values of a dict."""
    return kind[5:-1] if kind.startswith("list[") else kind[10:-1]


class Expressions:
    """Draws expressions for one function; `scope` maps each visible variable to its type."""

    def __init__(self, scene: Scene, words: tuple[str, ...]) -> None:
        """`words` are the document's topic words, used as string constants and loop names."""
        self.scene = scene
        self.words = words
        self.scope: dict[str, str] = {}

    def fresh(self, wanted: str) -> str:
        """`wanted`, or a variant of it that is not in scope yet."""
        identifier, number = wanted, 2
        while identifier in self.scope:
            identifier, number = f"{wanted}_{number}", number + 1
        return identifier

    def variable(self, kind: str) -> ast.expr | None:
        """A variable of the type, or None; a later (nearer) one is likelier."""
        options = [identifier for identifier, type_name in self.scope.items() if type_name == kind]
        if not options:
            return None
        return name(options[-1 - int(self.scene.random() ** 2 * len(options))])

    def draw(self, kind: str, depth: int = 2) -> ast.expr:
        """An expression of the type, at most `depth` operations deep."""
        found = self.variable(kind)
        if depth <= 0 or self.scene.random() < 0.3:
            return found or self.literal(kind)
        if kind.startswith("list["):
            return self._list(kind, depth)
        if kind.startswith("dict["):
            return self._dict(kind, depth)
        drawers: dict[str, Callable[[int], ast.expr]] = {
            "int": self._int,
            "float": self._float,
            "str": self._str,
            "bool": self._bool,
        }
        return drawers[kind](depth)

    def literal(self, kind: str) -> ast.expr:
        scene = self.scene
        if kind == "int":
            return constant(
                scene.pick((0, 1, 1, 2, 2, 3, 4, 5, 7, 8, 10, 12, 16, 24, 32, 50, 60, 64, 100, 128, 255, 1000))
            )
        if kind == "float":
            return constant(
                scene.pick((0.0, 0.1, 0.25, 0.5, 0.5, 0.75, 1.0, 1.0, 1.5, 2.0, 10.0, 0.01, 0.9, 0.95, 100.0))
            )
        if kind == "str":
            return constant(scene.pick(self.words))
        if kind == "bool":
            return constant(scene.random() < 0.5)
        if kind.startswith("list["):
            return ast.List([self.literal(element_type(kind)) for _ in range(scene.between(0, 3))], LOAD)
        size = scene.between(0, 2)
        keys = list(dict.fromkeys(scene.pick(self.words) for _ in range(size)))
        values = [self.literal(element_type(kind)) for _ in keys]
        return ast.Dict([constant(key) for key in keys], values)

    def _of(self, *kinds: str) -> ast.expr | None:
        """A variable of one of the types, tried in a drawn order."""
        start = int(self.scene.random() * len(kinds))
        for kind in kinds[start:] + kinds[:start]:
            if found := self.variable(kind):
                return found
        return None

    def _arithmetic(self, kind: str, depth: int) -> ast.expr:
        operator = self.scene.pick((ast.Add(), ast.Sub(), ast.Mult()))
        return ast.BinOp(self.draw(kind, depth - 1), operator, self.draw(kind, depth - 1))

    def _int(self, depth: int) -> ast.expr:
        choice = self.scene.between(0, 8)
        if choice <= 1 and (sized := self._of("list[str]", "list[int]", "str", "list[float]", "dict[str, int]")):
            return call("len", sized)
        if choice == 2:
            divisor = constant(self.scene.pick((2, 3, 4, 5, 7, 10, 16, 60)))
            return ast.BinOp(self.draw("int", depth - 1), self.scene.pick((ast.Mod(), ast.FloorDiv())), divisor)
        if choice == 3 and (numbers := self.variable("list[int]")):
            return call("sum", numbers) if self.scene.random() < 0.5 else call("max", numbers, default=constant(0))
        if choice == 4 and (table := self.variable("dict[str, int]")):
            return method(table, "get", self.draw("str", depth - 1), constant(self.scene.pick((0, 0, 1, -1))))
        if choice == 5 and (real := self.variable("float")):
            return call("int", real) if self.scene.random() < 0.5 else call("round", real)
        if choice == 6:
            function = self.scene.pick(("max", "min"))
            return call(function, self.draw("int", depth - 1), self.draw("int", depth - 1))
        if choice == 7:
            return ast.IfExp(self._bool(depth - 1), self.draw("int", depth - 1), self.draw("int", depth - 1))
        return self._arithmetic("int", depth)

    def _float(self, depth: int) -> ast.expr:
        choice = self.scene.between(0, 6)
        if choice == 0:
            return call("round", self.draw("float", depth - 1), constant(self.scene.pick((1, 2, 2, 3, 6))))
        if choice == 1:
            divisor = constant(self.scene.pick((2.0, 10.0, 100.0, 3.6, 60.0)))
            return ast.BinOp(self.draw("float", depth - 1), ast.Div(), divisor)
        if choice == 2 and (numbers := self.variable("list[float]")):
            return call("sum", numbers) if self.scene.random() < 0.5 else call("max", numbers, default=constant(0.0))
        if choice == 3 and (whole := self.variable("int")):
            return call("float", whole)
        if choice == 4 and (table := self.variable("dict[str, float]")):
            return method(table, "get", self.draw("str", depth - 1), constant(0.0))
        if choice == 5:
            return call("abs", self._arithmetic("float", depth))
        return self._arithmetic("float", depth)

    def _format(self) -> ast.expr:
        """An f-string of one or two variables with topic words between them."""
        parts: list[ast.expr] = []
        for kind in ("str", self.scene.pick(("int", "float", "str"))):
            if found := self.variable(kind):
                if parts or self.scene.random() < 0.6:
                    parts.append(constant(self.scene.pick((f"{self.scene.pick(self.words)} ", ": ", "-", " = ", "/"))))
                spec = ast.JoinedStr([constant(".2f")]) if kind == "float" else None
                parts.append(ast.FormattedValue(found, -1, spec))
        return ast.JoinedStr(parts) if parts else self.literal("str")

    def _str(self, depth: int) -> ast.expr:
        choice = self.scene.between(0, 6)
        if choice <= 1:
            return self._format()
        if choice == 2 and (strings := self.variable("list[str]")):
            return method(constant(self.scene.pick((", ", " ", "-", "\n", "/", "; "))), "join", strings)
        if choice == 3 and (number := self._of("int", "float")):
            return call("str", number)
        if choice == 4:
            pair = (constant(self.scene.pick(("_", " ", "-", "."))), constant(self.scene.pick(("", " ", "-"))))
            return method(self.draw("str", depth - 1), "replace", *pair)
        if choice == 5:
            return ast.Subscript(self.draw("str", depth - 1), ast.Slice(upper=self.literal("int")), LOAD)
        return method(self.draw("str", depth - 1), self.scene.pick(("strip", "lower", "upper", "title", "rstrip")))

    def _bool(self, depth: int) -> ast.expr:
        choice = self.scene.between(0, 7)
        if choice == 0 and (text := self.variable("str")):
            return method(text, self.scene.pick(("startswith", "endswith")), self.literal("str"))
        if choice == 1 and (container := self._of("list[str]", "dict[str, int]", "dict[str, float]", "str")):
            membership = self.scene.pick((ast.In(), ast.NotIn()))
            return ast.Compare(self.draw("str", depth - 1), [membership], [container])
        if choice == 2 and (flag := self._of("bool", "list[str]", "list[int]", "str", "list[float]")):
            return ast.UnaryOp(ast.Not(), flag)
        if choice == 3 and depth > 0:
            connective = self.scene.pick((ast.And(), ast.Or()))
            return ast.BoolOp(connective, [self._bool(depth - 1), self._bool(depth - 1)])
        numeric = [kind for kind in ("int", "float") if self.variable(kind)] or ["int"]
        kind = self.scene.pick(numeric)
        operator = self.scene.pick((ast.Gt(), ast.Lt(), ast.GtE(), ast.LtE(), ast.Eq(), ast.NotEq()))
        return ast.Compare(self.variable(kind) or self.draw(kind, 0), [operator], [self.draw(kind, depth - 1)])

    def _each(self, source: str, build: Callable[[], ast.expr]) -> tuple[ast.expr, ast.comprehension] | None:
        """`build()` with a loop variable over a list of `source` in scope, and the loop that binds it."""
        found = self.variable(f"list[{source}]")
        if found is None:
            return None
        loop = self.fresh({"int": "value", "float": "amount", "str": "text"}[source])
        self.scope[loop] = source
        body = build()
        conditions = [self._bool(0)] if self.scene.random() < 0.4 else []
        del self.scope[loop]
        return body, ast.comprehension(ast.Name(loop, ast.Store()), found, conditions, 0)

    def _list(self, kind: str, depth: int) -> ast.expr:
        inner = element_type(kind)
        choice = self.scene.between(0, 4)
        if choice <= 1 and inner in SCALARS:
            source = self.scene.pick(SCALARS)
            if built := self._each(source, lambda: self.draw(inner, depth - 1)):
                return ast.ListComp(built[0], [built[1]])
        found = self.variable(kind)
        if found and choice == 2:
            return call("sorted", found)
        if found and choice == 3:
            return ast.Subscript(found, ast.Slice(upper=self.literal("int")), LOAD)
        if found and choice == 4:
            return ast.BinOp(found, ast.Add(), ast.List([self.draw(inner, depth - 1)], LOAD))
        return found or self.literal(kind)

    def _dict(self, kind: str, depth: int) -> ast.expr:
        inner = element_type(kind)
        found = self.variable(kind)
        if found and self.scene.random() < 0.4:
            return call("dict", found)
        if inner in SCALARS and (built := self._each("str", lambda: self.draw(inner, depth - 1))):
            return ast.DictComp(ast.Name(built[1].target.id, LOAD), built[0], [built[1]])  # type: ignore[attr-defined]
        return found or self.literal(kind)
