"""Two pages for reviewers: a certificate and a decision. Static files that talk to the API alone.

They hold nothing that needs a key; what they show comes through the API, which asks for one.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from service.api.feedback import page


def routes() -> APIRouter:
    """The pages; what they load is served with those of labelling."""
    router = APIRouter(include_in_schema=False)

    @router.get("/certificates/{certificate_id}")
    def certificate(certificate_id: str) -> Response:
        return page("certificate.html")

    @router.get("/decisions/{decision_id}")
    def decision(decision_id: str) -> Response:
        return page("decision.html")

    return router
