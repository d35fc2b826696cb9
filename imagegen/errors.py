"""Every error that a caller or an operator can meet.

    Exception
    ├── ConfigurationError        the operator's: a setting, a token, weights that are not there
    │   └── Unavailable           it may be well later: the hub could not be reached
    └── ImageGenError             the caller's answer: a code, an HTTP status, a message, the field at fault
        ├── InvalidInput          invalid_input 422       a field is missing, unknown, or out of its bounds
        ├── BadReference          bad_reference 422       a reference cannot be fetched, or cannot be read
        ├── BadLora               bad_lora 422            a LoRA adapter cannot be fetched, or is none of this model
        ├── PayloadTooLarge       payload_too_large 413   a reference is over the limit in bytes
        ├── Unauthorized          unauthorized 401        no API key, or a wrong one
        ├── Forbidden             forbidden 403           the Host header or the page's origin is not allowed
        ├── NotFound              not_found 404           there is no such page or job
        ├── Conflict              conflict 409            the job is in no state for this
        ├── Expired               expired 410             the job's result was kept for as long as was promised
        ├── IdempotencyKeyReuse   idempotency_key_reuse 422  the Idempotency-Key came before with another body
        ├── StoreFailed           store_failed 507        the store of jobs cannot be written to: its disk is full
        ├── MethodNotAllowed      method_not_allowed 405  the page is there, and not for this method
        ├── UnsupportedMediaType  unsupported_media_type 415  the body is neither JSON nor a form
        ├── Overloaded            overloaded 429          the queue is full; Retry-After says when it may not be
        ├── LimitExceeded         limit_exceeded 429      the key has had what it may have in this time
        ├── NotReady              not_ready 503           the model is loading, or the worker is ending
        ├── LoadFailed            load_failed 503         the model cannot be loaded; the message says what to do
        ├── ResultTooLarge        result_too_large 413    the answer would be over the limit of its transport
        ├── DeliveryFailed        delivery_failed 502     the images could not be stored in the object store
        ├── OutOfMemory           out_of_memory 507       the image did not fit the GPU; the worker goes on
        ├── GpuFailed             gpu_failed 503          the GPU is dead; the worker asks to be replaced
        ├── Cancelled             cancelled 499           the caller stopped the job
        ├── DeadlineExceeded      deadline_exceeded 504   the job's own timeout ran out
        └── Internal              internal 500            a bug: an id to look up in the log

A message is public: it names the field, what was received and what is allowed. It never holds a path, a traceback or
a secret.
"""

from __future__ import annotations

import logging
import secrets
import traceback
from typing import ClassVar, TypedDict

log = logging.getLogger(__name__)


class ErrorBody(TypedDict):
    """The error object of the contract."""

    code: str
    message: str
    field: str | None
    retryable: bool


class ConfigurationError(Exception):
    """The worker cannot start as it is set up; the message says what to do."""


class Unavailable(ConfigurationError):
    """The worker cannot start now, and may be able to later."""


class ImageGenError(Exception):
    """An error of the contract.

    Args:
        message: public; for an error of a field it begins with the field's name.
        field: the field at fault, such as "width" or "images[1]".
        retry_after: seconds after which to try again, for HTTP's Retry-After.
    """

    code: ClassVar[str]
    status: ClassVar[int]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after

    def body(self) -> ErrorBody:
        """The error object, as HTTP sends it under "error"."""
        return {"code": self.code, "message": self.message, "field": self.field, "retryable": self.retryable}

    def output(self) -> dict[str, object]:
        """The same as RunPod's SDK wants it: `error` is a string, the rest becomes the job's output.

        An error that only a new worker can solve asks for one (`refresh_worker`).
        """
        answer: dict[str, object] = {
            "error": f"{self.code}: {self.message}",
            "code": self.code,
            "field": self.field,
            "retryable": self.retryable,
        }
        if isinstance(self, GpuFailed):
            answer["refresh_worker"] = True
        return answer


class InvalidInput(ImageGenError):
    """A field is missing, unknown, of the wrong type, or out of its bounds."""

    code, status = "invalid_input", 422


class BadReference(ImageGenError):
    """A reference image cannot be used."""

    code, status = "bad_reference", 422


class BadLora(ImageGenError):
    """A LoRA adapter cannot be used: it is broken, or for another model."""

    code, status = "bad_lora", 422


class PayloadTooLarge(ImageGenError):
    """A reference is over the limit in bytes."""

    code, status = "payload_too_large", 413


class Unauthorized(ImageGenError):
    """No API key, or a wrong one."""

    code, status = "unauthorized", 401


class Forbidden(ImageGenError):
    """The Host header names another server, or the request comes from a web page that may not call this one."""

    code, status = "forbidden", 403


class NotFound(ImageGenError):
    """There is no such page or job."""

    code, status = "not_found", 404


class Conflict(ImageGenError):
    """The job is in no state for this."""

    code, status = "conflict", 409


class Expired(ImageGenError):
    """The job's result was kept for as long as was promised, and is gone."""

    code, status = "expired", 410


class IdempotencyKeyReuse(ImageGenError):
    """The Idempotency-Key came before with another body."""

    code, status = "idempotency_key_reuse", 422


class StoreFailed(ImageGenError):
    """The store of jobs cannot be written to: its disk is full, or broken."""

    code, status, retryable = "store_failed", 507, True


class MethodNotAllowed(ImageGenError):
    """The page is there, and not for this method."""

    code, status = "method_not_allowed", 405


class UnsupportedMediaType(ImageGenError):
    """The body is neither JSON nor a form."""

    code, status = "unsupported_media_type", 415


class Overloaded(ImageGenError):
    """The queue is full."""

    code, status, retryable = "overloaded", 429, True


class LimitExceeded(ImageGenError):
    """The key has had as much as it may in this time; `field` is the limit's name."""

    code, status, retryable = "limit_exceeded", 429, True


class NotReady(ImageGenError):
    """The model is loading, or the worker is ending."""

    code, status, retryable = "not_ready", 503, True


class LoadFailed(ImageGenError):
    """The model cannot be loaded."""

    code, status = "load_failed", 503


class ResultTooLarge(ImageGenError):
    """The encoded answer is larger than its transport can carry."""

    code, status = "result_too_large", 413


class DeliveryFailed(ImageGenError):
    """The object store could not be reached, or refused the images."""

    code, status, retryable = "delivery_failed", 502, True


class OutOfMemory(ImageGenError):
    """The image did not fit the GPU's memory, which has been freed."""

    code, status = "out_of_memory", 507


class GpuFailed(ImageGenError):
    """The GPU failed in a way that this process cannot recover from."""

    code, status, retryable = "gpu_failed", 503, True


class Cancelled(ImageGenError):
    """The caller stopped the job."""

    code, status = "cancelled", 499


class DeadlineExceeded(ImageGenError):
    """The job's timeout ran out, waiting included."""

    code, status, retryable = "deadline_exceeded", 504, True


class Internal(ImageGenError):
    """A bug. The message holds an id under which the log has the cause."""

    code, status, retryable = "internal", 500, True


def internal(error: Exception) -> Internal:
    """Logs a bug's class and place under an id, and returns the error that gives the caller this id.

    The bug's own message is in neither: it may hold what the caller sent.
    """
    number = secrets.token_hex(4)
    places = "".join(traceback.format_tb(error.__traceback__))
    log.error("internal error %s: %s\n%s", number, type(error).__name__, places)
    return Internal(f"something failed inside the worker; its log has the cause under {number}")
