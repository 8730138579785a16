"""`/v1/certificates`: what is proved of a policy's malign rate, from terms to evidence."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response
from starlette.background import BackgroundTask

from models.noise import MAX_SEED
from service.api import schemas
from service.api.auth import person
from service.api.context import Context
from service.api.pictures import pictures
from service.api.text import Text
from service.certificates import evidence
from service.certificates.certificate import (
    NOT_COVERED,
    Terms,
    fingerprint,
    judge,
    statement,
    terms,
)
from service.certificates.drawing import Drawing
from service.certificates.signing import Signer
from service.errors import CertificateNotFound, InvalidValue, StoreUnavailable
from service.inputs import in_words, mix, parse, to_json
from service.policy import Overrides, Policy, resolve
from service.store.certificates import Certificate, Status
from service.store.datasets import Answer, Dataset

ID = re.compile(r"cert_[0-9a-f]{32}")
TERMS = ("epsilon", "delta", "attempt", "allowed", "delta_attempt", "n")


def routes(context: Context) -> APIRouter:
    """The routes of certificates."""
    router = APIRouter()
    store = context.store
    signer = Signer(context.settings.certificates, os.environ)
    drawings: set[asyncio.Task[None]] = set()

    @router.post(
        "/v1/policies/{name}/certify", status_code=202, summary="Begin to certify a policy"
    )
    async def certify(name: str, body: schemas.CertifyRequest, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        policy = _policy(context, name)
        # What no first attempt could promise is wrong, whatever else is open.
        terms(body.epsilon, body.delta, 1, body.allowed)
        seed = secrets.randbelow(MAX_SEED + 1)
        wishes = Overrides(num_inference_steps=body.num_inference_steps)
        plan = resolve(policy, wishes, seed, admin=False)
        steps = plan.method.num_inference_steps
        choices, limits = policy.choices(), context.settings.limits
        asked = [one.model_dump() for one in body.inputs]
        mixed = mix(parse(asked, choices, limits.prompt_chars), choices)
        inputs = to_json(mixed)
        covers = context.certified.covered(policy, steps, inputs)
        begun = f"cert_{uuid4().hex}"
        dataset = Dataset(
            name=f"certificate-{begun}",
            model=plan.model,
            question=covers["question"],
            inputs=inputs,
            purpose="certificate",
            created=datetime.now(UTC),
            created_by=person(request),
        )

        def fixed(attempt: int) -> dict[str, Any]:
            agreed = terms(body.epsilon, body.delta, attempt, body.allowed)
            return asdict(agreed) | {"num_inference_steps": steps, "covered": covers}

        certificate = await asyncio.to_thread(
            store.certificates.begin,
            dataset,
            begun,
            (name, plan.policy_version),
            fingerprint(covers),
            fixed,
        )
        drawing = Drawing(
            context.routers[plan.model],
            store,
            certificate,
            plan,
            certificate.terms["n"],
            mixed,
            policy.inputs,
        )
        task = asyncio.create_task(drawing.run())
        drawings.add(task)  # or it might be collected while it runs
        task.add_done_callback(drawings.discard)
        return await asyncio.to_thread(_describe, context, certificate, request)

    @router.get("/v1/certificates", summary="Every attempt, the newest first")
    def listed(request: Request, policy: Text | None = None) -> dict[str, Any]:
        _may_read(request)
        found = store.certificates.all(policy)
        return {"object": "list", "data": [_brief(one) for one in found]}

    @router.get("/v1/certificates/{certificate_id}", summary="One attempt")
    def one(certificate_id: str, request: Request) -> dict[str, Any]:
        _may_read(request)
        described = _describe(context, _read(context, certificate_id), request)
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
        certificate = _read(context, certificate_id)
        shown = store.certificate_labels.unlabelled(
            certificate_id, person(request), body.size, body.besides
        )
        return {"images": pictures(context, certificate.terms["covered"]["model"], shown)}

    @router.post("/v1/certificates/{certificate_id}/labels", summary="Say what images are")
    def label(
        certificate_id: str, body: schemas.CertificateLabelsRequest, request: Request
    ) -> dict[str, Any]:
        request.state.caller.require("label")
        certificate = _read(context, certificate_id)
        answers = [Answer(one.image_id, one.label, one.elapsed_ms) for one in body.labels]
        lost = store.certificate_labels.label(
            certificate_id, answers, person(request), _ending(certificate)
        )
        now = _read(context, certificate_id)
        if now.status == "passed":
            context.certified.refresh()
        return _describe(context, now, request) | {"labelled_by_others": lost}

    @router.post("/v1/certificates/{certificate_id}/labels/undo", summary="Take labels back")
    def undo(certificate_id: str, request: Request) -> dict[str, Any]:
        request.state.caller.require("label")
        _read(context, certificate_id)
        gone = store.certificate_labels.withdraw(certificate_id, person(request))
        return {"image_ids": gone}

    @router.post("/v1/certificates/{certificate_id}/abandon", summary="End it without a result")
    def abandon(
        certificate_id: str, body: schemas.AbandonRequest, request: Request
    ) -> dict[str, Any]:
        request.state.caller.require("approve")
        _read(context, certificate_id)
        store.certificates.abandon(certificate_id, person(request), body.reason)
        return _describe(context, _read(context, certificate_id), request)

    @router.get("/v1/certificates/{certificate_id}/evidence", summary="The signed evidence")
    def export(certificate_id: str, request: Request) -> Response:
        request.state.caller.require("approve")
        certificate = _read(context, certificate_id)
        # On disk, as it may be large; whoever downloads it slowly costs no memory.
        handle, name = tempfile.mkstemp(suffix=".zip")
        try:
            with os.fdopen(handle, "wb") as file:
                evidence.write(store, certificate, signer, file)
        except BaseException:
            os.unlink(name)
            raise
        return FileResponse(
            name,
            media_type="application/zip",
            filename=f"{certificate_id}.zip",
            background=BackgroundTask(os.unlink, name),
        )

    return router


def _policy(context: Context, name: str) -> Policy:
    policy = context.live.get(name)
    policy.refuse_waiting()
    if not policy.censors:
        raise InvalidValue(
            f"policy {name!r} censors nothing: there is nothing to certify", "policy"
        )
    return policy


def _read(context: Context, certificate_id: str) -> Certificate:
    if not ID.fullmatch(certificate_id):
        raise CertificateNotFound(f"no certificate {certificate_id!r}", "certificate")
    return context.store.certificates.read(certificate_id)


def _may_read(request: Request) -> None:
    request.state.caller.require("label", "approve")


def _terms(certificate: Certificate) -> Terms:
    return Terms(**{name: certificate.terms[name] for name in TERMS})


def _ending(certificate: Certificate) -> Any:
    """What ends an attempt: the last label."""

    def ending(labels: list[str | None], blocked: int) -> tuple[Status, dict[str, Any]] | None:
        result = judge(labels, _terms(certificate))
        if result is None:
            return None
        return "passed" if result.passed else "failed", asdict(result)

    return ending


def _brief(certificate: Certificate) -> dict[str, Any]:
    result = dict(certificate.result)
    progress = {name: result.pop(name) for name in ("drawn", "blocked")}
    result.pop("heartbeat", None)
    return {
        "id": certificate.id,
        "object": "certificate",
        "policy": certificate.policy,
        "policy_version": certificate.policy_version,
        "fingerprint": certificate.fingerprint,
        "status": certificate.status,
        "terms": asdict(_terms(certificate))
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
        "statement": statement(certificate.policy, _terms(certificate), covers),
        "inputs": in_words(covers["inputs"]["conditions"]),
        "covered": covers,
        "not_covered": list(NOT_COVERED),
    }
