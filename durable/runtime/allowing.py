"""Which lines may do what is forbidden: those of statements with a comment ``# durable: allow``.

The comment counts on any line of its statement; of a compound one, on any line of its head. Where
there is no source, as in an interactive session, nothing is allowed.
"""

from __future__ import annotations

import linecache
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ALLOWED: Final = re.compile(r"#\s*durable:\s*allow\b")

_lines_by_file: dict[str, tuple[list[str], frozenset[int]]] = {}
"""What was read of each file, and which of its lines are allowed."""


def is_allowed(file: str, line: int, namespace: dict[str, Any]) -> bool:
    """Whether a comment allows what a line does.

    Args:
        namespace: The globals of its module, whose loader may know the source.
    """
    lines = linecache.getlines(file, namespace)
    known = _lines_by_file.get(file)
    if known is None or known[0] is not lines:
        known = _lines_by_file[file] = (lines, frozenset(_allowed_in(lines)))
    return line in known[1]


def _allowed_in(lines: list[str]) -> Iterable[int]:
    said = [number for number, line in enumerate(lines, 1) if ALLOWED.search(line)]
    if not said:
        return ()
    import tokenize  # noqa: PLC0415  late: few files have such a comment

    try:
        return list(_statements_with_comment(lines))
    except (tokenize.TokenError, SyntaxError):
        return said  # It is no whole module: where its statements begin cannot be told.


def _statements_with_comment(lines: list[str]) -> Iterator[int]:
    import tokenize  # noqa: PLC0415  late: as above

    between = (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
    begin, is_said = 0, False
    for token in tokenize.generate_tokens(iter(lines).__next__):
        if token.type == tokenize.COMMENT:
            is_said = is_said or (begin > 0 and ALLOWED.search(token.string) is not None)
        elif token.type == tokenize.NEWLINE:
            if is_said:
                yield from range(begin, token.start[0] + 1)
            begin, is_said = 0, False
        elif not begin and token.type not in between:
            begin = token.start[0]
