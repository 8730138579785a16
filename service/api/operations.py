"""What each route answers and refuses, as data for its description.

A test holds the list against the routes, and every answer that the tests of the API get against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from service import errors
from service.api import response_schemas
from service.errors import WinnowError

Fault = type[WinnowError]


@dataclass(frozen=True)
class Operation:
    """`answer` is a model of JSON, or other media types; `faults` are this route's alone."""

    answer: type[BaseModel] | str
    faults: tuple[Fault, ...] = ()


EVERYWHERE: tuple[Fault, ...] = (
    errors.InvalidValue,  # an X-Request-ID, a parameter
    errors.InvalidApiKey,  # without keys, a foreign Host
    errors.MethodNotAllowed,
    errors.RequestTimeout,
    errors.HeadTooLarge,
    errors.Overloaded,  # as many requests or connections as may
    errors.Stopping,
    errors.NotFound,  # a part of the path that no name is as long as
    WinnowError,
)
KEYED: tuple[Fault, ...] = (errors.PolicyNotAllowed, errors.StoreUnavailable)
UNSAFE: tuple[Fault, ...] = (errors.OriginRefused,)
BODY: tuple[Fault, ...] = (errors.BodyTooLarge, errors.UnsupportedMedia)

_REPLICAS: tuple[Fault, ...] = (errors.CensorUnavailable, errors.BackendUnavailable)
_POLICY: tuple[Fault, ...] = (errors.PolicyNotFound,)
_NAMED: tuple[Fault, ...] = (*_POLICY, errors.PolicyDisabled, errors.PolicyNotReady)
_VERSION: tuple[Fault, ...] = (*_POLICY, errors.Conflict)
_DECISION: tuple[Fault, ...] = (errors.DecisionNotFound, errors.Conflict)
_CERTIFICATE: tuple[Fault, ...] = (errors.CertificateNotFound, errors.Conflict)
_DATASET: tuple[Fault, ...] = (errors.DatasetNotFound, errors.Conflict)
_DRAWS: tuple[Fault, ...] = (*_REPLICAS, errors.Overloaded, errors.DeadlineExceeded)

OPERATIONS: dict[str, Operation] = {
    "POST /v1/images/generations": Operation(
        response_schemas.Generation,
        (errors.ModerationBlocked, errors.ModelNotFound, *_NAMED, *_DRAWS),
    ),
    "POST /v1/moderations": Operation(
        response_schemas.Moderation, (*_NAMED, *_REPLICAS, errors.Overloaded)
    ),
    "GET /v1/models": Operation(response_schemas.Models),
    "GET /v1/models/{name}": Operation(response_schemas.Model, (errors.ModelNotFound,)),
    "GET /v1/policies": Operation(response_schemas.Policies),
    "POST /v1/policies": Operation(
        response_schemas.PolicyVersion, (*_VERSION, errors.RewardNotFound, errors.DatasetNotFound)
    ),
    "GET /v1/policies/{name}": Operation(response_schemas.Policy, _POLICY),
    "POST /v1/policies/{name}/promote": Operation(
        response_schemas.Pointer, (*_VERSION, *_REPLICAS, errors.RewardNotFound)
    ),
    "POST /v1/policies/{name}/rollback": Operation(
        response_schemas.Pointer, (*_VERSION, *_REPLICAS)
    ),
    "POST /v1/policies/{name}/disable": Operation(response_schemas.Pointer, _VERSION),
    "POST /v1/policies/{name}/shadow": Operation(response_schemas.Pointer, (*_VERSION, *_REPLICAS)),
    "GET /v1/policies/{name}/versions": Operation(response_schemas.PolicyVersions, _POLICY),
    "GET /v1/policies/{name}/history": Operation(response_schemas.History, _POLICY),
    "POST /v1/policies/{name}/certify": Operation(
        response_schemas.Certificate, (*_NAMED, errors.Conflict, errors.BackendUnavailable)
    ),
    "GET /v1/certificates": Operation(response_schemas.Certificates),
    "GET /v1/certificates/{certificate_id}": Operation(response_schemas.Certificate, _CERTIFICATE),
    "POST /v1/certificates/{certificate_id}/batches": Operation(
        response_schemas.Pictures, _CERTIFICATE
    ),
    "POST /v1/certificates/{certificate_id}/labels": Operation(
        response_schemas.Certificate, _CERTIFICATE
    ),
    "POST /v1/certificates/{certificate_id}/labels/undo": Operation(
        response_schemas.Withdrawn, _CERTIFICATE
    ),
    "POST /v1/certificates/{certificate_id}/abandon": Operation(
        response_schemas.Certificate, _CERTIFICATE
    ),
    "GET /v1/certificates/{certificate_id}/evidence": Operation("application/zip", _CERTIFICATE),
    "GET /v1/decisions": Operation(response_schemas.Decisions),
    "GET /v1/decisions/{decision_id}": Operation(response_schemas.Decision, _DECISION),
    "GET /v1/decisions/{decision_id}/explanation": Operation(
        response_schemas.Explanation, _DECISION
    ),
    "GET /v1/decisions/{decision_id}/reports": Operation(response_schemas.Reports, _DECISION),
    "POST /v1/decisions/{decision_id}/report": Operation(
        response_schemas.Reported, (*_DECISION, errors.DatasetNotFound, *_DRAWS)
    ),
    "POST /v1/decisions/{decision_id}/draw": Operation(
        response_schemas.Drawn, (*_DECISION, *_DRAWS)
    ),
    "GET /v1/datasets": Operation(response_schemas.Datasets),
    "POST /v1/datasets": Operation(
        response_schemas.Dataset, (errors.ModelNotFound, errors.Conflict)
    ),
    "GET /v1/datasets/{name}": Operation(response_schemas.Dataset, (errors.DatasetNotFound,)),
    "POST /v1/datasets/{name}/batches": Operation(
        response_schemas.Batch, (*_DATASET, *_NAMED, *_DRAWS)
    ),
    "POST /v1/datasets/{name}/labels": Operation(response_schemas.Dataset, _DATASET),
    "POST /v1/datasets/{name}/labels/undo": Operation(response_schemas.Undone, _DATASET),
    "GET /v1/datasets/{name}/images/{image_id}": Operation(
        "image/png", (*_DATASET, errors.ImageNotFound)
    ),
    "GET /v1/datasets/{name}/export": Operation("application/jsonl, text/csv", _DATASET),
    "POST /v1/datasets/{name}/import": Operation(response_schemas.Imported, _DATASET),
    "GET /v1/rewards": Operation(response_schemas.Rewards),
    "POST /v1/rewards": Operation(response_schemas.Reward, (*_DATASET, *_POLICY)),
    "GET /v1/rewards/{reward_id}": Operation(response_schemas.Reward, (errors.RewardNotFound,)),
    "POST /v1/rewards/{reward_id}/cancel": Operation(
        response_schemas.Reward, (errors.RewardNotFound, errors.Conflict)
    ),
    "POST /v1/session": Operation(response_schemas.SessionOpened),
    "GET /v1/session": Operation(response_schemas.Session),
    "DELETE /v1/session": Operation(response_schemas.SessionClosed, UNSAFE),
    "GET /-/healthz": Operation("text/plain"),
    "GET /health/live": Operation(response_schemas.Live),
    "GET /health/ready": Operation(response_schemas.Ready, (*_REPLICAS, errors.StoreUnavailable)),
    "GET /metrics": Operation("text/plain"),
    "GET /openapi.json": Operation(response_schemas.Document),
    "GET /pages/{name}": Operation("text/css, text/javascript"),
    **{
        f"GET {page}": Operation("text/html")
        for page in (
            "/feedback",
            "/feedback/rewards",
            "/policies",
            "/certificates",
            "/certificates/{id}",
            "/decisions",
            "/decisions/{id}",
            "/docs",
        )
    },
    "GET /": Operation("redirect"),
}
