"""Tokens and syntax labels of Python source files, using only `tokenize` and `ast`.

Also runs as a script, with a JSON list of paths on stdin and one JSON object per file on stdout. It only imports the
standard library, so that a reading process starts in 30 ms: it never imports torch, never needs the caller's `if
__name__ == "__main__"` (as multiprocessing's spawn does), and never forks a process that has threads.
"""

import ast
import io
import json
import keyword
import sys
import tokenize
import warnings
from bisect import bisect_left

MISSING_ROLE = 255

ROLES = (
    "function",
    "class",
    "parameter",
    "attribute",
    "method",
    "call",
    "import",
    "keyword",
    "assigned",
    "read",
)
STATEMENTS = ("_", *sorted(node.__name__ for node in ast.stmt.__subclasses__()))
EXPRESSIONS = ("_", *sorted(node.__name__ for node in ast.expr.__subclasses__()))
SCOPES = ("module", "class", "function", "method", "async", "lambda", "comprehension")
DEPTHS = ("0", "1", "2", "3+")
KINDS = (
    "name",
    "keyword",
    "number",
    "string",
    "open",
    "close",
    "dot",
    "comma",
    "colon",
    "assign",
    "compare",
    "operator",
    "end",
)
CLASS_NAMES = {
    "role": ROLES,
    "statement": STATEMENTS,
    "expression": EXPRESSIONS,
    "scope": SCOPES,
    "depth": DEPTHS,
    "next": KINDS,
}

_ROLE_ID = {name: i for i, name in enumerate(ROLES)}
_STATEMENT_ID = {name: i for i, name in enumerate(STATEMENTS)}
_EXPRESSION_ID = {name: i for i, name in enumerate(EXPRESSIONS)}
_SCOPE_ID = {name: i for i, name in enumerate(SCOPES)}
_KIND_ID = {name: i for i, name in enumerate(KINDS)}

_OPERATOR_KINDS = {
    **dict.fromkeys("([{", "open"),
    **dict.fromkeys(")]}", "close"),
    **dict.fromkeys((".", "..."), "dot"),
    ",": "comma",
    ":": "colon",
    **dict.fromkeys(
        ("=", ":=", "+=", "-=", "*=", "/=", "//=", "%=", "@=", "&=", "|=", "^=", ">>=", "<<=", "**="),
        "assign",
    ),
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">="), "compare"),
}
_OPEN, _CLOSE = _KIND_ID["open"], _KIND_ID["close"]
_DROPPED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}
# From Python 3.12 on, an f-string is several tokens; here it is one, as before.
_STRING_STARTS = {getattr(tokenize, name, -1) for name in ("FSTRING_START", "TSTRING_START")}
_STRING_ENDS = {getattr(tokenize, name, -1) for name in ("FSTRING_END", "TSTRING_END")}
# The tokens inside are a single string token, and Python 3.11 gives wrong positions for the nodes inside.
_OPAQUE_NODES = tuple(getattr(ast, name) for name in ("JoinedStr", "TemplateStr") if hasattr(ast, name))
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_LEAF_FIELDS = {"ctx", "op", "ops", "kind", "type_comment"}


def read_source(text: str) -> dict:
    """Return tokens, lengths of the logical lines, and label ids of a source text.

    The result is {"tokens": list of T strings, "unit_lengths": list, "labels": {task: bytes of T class ids}}; the
    classes are in CLASS_NAMES, and a token without a role has MISSING_ROLE. Raises SyntaxError for text that is not
    Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as invalid escapes in old source
        tree = ast.parse(text)
    tokens = _Tokens(text)
    syntax = _Syntax(tokens)
    syntax.paint(tree)
    return {
        "tokens": tokens.texts,
        "unit_lengths": tokens.unit_lengths,
        "labels": {
            "role": bytes(syntax.roles),
            "statement": bytes(syntax.statements),
            "expression": bytes(syntax.expressions),
            "scope": bytes(syntax.scopes),
            "depth": bytes(_depths(tokens.kinds)),
            "next": bytes(_next_kinds(tokens)),
        },
    }


class _Tokens:
    """The kept tokens: texts, kinds, and start keys that sort them (line and byte column in one integer)."""

    def __init__(self, text: str):
        self._lines = None if text.isascii() else text.split("\n")
        self.texts: list[str] = []
        self.kinds: list[int] = []
        self.keys: list[int] = []
        self.unit_lengths: list[int] = []
        self._in_string = 0
        self._unit_start = 0
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            self._add(token)
        self._end_unit()

    def key(self, line: int, byte_column: int) -> int:
        return line << 32 | byte_column

    def _add(self, token: tokenize.TokenInfo) -> None:
        kind, text = token.type, token.string
        if kind in _STRING_STARTS:
            self._in_string += 1
            if self._in_string == 1:
                self._append("<str>", "string", token.start)
        elif kind in _STRING_ENDS:
            self._in_string -= 1
        elif self._in_string or kind in _DROPPED:
            return
        elif kind == tokenize.NEWLINE:
            self._end_unit()
        elif kind == tokenize.NAME:
            self._append(text, "keyword" if keyword.iskeyword(text) else "name", token.start)
        elif kind == tokenize.STRING:
            self._append("<str>", "string", token.start)
        elif kind == tokenize.NUMBER:
            self._append("<num>", "number", token.start)
        elif kind == tokenize.OP:
            self._append(text, _OPERATOR_KINDS.get(text, "operator"), token.start)

    def _append(self, text: str, kind: str, start: tuple[int, int]) -> None:
        line, column = start
        if self._lines is not None:  # ast counts bytes, tokenize characters
            column = len(self._lines[line - 1][:column].encode())
        self.texts.append(text)
        self.kinds.append(_KIND_ID[kind])
        self.keys.append(self.key(line, column))

    def _end_unit(self) -> None:
        if len(self.texts) > self._unit_start:
            self.unit_lengths.append(len(self.texts) - self._unit_start)
            self._unit_start = len(self.texts)


class _Syntax:
    """Labels of each token from the syntax tree.

    Parents are painted before their children, each over its slice of tokens, so that the label of the innermost node
    remains. The work is the sum of the nodes' lengths, as slice assignments.
    """

    def __init__(self, tokens: _Tokens):
        T = len(tokens.texts)
        self._tokens = tokens
        self.roles = [MISSING_ROLE] * T
        self.statements = [0] * T
        self.expressions = [0] * T
        self.scopes = [0] * T
        self._called: set[int] = set()  # id() of nodes that are called
        self._methods: set[int] = set()  # id() of functions that are in a class body

    def paint(self, tree: ast.Module) -> None:
        """Walk the tree without recursion (source may nest deeper than the interpreter's stack allows)."""
        stack: list[ast.AST] = [tree]
        while stack:
            node = stack.pop()
            if isinstance(node, ast.expr):
                self._paint_expression(node)
            elif isinstance(node, ast.stmt):
                self._paint_statement(node)
            else:
                self._paint_other(node)
            if not isinstance(node, _OPAQUE_NODES):
                stack.extend(_children(node))

    def _span(self, node) -> tuple[int, int]:
        """Return the first token of a node and the one after its last."""
        keys, key = self._tokens.keys, self._tokens.key
        first = bisect_left(keys, key(node.lineno, node.col_offset))
        return first, bisect_left(keys, key(node.end_lineno, node.end_col_offset), first)

    def _first_token(self, statement: ast.stmt) -> int:
        decorators = getattr(statement, "decorator_list", None)
        if decorators:  # a definition's position is after its decorators; subtract one more for the `@`
            return self._span(decorators[0])[0] - 1
        return self._span(statement)[0]

    def _set_role(self, index: int, role: str) -> None:
        self.roles[index] = _ROLE_ID[role]

    def _paint_scope(self, first: int, end: int, scope: str) -> None:
        self.scopes[first:end] = [_SCOPE_ID[scope]] * (end - first)

    def _paint_expression(self, node: ast.expr) -> None:
        first, end = self._span(node)
        self.expressions[first:end] = [_EXPRESSION_ID[type(node).__name__]] * (end - first)
        if isinstance(node, ast.Name):
            self._set_role(first, self._role_of_name(node))
        elif isinstance(node, ast.Attribute):
            self._set_role(end - 1, "method" if id(node) in self._called else "attribute")
        elif isinstance(node, ast.Call):
            self._called.add(id(node.func))
        elif isinstance(node, ast.Lambda):
            self._paint_scope(first, end, "lambda")
        elif isinstance(node, _COMPREHENSIONS):
            self._paint_scope(first, end, "comprehension")

    def _role_of_name(self, node: ast.Name) -> str:
        if id(node) in self._called:
            return "call"
        return "read" if isinstance(node.ctx, ast.Load) else "assigned"

    def _paint_statement(self, node: ast.stmt) -> None:
        first, end = self._span(node)
        start = self._first_token(node)
        self.statements[start:end] = [_STATEMENT_ID[type(node).__name__]] * (end - start)
        if isinstance(node, ast.ClassDef):
            self._methods.update(id(child) for child in node.body if isinstance(child, _FUNCTIONS))
            self._set_role(first + 1, "class")
            self._paint_scope(self._first_token(node.body[0]), end, "class")
        elif isinstance(node, _FUNCTIONS):
            self._paint_function(node, first, end)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for index in range(first, end):
                if self._tokens.kinds[index] == 0:
                    self._set_role(index, "import")

    def _paint_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, first: int, end: int) -> None:
        is_async = isinstance(node, ast.AsyncFunctionDef)
        self._set_role(first + 1 + is_async, "function")
        scope = "async" if is_async else "method" if id(node) in self._methods else "function"
        self._paint_scope(self._first_token(node.body[0]), end, scope)

    def _paint_other(self, node: ast.AST) -> None:
        if isinstance(node, ast.arg):
            self._set_role(self._span(node)[0], "parameter")
        elif isinstance(node, ast.keyword) and node.arg is not None:
            self._set_role(self._span(node)[0], "keyword")
        elif isinstance(node, ast.ExceptHandler) and node.name is not None:
            name = self._tokens.texts.index("as", self._span(node.type)[1]) + 1
            self._set_role(name, "assigned")
        elif isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name is not None:
            self._set_role(self._span(node)[1] - 1, "assigned")


def _children(node: ast.AST) -> list[ast.AST]:
    children = []
    for field in node._fields:
        if field in _LEAF_FIELDS:
            continue
        value = getattr(node, field, None)
        if isinstance(value, ast.AST):
            children.append(value)
        elif isinstance(value, list):
            children.extend(item for item in value if isinstance(item, ast.AST))
    return children


def _depths(kinds: list[int]) -> list[int]:
    """Return the bracket depth of each token, 3 for more; a bracket has the depth of what surrounds it."""
    depth = 0
    depths = []
    for kind in kinds:
        depth -= kind == _CLOSE
        depths.append(min(depth, 3))
        depth += kind == _OPEN
    return depths


def _next_kinds(tokens: _Tokens) -> list[int]:
    """Return the kind of each next token in the same logical line, or `end`."""
    following = [*tokens.kinds[1:], 0]
    position = -1
    for length in tokens.unit_lengths:
        position += length
        following[position] = _KIND_ID["end"]
    return following[: len(tokens.kinds)]


def read_file(path: str) -> dict | None:
    """Return the result of `read_source` for a file, in JSON's types; None if this Python cannot parse it."""
    try:
        with tokenize.open(path) as file:
            source = read_source(file.read())
    except (OSError, SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError):
        return None
    labels = {task: ids.hex() for task, ids in source["labels"].items()}
    return {"tokens": "\n".join(source["tokens"]), "unit_lengths": source["unit_lengths"], "labels": labels}


if __name__ == "__main__":
    for source_path in json.load(sys.stdin):
        print(json.dumps(read_file(source_path)))
