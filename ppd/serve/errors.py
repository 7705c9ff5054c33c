"""Errors as OpenAI's interface has them: a status, and an object that says what was wrong with which field."""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ppd.errors import ArgumentError, ContextError, PPDError, TokenizerError

INVALID, SERVER, LIMIT, KEY = "invalid_request_error", "server_error", "rate_limit_error", "authentication_error"
_SENT = {"stop_ids": "stop_token_ids", "draft": "ppd.draft", "acceptance": "ppd.acceptance"}
"""What requests call options that have other names in `ppd.runtime.Options`."""
_logger = logging.getLogger("ppd.serve")


class ApiError(PPDError):
    """A request that is refused, or that fails.

    Args:
        param: The field that it is about.
        code: A word for programs.
        headers: More headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.kind, self.headers = status, param, code, kind, headers

    @property
    def body(self) -> dict[str, Any]:
        """The answer's body."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def wrong(param: str, value: object, expected: str) -> ApiError:
    """A field has a value that is not allowed."""
    return ApiError(400, f"{param} is {value!r:.80}; expected {expected}", param=param, code="invalid_value")


def busy(status: int, message: str, seconds: float, code: str) -> ApiError:
    """There is no room now; `seconds` says when there may be."""
    headers = {"Retry-After": str(max(1, round(seconds)))}
    return ApiError(status, message, code=code, kind=LIMIT if status == 429 else SERVER, headers=headers)


def wrong_option(error: ArgumentError) -> ApiError:
    """An option has a value that is not allowed; the error begins with its name."""
    name, _, rest = str(error).partition(" ")
    name = _SENT.get(name, name)
    return ApiError(400, f"{name} {rest}", param=name, code="invalid_value")


def from_error(error: BaseException, *, is_chat: bool = True) -> ApiError:
    """The answer to whatever went wrong. What is a bug here is logged, and the answer says nothing of the inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextError):
        return ApiError(400, str(error), param="messages" if is_chat else "prompt", code="context_length_exceeded")
    if isinstance(error, ArgumentError) and str(error).split(" ", 1)[0] in _SENT:
        return wrong_option(error)
    if isinstance(error, ArgumentError | TokenizerError):
        return ApiError(400, str(error), code="invalid_value")
    if not isinstance(error, PPDError):
        _logger.error("a request failed", exc_info=error)
    message = str(error) if isinstance(error, PPDError) else "something failed in the server; its log says what"
    return ApiError(500, message, kind=SERVER, code="internal_error")
