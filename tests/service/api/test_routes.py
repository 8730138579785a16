"""What a route does stands elsewhere: it asks who calls, calls one use case, and answers."""

from __future__ import annotations

import ast
import inspect
from textwrap import dedent

from tests.service.api.server import Served

LINES = 15


def test_a_route_has_few_lines(server: Served) -> None:
    long = {}
    for route in server.app.state.routes:
        for found in ast.parse(dedent(inspect.getsource(route.endpoint))).body:
            if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (found.end_lineno or 0) - found.body[0].lineno + 1
                if lines > LINES:
                    long[f"{route.path} {found.name}"] = lines
    assert len(server.app.state.routes) > 30
    assert not long
