"""The tables that map errors to gRPC status, and that to HTTP. Every one has a row; a test proves it."""

from collections.abc import Mapping
from typing import Final

import grpc

from shared import errors
from shared.errors import AgentFactoryError

_Code = grpc.StatusCode

STATUS_BY_ERROR: Final[Mapping[type[AgentFactoryError], grpc.StatusCode]] = {
    # requests
    errors.InvalidInputError: _Code.INVALID_ARGUMENT,
    errors.NotFoundError: _Code.NOT_FOUND,
    errors.AlreadyExistsError: _Code.ALREADY_EXISTS,
    errors.ConflictError: _Code.ABORTED,
    errors.IdempotencyConflictError: _Code.ALREADY_EXISTS,
    errors.WrongStateError: _Code.FAILED_PRECONDITION,
    errors.UnsupportedVersionError: _Code.FAILED_PRECONDITION,
    # who may do what
    errors.UnauthenticatedError: _Code.UNAUTHENTICATED,
    errors.PermissionDeniedError: _Code.PERMISSION_DENIED,
    errors.TenantRequiredError: _Code.INVALID_ARGUMENT,
    errors.PolicyDeniedError: _Code.PERMISSION_DENIED,
    errors.PolicyInvalidError: _Code.INVALID_ARGUMENT,
    errors.PolicyUndecidedError: _Code.PERMISSION_DENIED,
    errors.EnrollmentTokenInvalidError: _Code.UNAUTHENTICATED,
    errors.NodeQuarantinedError: _Code.PERMISSION_DENIED,
    errors.EngineDeniedError: _Code.PERMISSION_DENIED,
    errors.NodeEvictedError: _Code.UNAUTHENTICATED,
    errors.SessionSupersededError: _Code.ABORTED,
    errors.ClockSkewError: _Code.FAILED_PRECONDITION,
    # availability
    errors.UnavailableError: _Code.UNAVAILABLE,
    errors.DatabaseUnavailableError: _Code.UNAVAILABLE,
    errors.KeyUnavailableError: _Code.UNAVAILABLE,
    errors.ResourceExhaustedError: _Code.RESOURCE_EXHAUSTED,
    errors.LlmQuotaExhaustedError: _Code.RESOURCE_EXHAUSTED,
    errors.DeadlineExceededError: _Code.DEADLINE_EXCEEDED,
    errors.DiskFullError: _Code.RESOURCE_EXHAUSTED,
    errors.SpoolFullError: _Code.RESOURCE_EXHAUSTED,
    errors.SpoolLockedError: _Code.FAILED_PRECONDITION,
    errors.SpoolCorruptError: _Code.DATA_LOSS,
    errors.WorkerCrashedError: _Code.INTERNAL,
    errors.ArtifactInvalidError: _Code.INTERNAL,
    errors.PortInUseError: _Code.FAILED_PRECONDITION,
    errors.SettingsError: _Code.FAILED_PRECONDITION,
    errors.InternalError: _Code.INTERNAL,
    # signatures and keys
    errors.VerificationError: _Code.PERMISSION_DENIED,
    errors.UnsignedError: _Code.PERMISSION_DENIED,
    errors.SignatureInvalidError: _Code.PERMISSION_DENIED,
    errors.UnknownKeyError: _Code.PERMISSION_DENIED,
    errors.UnknownPublisherError: _Code.PERMISSION_DENIED,
    errors.KeyRevokedError: _Code.PERMISSION_DENIED,
    errors.PayloadTypeError: _Code.INVALID_ARGUMENT,
    errors.UnknownFieldError: _Code.INVALID_ARGUMENT,
    errors.MalformedError: _Code.INVALID_ARGUMENT,
    errors.ProofInvalidError: _Code.PERMISSION_DENIED,
    errors.LogForkedError: _Code.PERMISSION_DENIED,
    errors.EvidenceMismatchError: _Code.PERMISSION_DENIED,
    errors.EvidenceMissingError: _Code.PERMISSION_DENIED,
    errors.RollbackError: _Code.PERMISSION_DENIED,
    errors.KeyFormatError: _Code.INVALID_ARGUMENT,
    errors.KeyFileModeError: _Code.FAILED_PRECONDITION,
    # templates
    errors.ManifestInvalidError: _Code.INVALID_ARGUMENT,
    errors.PackageTooLargeError: _Code.INVALID_ARGUMENT,
    errors.PackageTruncatedError: _Code.INVALID_ARGUMENT,
    errors.PackageAlteredError: _Code.INVALID_ARGUMENT,
    errors.DecompressionBombError: _Code.INVALID_ARGUMENT,
    errors.ModuleInvalidError: _Code.INVALID_ARGUMENT,
    errors.ParentMissingError: _Code.FAILED_PRECONDITION,
    errors.TemplateCycleError: _Code.INVALID_ARGUMENT,
    errors.TemplateWidensError: _Code.INVALID_ARGUMENT,
    errors.TemplateRetiredError: _Code.FAILED_PRECONDITION,
    errors.TemplateRevokedError: _Code.FAILED_PRECONDITION,
    errors.StoppedError: _Code.FAILED_PRECONDITION,
    # host calls
    errors.HostCallRefusedError: _Code.PERMISSION_DENIED,
    # orders and receipts
    errors.OrderRejectedError: _Code.PERMISSION_DENIED,
    errors.NotReplayableError: _Code.FAILED_PRECONDITION,
    errors.ReceiptInvalidError: _Code.PERMISSION_DENIED,
    errors.ReceiptConflictError: _Code.PERMISSION_DENIED,
}

HTTP_BY_STATUS: Final[Mapping[grpc.StatusCode, int]] = {
    _Code.OK: 200,
    _Code.CANCELLED: 499,  # nobody reads it: the client is gone
    _Code.UNKNOWN: 500,
    _Code.INVALID_ARGUMENT: 400,
    _Code.DEADLINE_EXCEEDED: 504,
    _Code.NOT_FOUND: 404,
    _Code.ALREADY_EXISTS: 409,
    _Code.PERMISSION_DENIED: 403,
    _Code.RESOURCE_EXHAUSTED: 429,
    # As google.rpc.Code has it but for 400: the request is right, the resource is in another state.
    _Code.FAILED_PRECONDITION: 409,
    _Code.ABORTED: 409,
    _Code.OUT_OF_RANGE: 400,
    _Code.UNIMPLEMENTED: 501,
    _Code.INTERNAL: 500,
    _Code.UNAVAILABLE: 503,
    _Code.DATA_LOSS: 500,
    _Code.UNAUTHENTICATED: 401,
}


def status_of(error: AgentFactoryError) -> grpc.StatusCode:
    """Return the status of the error's own class."""
    return STATUS_BY_ERROR[type(error)]
