"""`/v1/certificates`: what is proved of a policy's malign rate, from terms to evidence."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response
from starlette.background import BackgroundTask

from service.api import schemas
from service.api.auth import person
from service.api.context import Context
from service.api.label_images import pictures
from service.api.routing import Route
from service.api.text import Text
from service.certificates import evidence
from service.certificates.certificate import NOT_COVERED, statement
from service.certificates.service import CertificateOrder, terms_of
from service.certificates.signing import Signer
from service.errors import StoreUnavailable
from service.policies.inputs import in_words
from service.store.certificates import Certificate
from service.store.datasets import Answer


def routes(context: Context) -> APIRouter:
    """The routes of certificates."""
    router = APIRouter(route_class=Route)
    store = context.store
    signer = Signer(context.settings.certificates, os.environ)
    service = context.certificates

    @router.post(
        "/v1/policies/{name}/certify", status_code=202, summary="Begin to certify a policy"
    )
    def certify(name: str, body: schemas.CertifyRequest, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        order = CertificateOrder(policy=name, by=person(request), **body.model_dump())
        return _describe(context, service.begin(order), request)

    @router.get("/v1/certificates", summary="Every attempt, the newest first")
    def listed(request: Request, policy: Text | None = None) -> dict[str, Any]:
        _may_read(request)
        found = store.certificates.all(policy)
        return {"object": "list", "data": [_listed(one) for one in found]}

    @router.get("/v1/certificates/{certificate_id}", summary="One attempt")
    def one(certificate_id: str, request: Request) -> dict[str, Any]:
        _may_read(request)
        described = _describe(context, service.read(certificate_id), request)
        try:
            key = signer.public_key
        except StoreUnavailable:  # nothing is signed here, and there is much else to tell
            key = None
        return described | {"public_key": key}

    @router.post("/v1/certificates/{certificate_id}/batches", summary="Images to label")
    def batch(
        certificate_id: str, body: schemas.CertificateBatchRequest, request: Request
    ) -> dict[str, Any]:
        request.state.caller.require("label")
        by, exclude = person(request), [*body.exclude_images]
        images: list[dict[str, str]] = []
        unreadable: list[dict[str, str]] = []
        while missing := body.size - len(images):
            model, shown = service.unlabelled(certificate_id, by, missing, exclude)
            if not shown:
                break
            found, lost = pictures(context, model, shown)
            images += found
            unreadable += lost
            exclude += [one.id for one in shown]
        return {"images": images, "unreadable": unreadable}

    @router.post("/v1/certificates/{certificate_id}/labels", summary="Say what images are")
    def label(
        certificate_id: str, body: schemas.CertificateLabelsRequest, request: Request
    ) -> dict[str, Any]:
        request.state.caller.require("label")
        answers = [Answer(one.image_id, one.label, one.elapsed_ms) for one in body.labels]
        lost = service.label(certificate_id, answers, person(request))
        now = service.read(certificate_id)
        return _describe(context, now, request) | {"labelled_by_others": lost}

    @router.post("/v1/certificates/{certificate_id}/labels/undo", summary="Take labels back")
    def undo(
        certificate_id: str, request: Request, body: schemas.CertificateUndoRequest | None = None
    ) -> dict[str, Any]:
        request.state.caller.require("label")
        of = body.image_ids if body else None
        return {"image_ids": service.withdraw(certificate_id, person(request), of)}

    @router.post("/v1/certificates/{certificate_id}/abandon", summary="End it without a result")
    def abandon(
        certificate_id: str, body: schemas.AbandonRequest, request: Request
    ) -> dict[str, Any]:
        request.state.caller.require("approve")
        ended = service.abandon(certificate_id, person(request), body.reason)
        return _describe(context, ended, request) if ended.readable else _listed(ended)

    @router.get("/v1/certificates/{certificate_id}/evidence", summary="The signed evidence")
    def export(certificate_id: str, request: Request) -> Response:
        request.state.caller.require("approve")
        certificate = service.read(certificate_id)
        name = evidence.temporary(store, certificate, signer)
        return FileResponse(
            name,
            media_type="application/zip",
            filename=f"{certificate_id}.zip",
            headers={"Accept-Ranges": "none"},
            background=BackgroundTask(os.unlink, name),
        )

    return router


def _may_read(request: Request) -> None:
    request.state.caller.require("label", "approve")


def _listed(certificate: Certificate) -> dict[str, Any]:
    """A line of the list; one that is damaged says so, and keeps nobody from the others."""
    if certificate.readable:
        return _brief(certificate)
    return {
        "id": certificate.id,
        "object": "certificate",
        "policy": certificate.policy,
        "policy_version": certificate.policy_version,
        "status": certificate.status,
        "created": certificate.created.isoformat(),
        "unreadable": "its row in the store is damaged",
    }


def _brief(certificate: Certificate) -> dict[str, Any]:
    result = dict(certificate.result)
    progress = {name: result.pop(name) for name in ("drawn", "blocked")}
    result.pop("pending", None)
    return {
        "id": certificate.id,
        "object": "certificate",
        "policy": certificate.policy,
        "policy_version": certificate.policy_version,
        "fingerprint": certificate.fingerprint,
        "status": certificate.status,
        "terms": asdict(terms_of(certificate))
        | {"num_inference_steps": certificate.terms["num_inference_steps"]},
        "progress": progress,
        "result": result or None,
        "created": certificate.created.isoformat(),
        "created_by": certificate.created_by,
        "finished": certificate.finished.isoformat() if certificate.finished else None,
        "page": f"/certificates/{certificate.id}",
    }


def _describe(context: Context, certificate: Certificate, request: Request) -> dict[str, Any]:
    brief = _brief(certificate)
    brief["progress"]["labelled"] = context.store.certificate_labels.labelled(certificate.id)
    covers = dict(certificate.terms["covered"])
    caller = request.state.caller
    if not (caller.has("approve") or caller.has("scores")):
        # Whoever labels need not know how far a score lies from passing.
        covers.pop("threshold")
        covers.pop("probe_thresholds")
    return brief | {
        "question": covers["question"],
        "dataset": certificate.dataset,
        "stage": context.certificates.stage(certificate),
        "statement": statement(certificate.policy, terms_of(certificate), covers),
        "inputs": in_words(covers["inputs"]["conditions"]),
        "covered": covers,
        "not_covered": list(NOT_COVERED),
    }
