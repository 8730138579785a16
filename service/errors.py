"""Every fault that a caller can meet, with its HTTP status and OpenAI-style code.

WinnowError
├── InvalidValue        400  invalid_value        the request names a field and breaks its limit
├── ModerationBlocked   400  moderation_blocked   every image was blocked: an outcome, not a fault
├── InvalidApiKey       401  invalid_api_key
├── PolicyNotAllowed    403  policy_not_allowed   the key lacks the scope
├── OriginRefused       403  origin_refused       nothing shows that our own page sent the request
├── PolicyDisabled      403  policy_disabled      somebody switched the policy off: no pixels leave
├── ModelNotFound       404  model_not_found
├── PolicyNotFound      404  policy_not_found
├── DecisionNotFound    404  decision_not_found
├── DatasetNotFound     404  dataset_not_found
├── RewardNotFound      404  reward_not_found
├── CertificateNotFound 404  certificate_not_found
├── PolicyNotReady      409  policy_not_ready     it waits for its reward: no pixels leave
├── Conflict            409  conflict             what was asked for no longer fits what there is
├── BodyTooLarge        413  body_too_large
├── Overloaded          429  overloaded           retry after `retry_after_s`
├── CensorUnavailable   503  censor_unavailable   the judge did not judge: no pixels leave
├── BackendUnavailable  503  backend_unavailable  no backbone replica could draw
├── StoreUnavailable    503  store_unavailable    the decision was not recorded: no pixels leave
│   └── BlobMissing                               an image or a network is not there (any more)
└── DeadlineExceeded    504  deadline_exceeded    nothing was delivered in time
"""

from __future__ import annotations

from typing import ClassVar


class WinnowError(Exception):
    """A fault with a message for the caller. Pickles across processes as its arguments."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, param, retry_after_s)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class InvalidValue(WinnowError):
    status, type, code = 400, "invalid_request_error", "invalid_value"


class ModerationBlocked(WinnowError):
    status, type, code = 400, "image_generation_user_error", "moderation_blocked"


class InvalidApiKey(WinnowError):
    status, type, code = 401, "authentication_error", "invalid_api_key"


class PolicyNotAllowed(WinnowError):
    status, type, code = 403, "permission_error", "policy_not_allowed"


class OriginRefused(WinnowError):
    status, type, code = 403, "permission_error", "origin_refused"


class PolicyDisabled(WinnowError):
    status, type, code = 403, "permission_error", "policy_disabled"


class ModelNotFound(WinnowError):
    status, type, code = 404, "invalid_request_error", "model_not_found"


class PolicyNotFound(WinnowError):
    status, type, code = 404, "invalid_request_error", "policy_not_found"


class DecisionNotFound(WinnowError):
    status, type, code = 404, "invalid_request_error", "decision_not_found"


class DatasetNotFound(WinnowError):
    status, type, code = 404, "invalid_request_error", "dataset_not_found"


class RewardNotFound(WinnowError):
    status, type, code = 404, "invalid_request_error", "reward_not_found"


class CertificateNotFound(WinnowError):
    status, type, code = 404, "invalid_request_error", "certificate_not_found"


class Conflict(WinnowError):
    status, type, code = 409, "invalid_request_error", "conflict"


class PolicyNotReady(WinnowError):
    status, type, code = 409, "invalid_request_error", "policy_not_ready"


class BodyTooLarge(WinnowError):
    status, type, code = 413, "invalid_request_error", "body_too_large"


class Overloaded(WinnowError):
    status, type, code, retryable = 429, "rate_limit_error", "overloaded", True
    refused_by: str | None = None


class CensorUnavailable(WinnowError):
    status, code, retryable = 503, "censor_unavailable", True


class BackendUnavailable(WinnowError):
    status, code, retryable = 503, "backend_unavailable", True


class StoreUnavailable(WinnowError):
    status, code, retryable = 503, "store_unavailable", True


class BlobMissing(StoreUnavailable):
    """There is no such blob: it was purged, say. What is there and unreadable is not this."""


class DeadlineExceeded(WinnowError):
    status, code = 504, "deadline_exceeded"
