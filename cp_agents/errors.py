"""One small hierarchy of errors.

Every message is one sentence for a person: what is wrong, where, and what was expected. The command line
prints it and ends with `exit_code`; nobody sees a traceback for a mistake in their input.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class CpAgentsError(Exception):
    """Base of all errors raised on purpose by cp-agents."""

    exit_code = 1


class InputError(CpAgentsError, ValueError):
    """The user's data or settings are wrong: a file, a record, a taxonomy, a flag."""

    exit_code = 2


def first_fault(error: ValidationError, whole: str = "it") -> str:
    """The first thing that pydantic found wrong, as `field.field: what`; `whole` is what a fault of no field is of."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or whole
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


class StoreError(CpAgentsError):
    """The trace store cannot be opened or does not hold what was asked for."""

    exit_code = 2


class MissingExtraError(CpAgentsError, ImportError):
    """A feature needs packages that the light core does not install."""

    exit_code = 2

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra [{extra}]: pip install 'cp-agents[{extra}]'")
        self.feature = feature
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return (type(self), (self.feature, self.extra))  # two arguments, one message: stays picklable


class ErrorType(StrEnum):
    """Why a sample could not be had from a backend. Stored with the sample."""

    RATE_LIMITED = "rate_limited"
    """The endpoint said 429 and went on saying it."""
    SERVER = "server_error"
    """The endpoint answered 5xx, or something that is no answer at all."""
    TIMEOUT = "timeout"
    """No answer within the request timeout."""
    CONNECTION = "connection"
    """The endpoint could not be reached or hung up."""
    AUTH = "auth"
    """The key is missing, wrong or not allowed to use the model. Ends the run."""
    BAD_REQUEST = "bad_request"
    """The endpoint refused the request as it is (4xx)."""
    NOT_FOUND = "not_found"
    """The endpoint has no such model or route. Ends the run."""
    CONTEXT_LENGTH = "context_length"
    """The prompt is longer than the model takes."""
    BUDGET = "budget"
    """The token or cost budget is spent. Ends the run."""
    NOT_RECORDED = "not_recorded"
    """A replay has no answer for this record and sample index."""
    CANCELLED = "cancelled"
    """The run was stopped while the call was in flight."""
    INTERNAL = "internal"
    """The backend itself failed in a way that it did not foresee."""

    @property
    def is_retryable(self) -> bool:
        """Whether asking again later may help."""
        return self in _RETRYABLE

    @property
    def is_final(self) -> bool:
        """Whether a resumed run leaves it: not what may pass by itself, nor a fault that may have been mended."""
        return not self.is_retryable and self is not ErrorType.INTERNAL

    @property
    def is_fatal(self) -> bool:
        """Whether every other call of this run would fail the same way, so that the run should stop."""
        return self in _FATAL


_RETRYABLE = frozenset(
    {ErrorType.RATE_LIMITED, ErrorType.SERVER, ErrorType.TIMEOUT, ErrorType.CONNECTION, ErrorType.CANCELLED}
)
_FATAL = frozenset({ErrorType.AUTH, ErrorType.NOT_FOUND, ErrorType.BUDGET})


class BackendError(CpAgentsError):
    """A backend call failed; `error_type` says how."""

    def __init__(self, message: str, error_type: ErrorType = ErrorType.INTERNAL) -> None:
        super().__init__(message)
        self.error_type = error_type

    def __reduce__(self) -> tuple[type[BackendError], tuple[str, ErrorType]]:
        return (BackendError, (str(self), self.error_type))

    @property
    def is_retryable(self) -> bool:
        """Whether asking again later may help."""
        return self.error_type.is_retryable
