"""Logstash's configuration language, after the grammar that its documentation and parser describe, strictly: what is
accepted here is accepted there. https://www.elastic.co/docs/reference/logstash/configuration-file-structure"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from lark import Lark, Transformer, v_args
from lark.exceptions import LarkError, VisitError

GRAMMAR = r"""
start: section+
section: SECTION "{" statement* "}"
?statement: branch | plugin
plugin: name "{" attribute* "}"
attribute: name "=>" value
name: NAME | BAREWORD | string
?value: plugin | bareword | string | number | array | hash
bareword: BAREWORD
number: NUMBER
string: DOUBLE | SINGLE
array: "[" [value ("," value)*] "]"
hash: "{" entry* "}"
entry: (string | number | bareword) "=>" value

branch: if_part elif_part* else_part?
if_part: "if" condition "{" statement* "}"
elif_part: "else" "if" condition "{" statement* "}"
else_part: "else" "{" statement* "}"
condition: expression (OPERATOR expression)*
?expression: "(" condition ")" | negation | membership | comparison | match | rvalue
negation: "!" "(" condition ")" | "!" selector
membership: rvalue (IN | NOT_IN) rvalue
comparison: rvalue COMPARISON rvalue
match: rvalue MATCH (regexp | string)
?rvalue: string | number | selector | condition_array
condition_array: "[" rvalue ("," rvalue)* "]"
selector: SELECTOR
regexp: REGEXP

SECTION.4: /(input|filter|output)(?=\s*\{)/
OPERATOR.3: /(and|or|xor|nand)(?=[\s(])/
NOT_IN.3: /not\s+in(?=\s)/
IN.3: /in(?=\s)/
COMPARISON: "==" | "!=" | "<=" | ">=" | "<" | ">"
MATCH: "=~" | "!~"
SELECTOR.2: /(\[[^\]\[,]+\])+/
REGEXP: /\/([^\/\\]|\\.)*\//
DOUBLE: /"([^"\\]|\\.)*"/
SINGLE: /'([^'\\]|\\.)*'/
NUMBER.2: /-?[0-9]+(\.[0-9]*)?/
BAREWORD: /[A-Za-z_][A-Za-z0-9_]+/
NAME: /[A-Za-z0-9_-]+/
COMMENT: /#[^\r\n]*(\r?\n)/
%import common.WS
%ignore WS
%ignore COMMENT
"""


class PipelineError(Exception):
    """Not Logstash's language, or nothing that these tests know."""


@dataclass(frozen=True)
class Plugin:
    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Selector:
    path: tuple[str, ...]


@dataclass(frozen=True)
class Regexp:
    text: str


@dataclass(frozen=True)
class Condition:
    """`kind`: all, any, not, in, not in, a comparison, =~, !~ or value."""

    kind: str
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Branch:
    """Condition → statements, the first that holds; None: else."""

    arms: tuple[tuple[Condition | None, tuple[Any, ...]], ...]


@dataclass(frozen=True)
class Section:
    kind: str
    statements: tuple[Any, ...]


@v_args(inline=True)
class _Build(Transformer[Any, Any]):
    def start(self, *sections: Section) -> tuple[Section, ...]:
        return sections

    def section(self, kind: str, *statements: Any) -> Section:
        return Section(str(kind), statements)

    def plugin(self, name: str, *attributes: tuple[str, Any]) -> Plugin:
        names = [key for key, _ in attributes]
        if len(set(names)) < len(names):
            raise PipelineError(f"{name}: an option is given twice among {names}")
        return Plugin(name, dict(attributes))

    def attribute(self, name: str, value: Any) -> tuple[str, Any]:
        return name, value

    def name(self, value: str) -> str:
        return str(value)

    bareword = name

    def string(self, token: str) -> str:
        """Escapes stay as they are (`config.support_escapes` is off), but for the quote's own."""
        return str(token[1:-1])

    def number(self, token: str) -> float:
        return float(token) if "." in token else int(token)

    def array(self, *values: Any) -> list[Any]:
        return [value for value in values if value is not None]

    def condition_array(self, *values: Any) -> list[Any]:
        return list(values)

    def entry(self, key: Any, value: Any) -> tuple[Any, Any]:
        return key, value

    def hash(self, *entries: tuple[Any, Any]) -> dict[Any, Any]:
        if len({key for key, _ in entries}) < len(entries):
            raise PipelineError(f"a key is given twice among {[key for key, _ in entries]}")
        return dict(entries)

    def selector(self, token: str) -> Selector:
        if '"' in token or "'" in token:
            raise PipelineError(f"{token}: Logstash takes an array of one for a field's name")
        return Selector(tuple(str(token)[1:-1].split("][")))

    def regexp(self, token: str) -> Regexp:
        return Regexp(str(token[1:-1]).replace("\\/", "/"))

    def condition(self, *parts: Any) -> Condition:
        operators = {str(part) for part in parts[1::2]}
        if not operators:
            return _condition(parts[0])
        kinds = {"and": "all", "or": "any"}
        if len(operators) > 1 or not operators <= kinds.keys():
            raise PipelineError(f"{sorted(operators)} in one condition: put parentheses around one of them")
        return Condition(kinds[operators.pop()], tuple(_condition(part) for part in parts[::2]))

    def negation(self, part: Any) -> Condition:
        return Condition("not", (_condition(part),))

    def membership(self, left: Any, operator: str, right: Any) -> Condition:
        return Condition(" ".join(operator.split()), (left, right))

    comparison = match = membership

    def if_part(self, condition: Any, *statements: Any) -> tuple[Condition | None, tuple[Any, ...]]:
        return _condition(condition), statements

    elif_part = if_part

    def else_part(self, *statements: Any) -> tuple[Condition | None, tuple[Any, ...]]:
        return None, statements

    def branch(self, *arms: tuple[Condition | None, tuple[Any, ...]]) -> Branch:
        return Branch(arms)


def _condition(part: Any) -> Condition:
    return part if isinstance(part, Condition) else Condition("value", (part,))


_PARSER = Lark(GRAMMAR, parser="lalr", lexer="contextual")


@cache
def parse(text: str) -> tuple[Section, ...]:
    """Raises `PipelineError`."""
    try:
        return tuple(_Build().transform(_PARSER.parse(text)))
    except VisitError as error:
        raise error.orig_exc from None
    except LarkError as error:
        raise PipelineError(str(error)) from None
