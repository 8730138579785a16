"""Every fault that a caller can meet, with its HTTP status and OpenAI-style code.

WinnowError
├── InvalidValue        400  invalid_value        the request names a field and breaks its limit
├── ModerationBlocked   400  moderation_blocked   every image was blocked: an outcome, not a fault
├── InvalidHttp         400  invalid_http         what was sent is no HTTP/1.1
├── InvalidApiKey       401  invalid_api_key
│   └── SessionEnded                              a cookie that holds no longer, or never did
├── PolicyNotAllowed    403  policy_not_allowed   the key lacks the scope
├── OriginRefused       403  origin_refused       nothing shows that our own page sent the request
├── PolicyDisabled      403  policy_disabled      somebody switched the policy off: no pixels leave
├── ModelNotFound       404  model_not_found
├── PolicyNotFound      404  policy_not_found
├── DecisionNotFound    404  decision_not_found
├── DatasetNotFound     404  dataset_not_found
├── ImageNotFound       404  image_not_found      it was purged, or cannot be read
├── RewardNotFound      404  reward_not_found
├── CertificateNotFound 404  certificate_not_found
├── NotFound            404  not_found            no such path
├── MethodNotAllowed    405  method_not_allowed   the path has others: `Allow` names them
├── RequestTimeout      408  request_timeout      head or body took too long to arrive
├── PolicyNotReady      409  policy_not_ready     it waits for its reward: no pixels leave
├── Conflict            409  conflict             what was asked for no longer fits what there is
├── BodyTooLarge        413  body_too_large
├── UnsupportedMedia    415  unsupported_media_type   not JSON by its Content-Type, or compressed
├── HeadTooLarge        431  head_too_large
├── Overloaded          429  overloaded           retry after `retry_after_s`
├── Stopping            503  stopping             the service ends: it takes no new requests
├── CensorUnavailable   503  censor_unavailable   the judge did not judge: no pixels leave
├── BackendUnavailable  503  backend_unavailable  no backbone replica could draw
├── StoreUnavailable    503  store_unavailable    the decision was not recorded: no pixels leave
│   └── BlobUnreadable                            one image or network cannot be read, others can
│       └── BlobMissing                           it is not there (any more)
└── DeadlineExceeded    504  deadline_exceeded    nothing was delivered in time
"""

from __future__ import annotations

from typing import ClassVar

LONGEST = 64
"""Characters of a caller's words that a message repeats."""


def shown(text: str) -> str:
    """A caller's words as a message may repeat them: quoted, cut, and printable."""
    found = repr(text[: LONGEST + 1])
    return found if len(found) <= LONGEST + 2 else f"{found[:LONGEST]}…{found[0]}"


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


class InvalidHttp(WinnowError):
    status, type, code = 400, "invalid_request_error", "invalid_http"


class InvalidApiKey(WinnowError):
    status, type, code = 401, "authentication_error", "invalid_api_key"


class SessionEnded(InvalidApiKey):
    """A cookie that this server did not sign, or that has expired: nobody is meant by it."""


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


class ImageNotFound(WinnowError):
    status, type, code = 404, "invalid_request_error", "image_not_found"


class RewardNotFound(WinnowError):
    status, type, code = 404, "invalid_request_error", "reward_not_found"


class CertificateNotFound(WinnowError):
    status, type, code = 404, "invalid_request_error", "certificate_not_found"


class NotFound(WinnowError):
    status, type, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowed(WinnowError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTimeout(WinnowError):
    """Not to be tried again by itself: a client that sends too slowly would do so once more."""

    status, type, code = 408, "invalid_request_error", "request_timeout"


class Conflict(WinnowError):
    status, type, code = 409, "invalid_request_error", "conflict"


class PolicyNotReady(WinnowError):
    status, type, code = 409, "invalid_request_error", "policy_not_ready"


class BodyTooLarge(WinnowError):
    status, type, code = 413, "invalid_request_error", "body_too_large"


class UnsupportedMedia(WinnowError):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class HeadTooLarge(WinnowError):
    status, type, code = 431, "invalid_request_error", "head_too_large"


class Overloaded(WinnowError):
    status, type, code, retryable = 429, "rate_limit_error", "overloaded", True


class Stopping(WinnowError):
    status, code, retryable = 503, "stopping", True


class CensorUnavailable(WinnowError):
    status, code, retryable = 503, "censor_unavailable", True


class BackendUnavailable(WinnowError):
    status, code, retryable = 503, "backend_unavailable", True


class StoreUnavailable(WinnowError):
    status, code, retryable = 503, "store_unavailable", True


class BlobUnreadable(StoreUnavailable):
    """One blob was changed or cannot be read, and the store is there: to ask again is no use."""

    retryable = False


class BlobMissing(BlobUnreadable):
    """There is no such blob: it was purged, say. What is there and unreadable is not this."""


class DeadlineExceeded(WinnowError):
    status, code = 504, "deadline_exceeded"
