"""Two pages for reviewers: a certificate and a decision. Static files that talk to the API alone.

They hold nothing that needs a key; what they show comes through the API, which asks for one.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

FOLDER = Path(__file__).parent / "pages"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
ASSETS = ("certificate.css", "certificate.js", "decision.js")
# No other server is ever asked, no inline script runs, and nobody may frame the page.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes() -> APIRouter:
    """The pages and what they load; `style.css` and `api.js` are those of the labelling page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/certificates/{certificate_id}")
    def certificate(certificate_id: str) -> Response:
        return _file("certificate.html")

    @router.get("/decisions/{decision_id}")
    def decision(decision_id: str) -> Response:
        return _file("decision.html")

    for name in ASSETS:
        router.add_api_route(f"/pages/{name}", lambda name=name: _file(name), methods=["GET"])
    return router


def _file(name: str) -> Response:
    path = FOLDER / name
    return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=HEADERS)
