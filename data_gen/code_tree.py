"""Filling program skeletons: a parsed skeleton is copied with its placeholders replaced by typed trees.

In a skeleton, capital names are variables still to be named (XS and X share a word: `for item in items`), `T` is a
scalar type drawn once, `HOLE(type)` becomes an expression of that type, `STMTS` becomes statements and `NOTE` a
comment. Parameters, annotated assignments and loops tell the copier the type of each variable, so that every hole
is filled from what is in scope at that line.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import lru_cache

from data_gen.code_expressions import LOAD, SCALARS, Expressions, call, constant, element_type, method
from data_gen.scene import Scene

Namer = Callable[[str, str], str]  # (placeholder, type) -> identifier


@lru_cache(maxsize=1024)
def _annotation_source(node: ast.expr) -> str:
    """The source of an annotation of a skeleton; skeletons live as long as the process, so each is written once."""
    return ast.unparse(node)


def _dotted(node: ast.expr) -> str:
    """The scope key of a variable or attribute, "" for any other expression."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _item_type(kind: str) -> str:
    """What a loop yields: the elements of a list, the letters of a string, the keys of a dict, else (range) numbers."""
    if kind.startswith("list["):
        return element_type(kind)
    return "str" if kind else "int"


class Filler:
    """Copies one skeleton. One instance per top-level definition."""

    def __init__(
        self,
        scene: Scene,
        expressions: Expressions,
        namer: Namer,
        comment: Callable[[], str],
        documentation: Callable[[], str],
    ) -> None:
        self.scene = scene
        self.expressions = expressions
        self.namer = namer
        self.comment = comment
        self.documentation = documentation
        self.in_class = False
        self.looped: set[str] = set()  # lists being walked: appending to them would never end
        self.scalar = scene.pick(SCALARS)
        self.names: dict[str, str] = {}

    def identifier(self, placeholder: str, kind: str) -> str:
        """The name chosen for a placeholder; other names stay as they are."""
        if not placeholder.isupper():
            return placeholder
        if placeholder not in self.names:
            self.names[placeholder] = self.namer(placeholder, kind)
        return self.names[placeholder]

    def kind(self, annotation: ast.expr | None) -> str:
        """The type an annotation writes, with T replaced."""
        return _annotation_source(annotation).replace("T", self.scalar) if annotation is not None else ""

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        filled: list[ast.stmt] = []
        for statement in statements:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Name):
                if statement.value.id == "NOTE":
                    if self.scene.random() < 0.5:
                        # `unparse` writes a name as it stands, so a "#" name becomes a comment line
                        filled.append(ast.Expr(ast.Name(f"# {self.comment()}", LOAD)))
                    continue
                if statement.value.id == "DOC":
                    filled.append(ast.Expr(constant(self.documentation())))
                    continue
                if statement.value.id == "STMTS":
                    filled += self.statements(self.scene.between(1, 2))
                    continue
            filled.append(self.statement(statement))
        return filled

    def statement(self, node: ast.stmt) -> ast.stmt:
        if isinstance(node, ast.FunctionDef):
            return self._function(node)
        if isinstance(node, ast.AnnAssign):
            return self._annotated(node)
        if isinstance(node, ast.ClassDef):
            self.in_class = True
        if isinstance(node, ast.For):
            return self._for(node)
        copy = self._copy(node)
        assert isinstance(copy, ast.stmt)
        return copy

    def _annotated(self, node: ast.AnnAssign) -> ast.stmt:
        """A first assignment: the variable (or attribute, or field of a class) enters the scope with its type."""
        kind = self.kind(node.annotation)
        value = self.expression(node.value) if node.value else None
        if isinstance(node.target, ast.Attribute):
            key = f"self.{self.identifier(node.target.attr, kind)}"
        else:
            assert isinstance(node.target, ast.Name)
            identifier = self.identifier(node.target.id, kind)
            key = f"self.{identifier}" if self.in_class else identifier
        target = self.expression(node.target)
        assert isinstance(target, ast.Name | ast.Attribute)
        self.expressions.scope[key] = kind
        keeps_type = self.in_class or kind.startswith(("list", "dict")) or isinstance(target, ast.Attribute)
        if value is None or keeps_type:
            return ast.AnnAssign(target, ast.Name(kind, LOAD), value, 1)
        return ast.Assign([target], value, lineno=0)

    def _function(self, node: ast.FunctionDef) -> ast.FunctionDef:
        in_class, self.in_class = self.in_class, False
        outer = dict(self.expressions.scope)
        scope = self.expressions.scope
        arguments = []
        for argument in node.args.args:
            kind = self.kind(argument.annotation)
            identifier = self.identifier(argument.arg, kind)
            if kind:
                scope[identifier] = kind
            arguments.append(ast.arg(identifier, ast.Name(kind, LOAD) if kind else None))
        defaults = [self.expression(default) for default in node.args.defaults]
        returns = ast.Name(self.kind(node.returns), LOAD) if node.returns else None
        parameters = ast.arguments([], arguments, None, [], [], None, defaults)
        function_name = self.identifier(node.name, "function")
        decorators = [self.expression(decorator) for decorator in node.decorator_list]
        body = self.block(node.body)
        kept = {key: kind for key, kind in scope.items() if key in outer or key.startswith("self.")}
        scope.clear()
        scope.update(kept)
        self.in_class = in_class
        return ast.FunctionDef(function_name, parameters, body, decorators, returns, lineno=0)

    def _for(self, node: ast.For) -> ast.For:
        scope = self.expressions.scope
        source = self.expression(node.iter)
        before = dict(scope)
        source_kind = scope.get(_dotted(source), "")
        if isinstance(node.target, ast.Name):
            item_kind = _item_type(source_kind)
            scope[self.identifier(node.target.id, item_kind)] = item_kind
        elif isinstance(source, ast.Call):
            self._bind_pair(node.target, source)
        target = self.expression(node.target)
        looped = {_dotted(part) for part in ast.walk(source) if isinstance(part, ast.Name | ast.Attribute)}
        outer, self.looped = self.looped, self.looped | looped
        body = self.block(node.body)
        self.looped = outer
        later = {key: kind for key, kind in scope.items() if key in before}
        scope.clear()
        scope.update(later)
        return ast.For(target, source, body, self.block(node.orelse), lineno=0)

    def _bind_pair(self, target: ast.expr, source: ast.Call) -> None:
        """Types of the two loop variables of enumerate(list), dict.items() and zip(list, list)."""
        assert isinstance(target, ast.Tuple)
        scope = self.expressions.scope
        first, second = (part.id for part in target.elts if isinstance(part, ast.Name))
        if isinstance(source.func, ast.Attribute):
            kinds = ("str", element_type(scope[_dotted(source.func.value)]))
        elif isinstance(source.func, ast.Name) and source.func.id == "enumerate":
            kinds = ("int", element_type(scope[_dotted(source.args[0])]))
        else:
            left, right = (scope[_dotted(part)] for part in source.args)
            kinds = (element_type(left), element_type(right))
        scope[self.identifier(first, kinds[0])] = kinds[0]
        scope[self.identifier(second, kinds[1])] = kinds[1]

    def expression(self, node: ast.expr) -> ast.expr:
        copy = self._copy(node)
        assert isinstance(copy, ast.expr)
        return copy

    def _copy(self, node: ast.AST) -> ast.AST:
        """A copy with names and holes filled; statements inside go through `statement`, so scope is tracked."""
        if isinstance(node, ast.Name):
            return ast.Name(self.identifier(node.id, "int"), node.ctx)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "HOLE":
            return self.expressions.draw(self.kind(node.args[0]), 2)
        if isinstance(node, ast.Constant | ast.operator | ast.cmpop | ast.boolop | ast.unaryop | ast.expr_context):
            return node
        fields: dict[str, object] = {}
        for field, value in ast.iter_fields(node):
            if isinstance(value, list):
                if value and isinstance(value[0], ast.stmt):
                    fields[field] = self._branch(value)
                else:
                    fields[field] = [self._copy(item) if isinstance(item, ast.AST) else item for item in value]
            elif isinstance(value, ast.AST):
                fields[field] = self._copy(value)
            elif isinstance(value, str):
                fields[field] = self.identifier(value, "attribute" if isinstance(node, ast.Attribute) else "class")
            else:
                fields[field] = value
        return type(node)(**fields, **({"lineno": 0} if isinstance(node, ast.stmt) else {}))

    def _branch(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """A block that may not run: what it defines is out of scope after it."""
        before = dict(self.expressions.scope)
        filled = self.block(statements)
        self.expressions.scope.clear()
        self.expressions.scope.update(before)
        return filled

    def statements(self, count: int) -> list[ast.stmt]:
        """Random statements over what is in scope: a new variable, an update, a branch or a log line."""
        return [self._random_statement() for _ in range(count)]

    def _random_statement(self) -> ast.stmt:
        expressions, scene = self.expressions, self.scene
        choice = scene.between(0, 6)
        kind = scene.pick(("int", "float", "str", "int", "list[str]", "dict[str, int]", "bool", "list[int]"))
        plain = [
            key for key, type_name in expressions.scope.items() if type_name in ("int", "float") and "." not in key
        ]
        if choice <= 1 and plain:
            target = scene.pick(plain)
            operator = scene.pick((ast.Add(), ast.Sub(), ast.Add()))
            value = expressions.draw(expressions.scope[target], 1)
            update: ast.stmt = ast.AugAssign(ast.Name(target, ast.Store()), operator, value)
            if scene.random() < 0.5:
                return update
            return ast.If(expressions.draw("bool", 2), [update], [])
        strings = expressions.variable("list[str]")
        if choice == 2 and strings and _dotted(strings) not in self.looped:
            return ast.Expr(method(strings, "append", expressions.draw("str", 1)))
        if choice == 3:
            error = call(
                scene.pick(("ValueError", "ValueError", "KeyError", "RuntimeError")), expressions.draw("str", 2)
            )
            return ast.If(expressions.draw("bool", 2), [ast.Raise(error, None)], [])
        value = expressions.draw(kind, 2)
        identifier = expressions.fresh(self.namer("LOCAL", kind))
        expressions.scope[identifier] = kind
        return ast.Assign([ast.Name(identifier, ast.Store())], value, lineno=0)
