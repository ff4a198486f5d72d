"""The grammar of the Python that data_gen writes, in the Lark notation that llguidance reads.

A context-free grammar cannot count spaces, so a statement has a rule for each depth of indentation. What the grammar
accepts Python parses: names are no keywords, defaults and keyword arguments stand behind the others, what is assigned
to can be assigned to, and strings hold no escapes but the common ones. All that data_gen writes is accepted.
"""

from __future__ import annotations

import keyword

DEEPEST = 8
"""Levels of indentation; statements of the deepest one hold no block."""

_EXPRESSIONS = r"""
exprs: test (", " test)*
test: or_test [" if " or_test " else " test]
or_test: and_test (" or " and_test)*
and_test: not_test (" and " not_test)*
not_test: "not " not_test | comparison
comparison: sum (COMPARES sum)*
sum: term (ADDS term)*
term: factor (TIMES factor)*
factor: "-" factor | NUMBER | primary
primary: atom trailer*
trailer: "." NAME | "(" [arguments] ")" | "[" subscript "]"
atom: NAME | "None" | "True" | "False" | STRING | fstring | "(" tuple ")" | list | dict
tuple: test | test "," | test (", " test)+ | test comprehension | yield
list: "[" "]" | "[" exprs "]" | "[" test comprehension "]"
dict: "{" "}" | "{" pair (", " pair)* "}" | "{" pair comprehension "}" | "{" exprs "}" | "{" test comprehension "}"
pair: test ": " test
comprehension: (" for " targets " in " or_test (" if " or_test)*)+
arguments: exprs | exprs ", " named | named | test comprehension
named: NAME "=" test (", " NAME "=" test)*
subscript: exprs | [test] ":" [test] [":" [test]]
fstring: "f'" (FTEXT_SINGLE | field)* "'" | "f\"" (FTEXT_DOUBLE | field)* "\""
field: "{" value [":" FORMAT] "}"
value: NAME value_trailer*
value_trailer: "." NAME | "(" [value (", " value)*] ")" | "[" (value | DIGITS) "]"
yield: "yield" [" " exprs]
target: NAME [trailer* ("." NAME | "[" subscript "]")]
targets: target (", " target)* | "(" target (", " target)+ ")"
parameters: parameter (", " parameter)* (", " defaulted)* | defaulted (", " defaulted)*
parameter: NAME [": " test]
defaulted: parameter DEFAULT test
simple: exprs | yield | assigned | annotated | target AUGMENTED exprs | "return" [" " exprs]
    | "raise" [" " test [" from " test]] | "assert " test [", " test] | "pass" | "break" | "continue"
    | "import " dotted | "from " dotted " import " NAME (", " NAME)*
assigned: (targets " = ")+ (exprs | yield)
annotated: target ": " test [" = " exprs]
dotted: NAME ("." NAME)*
COMPARES: " == " | " != " | " < " | " <= " | " > " | " >= " | " in " | " not in " | " is " | " is not "
ADDS: " + " | " - "
TIMES: " * " | " / " | " // " | " % "
AUGMENTED: " += " | " -= " | " *= " | " /= " | " //= " | " %= "
DEFAULT: "=" | " = "
NUMBER: /(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?/
DIGITS: /(0|[1-9][0-9]{0,17})/
FORMAT: /[<>^]?[0-9]{0,2}(\.[0-9])?[dfgsx%]?/
STRING: /'([^'\\\x00-\x1f\x7f]|\\[nt\\'"])*'/ | /"([^"\\\x00-\x1f\x7f]|\\[nt\\'"])*"/
FTEXT_SINGLE: /([^'\\{}\x00-\x1f\x7f]|\\[nt\\])+/
FTEXT_DOUBLE: /([^"\\{}\x00-\x1f\x7f]|\\[nt\\])+/
DOCSTRING: /"{3}("{0,2}[^"\\\x00-\x09\x0b-\x1f\x7f])*"{3}/ | /'{3}('{0,2}[^'\\\x00-\x09\x0b-\x1f\x7f])*'{3}/
COMMENT: /#[^\x00-\x1f\x7f]*/
"""


def python_grammar() -> str:
    """The grammar as Lark text."""
    keywords = "|".join(keyword.kwlist)
    lines = ["start: body_0", _EXPRESSIONS, f"NAME: /[A-Za-z_][A-Za-z0-9_]*/ & ~/({keywords})/"]
    for depth in range(DEEPEST):
        lines += _statements(depth)
    return "\n".join(lines) + "\n"


def _statements(depth: int) -> list[str]:
    """The rules of statements that are indented so far. A body has a statement; comments and empty lines do not count.

    What a statement begins with stands behind its indentation, so that a body goes on only where it is as deep.
    """
    indent, block = f'"{"    " * depth}" ' if depth else "", f'":\\n" body_{depth + 1}'
    body = [
        f"body_{depth}: space_{depth}* line_{depth} (line_{depth} | space_{depth})*",
        f'space_{depth}: "\\n" | {indent}COMMENT "\\n"',
    ]
    if depth == DEEPEST - 1:
        return [*body, f'line_{depth}: {indent}(simple | DOCSTRING) "\\n"']
    other = f'{indent}"else" {block}'
    return [
        *body,
        f'line_{depth}: {indent}(simple | DOCSTRING) "\\n" | {indent}compound_{depth}',
        f"compound_{depth}: if_{depth} | for_{depth} | while_{depth} | try_{depth} | with_{depth} | def_{depth}"
        f" | class_{depth}",
        f'if_{depth}: "if " test {block} ({indent}"elif " test {block})* [{other}]',
        f'for_{depth}: "for " targets " in " exprs {block} [{other}]',
        f'while_{depth}: "while " test {block} [{other}]',
        f'try_{depth}: "try" {block} ({indent}"except " test [" as " NAME] {block})+ [{other}]',
        f'with_{depth}: "with " test [" as " target] {block}',
        f'def_{depth}: ("@" primary "\\n" {indent})* "def " NAME "(" [parameters] ")" [" -> " test] {block}',
        f'class_{depth}: ("@" primary "\\n" {indent})* "class " NAME ["(" [arguments] ")"] {block}',
    ]
