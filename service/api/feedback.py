"""The pages: static files that talk to the API and to nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from service.errors import WinnowError

FOLDER = Path(__file__).parent / "pages"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# No other server is ever asked, no inline script runs, and nobody may frame the page.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class PageNotFound(WinnowError):
    """There is no such file."""

    status, type, code = 404, "invalid_request_error", "not_found"


def page(name: str) -> Response:
    """A file of the pages' folder, by its name alone."""
    path = FOLDER / name
    return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=HEADERS)


def assets() -> APIRouter:
    """Style and scripts, for every page."""
    router = APIRouter(include_in_schema=False)
    known = {path.name for path in FOLDER.iterdir() if path.suffix in (".css", ".js")}

    @router.get("/pages/{name}")
    def asset(name: str) -> Response:
        if name not in known:
            raise PageNotFound(f"no file {name!r}")
        return page(name)

    return router


def routes() -> APIRouter:
    """The pages of labelling and training."""
    router = APIRouter(include_in_schema=False)

    def serving(name: str) -> Callable[[], Response]:
        return lambda: page(name)

    router.add_api_route("/feedback", serving("feedback.html"), methods=["GET"])
    router.add_api_route("/feedback/rewards", serving("rewards.html"), methods=["GET"])
    return router
