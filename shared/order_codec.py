"""The one encoding of an order: deterministic protobuf, and the strict way back. Verifies no signature."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from agentfactory.v1 import common_pb2, orders_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from shared.digests import parse_digest
from shared.errors import InvalidInputError, MalformedError, UnknownFieldError, UnsupportedVersionError
from shared.ids import (
    AGENT,
    BOOT,
    DECISION,
    EXECUTION,
    NODE,
    ORDER,
    TenantId,
    parse_id,
)
from shared.limits import DEFAULT_LIMITS, FIRST_LIMITS, LIMIT_FIELDS, Limits
from shared.manifest import Capabilities, HttpCapability, LlmCapability, Profile
from shared.orders import (
    LLM_ORDER_FORMAT,
    MAX_ORDER_BYTES,
    OLDER_ORDER_FORMAT,
    ORDER_FORMAT,
    ORDER_FORMATS,
    EngineConstraint,
    Order,
    check_order,
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND_NANOS: Final = 1_000_000_000
_ALWAYS_THERE: Final = tuple(field.name for field in orders_pb2.Order.DESCRIPTOR.fields if field.has_presence)
"""The messages within an order: `encode_order` writes every one of them, empty or not."""

_LATER_LIMITS: Final = tuple(name for name in LIMIT_FIELDS if name not in FIRST_LIMITS)
_LATER_DEFAULTS: Final = common_pb2.Limits(**{name: getattr(DEFAULT_LIMITS, name) for name in _LATER_LIMITS})
"""What a guest gets of them under an order of version 1."""

PROFILE_NUMBERS: Final[Mapping[Profile, orders_pb2.Profile.ValueType]] = {
    Profile.DEFAULT: orders_pb2.PROFILE_DEFAULT,
    Profile.DETERMINISTIC: orders_pb2.PROFILE_DETERMINISTIC,
    Profile.PORTABLE: orders_pb2.PROFILE_PORTABLE,
}
PROFILES_BY_NUMBER: Final[Mapping[int, Profile]] = {
    number: profile for profile, number in PROFILE_NUMBERS.items()
}


def encode_order(order: Order) -> bytes:
    """Return the exact bytes to sign. They are kept and passed on as they are, never encoded again.

    Raises:
        InvalidInputError: The order contradicts the format (`check_order`), has more than 256 KiB, or grants
            what the older format cannot say.
    """
    check_order(order)
    message = _to_message(order)
    if order.format == OLDER_ORDER_FORMAT:
        _make_older(message, order)
    encoded = message.SerializeToString(deterministic=True)
    if len(encoded) > MAX_ORDER_BYTES:
        raise InvalidInputError(f"order has {len(encoded)} bytes, the bound is {MAX_ORDER_BYTES}")
    return encoded


def decode_order(data: bytes) -> Order:
    """Return the order in bytes whose signature has been verified.

    1. At most 256 KiB, and a protobuf message.
    2. No unknown field, at any depth.
    3. Of this format's version.
    4. Encoded as `encode_order` does: no second encoding of the same order.
    5. Every field present, well formed and in range.

    Raises:
        MalformedError: Check 1, 4 or 5.
        UnknownFieldError: Check 2.
        UnsupportedVersionError: Check 3.
    """
    if len(data) > MAX_ORDER_BYTES:
        raise MalformedError(f"check 1: order has {len(data)} bytes, the bound is {MAX_ORDER_BYTES}")
    try:
        message = orders_pb2.Order.FromString(data)
    except DecodeError as error:
        raise MalformedError("check 1: order is not a protobuf message") from error
    with_unknown = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != with_unknown:
        raise UnknownFieldError("check 2: order carries a field that this version does not know")
    if message.type not in ORDER_FORMATS:
        raise UnsupportedVersionError(
            f"check 3: order format is {message.type[:64]!r}, not one of {', '.join(ORDER_FORMATS)}"
        )
    if message.SerializeToString(deterministic=True) != data:
        raise MalformedError("check 4: order is not in its deterministic encoding")
    try:
        if message.type == OLDER_ORDER_FORMAT:
            _check_older(message)
            add_later_limits(message.limits)
        order = _from_message(message)
        check_order(order)
    except (InvalidInputError, ValueError, OverflowError) as error:
        raise MalformedError(f"check 5: {error}") from error
    return order


def _to_message(order: Order) -> orders_pb2.Order:
    lease = Duration()
    lease.FromTimedelta(order.lease)
    return orders_pb2.Order(
        type=order.format,
        order_id=order.id,
        installation=order.installation,
        epoch=order.epoch,
        tenant_id=order.tenant_id,
        caller=order.caller,
        agent_id=order.agent_id,
        agent_name=order.agent_name,
        parameters_digest=order.parameters_digest,
        execution_id=order.execution_id,
        attempt_number=order.attempt_number,
        fencing_token=order.fencing_token,
        node_id=order.node_id,
        boot_id=order.boot_id,
        template_digest=order.template_digest,
        module_digest=order.module_digest,
        input_commitment=order.input_commitment,
        input_bytes=order.input_bytes,
        media_type=order.media_type,
        profile=PROFILE_NUMBERS[order.profile],
        seed=order.seed,
        clock_start_at=_timestamp(order.clock_start_at),
        engine=orders_pb2.EngineConstraint(
            name=order.engine.name or "",
            version=order.engine.version or "",
            config_digest=order.engine.config_digest or "",
        ),
        limits=limits_to_proto(order.limits),
        capabilities=capabilities_to_proto(order.capabilities),
        host_call_grants=order.host_call_grants,
        decision_id=order.decision_id,
        policy_digest=order.policy_digest,
        traceparent=order.traceparent,
        not_before=_timestamp(order.not_before),
        expires_at=_timestamp(order.expires_at),
        nonce=order.nonce,
        lease=lease,
        heartbeat_number=order.heartbeat_number,
        retry_is_safe=order.retry_is_safe,
    )


def _from_message(message: orders_pb2.Order) -> Order:
    # With the exact times below: all that a message can say and the dataclass cannot.
    held: Message = message
    for name in _ALWAYS_THERE:
        if not held.HasField(name):
            raise InvalidInputError(f"order lacks the field {name!r}")
    if message.profile not in PROFILES_BY_NUMBER:
        raise InvalidInputError(f"profile number {message.profile} is not known")
    return Order(
        format=message.type,
        id=parse_id(ORDER, message.order_id),
        installation=_required("installation", message.installation),
        epoch=message.epoch,
        # The default tenant is called by its name, not by an id of the usual form.
        tenant_id=TenantId(_required("tenant_id", message.tenant_id)),
        caller=_required("caller", message.caller),
        agent_id=parse_id(AGENT, message.agent_id),
        agent_name=_required("agent_name", message.agent_name),
        parameters_digest=parse_digest(message.parameters_digest),
        execution_id=parse_id(EXECUTION, message.execution_id),
        attempt_number=message.attempt_number,
        fencing_token=message.fencing_token,
        node_id=parse_id(NODE, message.node_id),
        boot_id=parse_id(BOOT, message.boot_id),
        template_digest=parse_digest(message.template_digest),
        module_digest=parse_digest(message.module_digest),
        input_commitment=parse_digest(message.input_commitment),
        input_bytes=message.input_bytes,
        media_type=_required("media_type", message.media_type),
        profile=PROFILES_BY_NUMBER[message.profile],
        seed=message.seed,
        clock_start_at=_datetime(message.clock_start_at),
        engine=_engine(message.engine),
        limits=limits_from_proto(message.limits),
        capabilities=capabilities_from_proto(message.capabilities),
        host_call_grants=tuple(message.host_call_grants),
        decision_id=parse_id(DECISION, message.decision_id),
        policy_digest=parse_digest(message.policy_digest),
        traceparent=message.traceparent,
        not_before=_datetime(message.not_before),
        expires_at=_datetime(message.expires_at),
        nonce=message.nonce,
        lease=_exact_duration(message.lease.seconds, message.lease.nanos),
        heartbeat_number=message.heartbeat_number,
        retry_is_safe=message.retry_is_safe,
    )


def _make_older(message: orders_pb2.Order, order: Order) -> None:
    if order.host_call_grants or not _is_first(order.limits, order.capabilities):
        raise InvalidInputError(f"order grants what {OLDER_ORDER_FORMAT} cannot say")
    message.type = OLDER_ORDER_FORMAT
    first = {name: getattr(order.limits, name) for name in FIRST_LIMITS}
    message.limits.CopyFrom(common_pb2.Limits(**first))


def needs_current_order(limits: Limits, capabilities: Capabilities) -> bool:
    """Return whether version 1 cannot grant them: it knows no host call, and later limits by default only."""
    return bool(capabilities.host_call_grants) or not _is_first(limits, capabilities)


def format_for(order_type: str, capabilities: Capabilities) -> str:
    """Return how an order with these capabilities is written on a session that speaks up to `order_type`."""
    if capabilities.llm is not None:
        return LLM_ORDER_FORMAT
    return OLDER_ORDER_FORMAT if order_type == OLDER_ORDER_FORMAT else ORDER_FORMAT


def _is_first(limits: Limits, capabilities: Capabilities) -> bool:
    later = any(getattr(limits, name) != getattr(DEFAULT_LIMITS, name) for name in _LATER_LIMITS)
    return not later and _destinations_of(capabilities) == capabilities


def _destinations_of(capabilities: Capabilities) -> Capabilities:
    return Capabilities(
        http=tuple(HttpCapability(method=one.method, url=one.url) for one in capabilities.http)
    )


def _check_older(message: orders_pb2.Order) -> None:
    later = [name for name in _LATER_LIMITS if getattr(message.limits, name)]
    capabilities = capabilities_from_proto(message.capabilities)
    if later or message.host_call_grants or _destinations_of(capabilities) != capabilities:
        raise InvalidInputError(f"order of {OLDER_ORDER_FORMAT} carries what came later")


def _engine(message: orders_pb2.EngineConstraint) -> EngineConstraint:
    return EngineConstraint(
        name=message.name or None,
        version=message.version or None,
        config_digest=parse_digest(message.config_digest) if message.config_digest else None,
    )


def limits_to_proto(limits: Limits) -> common_pb2.Limits:
    """Return granted limits as the contract carries them."""
    return common_pb2.Limits(**{name: getattr(limits, name) for name in LIMIT_FIELDS})


def add_later_limits(message: common_pb2.Limits) -> None:
    """Give limits that were written before the later ones existed what a guest gets of those by default."""
    message.MergeFrom(_LATER_DEFAULTS)


def limits_from_proto(message: common_pb2.Limits) -> Limits:
    """Return what `limits_to_proto` was given.

    Raises:
        InvalidInputError: A limit is not one that can be granted.
    """
    try:
        return Limits(**{name: getattr(message, name) for name in LIMIT_FIELDS})
    except ValueError as error:
        raise InvalidInputError(str(error)) from error


def capabilities_to_proto(capabilities: Capabilities) -> common_pb2.Capabilities:
    """Return granted capabilities as the contract carries them."""
    llm = capabilities.llm
    return common_pb2.Capabilities(
        http=[
            common_pb2.HttpCapability(
                method=one.method,
                url=one.url,
                addresses=one.addresses,
                max_calls=one.max_calls,
                max_bytes=one.max_bytes,
            )
            for one in capabilities.http
        ],
        kv=capabilities.kv,
        secrets=capabilities.secrets,
        record_host_calls=capabilities.record_host_calls,
        llm=None
        if llm is None
        else common_pb2.LlmCapability(
            models=llm.models, max_tokens=llm.max_tokens, max_cost_micros=llm.max_cost_micros
        ),
    )


def capabilities_from_proto(message: common_pb2.Capabilities) -> Capabilities:
    """Return what `capabilities_to_proto` was given."""
    return Capabilities(
        http=tuple(
            HttpCapability(
                method=one.method,
                url=one.url,
                addresses=tuple(one.addresses),
                max_calls=one.max_calls,
                max_bytes=one.max_bytes,
            )
            for one in message.http
        ),
        kv=message.kv,
        secrets=tuple(message.secrets),
        record_host_calls=message.record_host_calls,
        llm=LlmCapability(
            models=tuple(message.llm.models),
            max_tokens=message.llm.max_tokens,
            max_cost_micros=message.llm.max_cost_micros,
        )
        if message.HasField("llm")
        else None,
    )


def _required(name: str, value: str) -> str:
    if not value:
        raise InvalidInputError(f"order lacks the field {name!r}")
    return value


def _timestamp(at: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    return timestamp


def _datetime(timestamp: Timestamp) -> datetime:
    return _EPOCH + _exact_duration(timestamp.seconds, timestamp.nanos)


def _exact_duration(seconds: int, nanos: int) -> timedelta:
    """Return a normalised time since something, which may be negative only in whole seconds.

    Raises:
        InvalidInputError: Its nanoseconds are no part of one second, or no whole microseconds.
        OverflowError: It is beyond what Python can say.
    """
    if not 0 <= nanos < _SECOND_NANOS or nanos % 1000:
        raise InvalidInputError(f"a time in the order has {nanos} nanoseconds")
    return timedelta(seconds=seconds, microseconds=nanos // 1000)
