"""The pages: static files that talk to the API and to nothing else.

They hold nothing that needs a key; what they show comes through the API, which asks for one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

from service.api.routing import PageRoute
from service.errors import NotFound

FOLDER = Path(__file__).parent / "static"
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

# A path, its word in the bar on top, and its file.
LABELLING = {"/feedback": ("Label", "feedback"), "/feedback/rewards": ("Rewards", "rewards")}
REVIEWING = {
    "/policies": ("Policies", "policies"),
    "/certificates": ("Certificates", "certificates"),
    "/decisions": ("Decisions", "decisions"),
}
OTHERS = {"/certificates/{id}": "certificate", "/decisions/{id}": "decision", "/docs": "docs"}
# Swagger UI comes from a package, and not from a network: a laptop may have none.
SWAGGER = files("fastapi_offline") / "static"
SWAGGER_FILES = ("swagger-ui.css", "swagger-ui-bundle.js")


def routes(labelling: bool) -> APIRouter:
    """The pages, and what they load. Without `labelling` those of the labelling service are left
    out."""
    router = APIRouter(route_class=PageRoute)
    listed = LABELLING | REVIEWING if labelling else REVIEWING
    parts = {
        "head": _text("head"),
        "bar": _text("bar").replace("<!-- links -->", _links(listed)),
        "login": _text("login"),
    }
    pages = {path: name for path, (_, name) in listed.items()} | OTHERS

    def serving(name: str) -> Callable[[], Response]:
        return lambda: _file(f"{name}.html", _composed(_text(name), parts))

    for path, name in pages.items():
        router.add_api_route(path, serving(name), methods=["GET"])
    assets = {path.name for path in FOLDER.iterdir() if path.suffix in (".css", ".js")}

    @router.get("/pages/{name}")
    def asset(name: str) -> Response:
        if name not in (*assets, *SWAGGER_FILES):
            raise NotFound(f"no file {name!r}")
        folder = SWAGGER if name in SWAGGER_FILES else FOLDER
        return _file(name, (folder / name).read_text())

    @router.get("/")
    def root() -> Response:
        return RedirectResponse(next(iter(listed)))

    return router


def _text(name: str) -> str:
    return (FOLDER / f"{name}.html").read_text()


def _links(listed: Mapping[str, tuple[str, str]]) -> str:
    """The links of the bar; a script says which of them is here."""
    return "\n    ".join(f'<a href="{path}">{word}</a>' for path, (word, _) in listed.items())


def _composed(text: str, parts: Mapping[str, str]) -> str:
    """A page with the parts that all pages share."""
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->\n", part)
    return text


def _file(name: str, text: str) -> Response:
    return Response(text, media_type=TYPES[Path(name).suffix], headers=HEADERS)
