"""Python modules: typed program skeletons with drawn expressions, docstrings and comments. Every module parses."""

from __future__ import annotations

import ast
from functools import lru_cache

from data_gen.code_expressions import Expressions
from data_gen.code_rules import VERBS
from data_gen.code_skeletons import HELD_OUT_SKELETONS, SKELETONS
from data_gen.code_tree import Filler
from data_gen.grammar import polish
from data_gen.inflection import plural
from data_gen.prose import Writer
from data_gen.scene import Scene

TYPE_WORDS = {
    "int": ("count", "size", "index", "limit", "total", "offset", "length", "number", "step", "level", "width"),
    "float": ("rate", "score", "weight", "ratio", "scale", "mean", "amount", "delta", "factor", "share"),
    "str": ("name", "label", "key", "text", "prefix", "title", "code", "path", "kind", "suffix", "line"),
    "bool": ("is_valid", "found", "enabled", "is_empty", "done", "ready", "strict", "matched"),
    "list": ("items", "rows", "results", "values", "entries", "parts", "pending", "batch", "names"),
    "dict": ("table", "lookup", "mapping", "cache", "counts", "registry", "settings", "by_name"),
}
CLASS_ENDS = (
    "",
    "",
    "Store",
    "Table",
    "Queue",
    "Reader",
    "Writer",
    "Manager",
    "Info",
    "Builder",
    "Cache",
    "Set",
    "Index",
)


@lru_cache(maxsize=2)
def skeletons(held_out: bool) -> tuple[ast.stmt, ...]:
    """The parsed skeletons of one side of the hold-out."""
    sources = (HELD_OUT_SKELETONS if held_out else SKELETONS).split("---")
    return tuple(ast.parse(source).body[0] for source in sources)


class Module:
    """State of one module: its topic words, the names in use and the definitions written so far."""

    def __init__(self, writer: Writer, scene: Scene) -> None:
        self.writer = writer
        self.scene = scene
        self.topics = tuple(scene.topics)
        self.taken: set[str] = set()
        self.words = (
            *self.topics,
            *(plural(topic) for topic in self.topics),
            scene.hero.surname,
            scene.town,
            "",
            "utf-8",
        )
        self.noun_of: dict[str, str] = {}

    def _unique(self, build: str) -> str:
        wanted, number = build, 2
        while wanted in self.taken:
            wanted, number = f"{build}_{number}", number + 1
        self.taken.add(wanted)
        return wanted

    def name(self, placeholder: str, kind: str) -> str:
        """A fitting identifier for a placeholder of a skeleton; X and XS share their noun."""
        scene = self.scene
        topic = scene.pick(self.topics)
        if placeholder == "CLASS":
            return self._unique(topic.title() + scene.pick(CLASS_ENDS))
        if placeholder.startswith(("FUNC", "METHOD")):
            tail = topic if scene.random() < 0.5 else plural(topic)
            if scene.random() < 0.4:
                tail = f"{topic}_{scene.pick(TYPE_WORDS[scene.pick(('int', 'float', 'str'))])}"
            return self._unique(f"{scene.pick(VERBS)}_{tail}")
        stem = placeholder.removesuffix("S")
        if len(stem) == 1 or stem == "ATTR":
            noun = self.noun_of.setdefault(stem, topic)
            return self._unique(plural(noun) if placeholder.endswith("S") else noun)
        word = scene.pick(TYPE_WORDS[kind.partition("[")[0] if kind.partition("[")[0] in TYPE_WORDS else "str"])
        if scene.random() < 0.4 and not word.startswith("is_"):
            word = f"{topic}_{word}" if kind not in ("list", "dict") else plural(topic)
        return self._unique(word)

    def comment(self) -> str:
        """One comment line; at the overlap's rate a sentence of prose."""
        return polish(self.writer.sentence(self.scene, "comment"))

    def definition(self, skeleton: ast.stmt) -> str:
        """The source of one function or class made from a skeleton."""
        kept = set(self.taken)
        self.noun_of = {}
        expressions = Expressions(self.scene, self.words)
        filler = Filler(self.scene, expressions, self.name, self.comment, self.docstring)
        tree = filler.block([skeleton])[0]
        if isinstance(tree, ast.FunctionDef) and self.scene.random() < 0.7:
            tree.body.insert(0, ast.Expr(ast.Constant(self.docstring())))
        self.taken = kept | {filler.names.get("FUNC", ""), filler.names.get("CLASS", "")}
        return ast.unparse(tree)

    def docstring(self) -> str:
        return polish(self.writer.sentence(self.scene, "docstring"))


def write(writer: Writer, scene: Scene, length: int) -> str:
    """One Python module of about `length` characters."""
    module = Module(writer, scene)
    options = skeletons(writer.held_out)
    definitions: list[str] = []
    while sum(map(len, definitions)) < length - 250:
        definitions.append(
            module.definition(options[scene.fresh("skeleton", scene.between(0, len(options) - 1), len(options))])
        )
    text = "\n\n\n".join(definitions)
    documentation = ast.Module([ast.Expr(ast.Constant(polish(writer.sentence(scene, "module"))))], [])
    header = [ast.unparse(documentation), ""]
    if "@dataclass" in text:
        header.append("from dataclasses import dataclass")
    if "Iterator[" in text:
        header.append("from collections.abc import Iterator")
    return "\n".join(header).rstrip() + "\n\n\n" + text + "\n"
