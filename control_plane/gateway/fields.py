"""Types of single values in JSON: a field of the contract, with its rules (buf.validate), for pydantic. Pure.

What a type says is what OpenAPI shows and what requests are checked against, so the two cannot differ. The
control plane applies the rules again: a rule that JSON Schema cannot say is its alone.
"""

import base64
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from buf.validate import validate_pb2
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AfterValidator, BeforeValidator, Field

from shared.ids import AUDIT_ENTRY, BODY, DECISION, EXECUTION, NODE, RECEIPT, UUID7_PATTERN

Rules: TypeAlias = validate_pb2.FieldRules
Type: TypeAlias = Any
"""What pydantic takes for one: a class, or something `Annotated`."""

KNOWN_RULES: Final[Mapping[str, frozenset[str]]] = {
    "string": frozenset({"min_len", "max_len", "len", "pattern", "in", "not_in"}),
    "bytes": frozenset({"min_len", "max_len", "len"}),
    "enum": frozenset({"defined_only", "in", "not_in"}),
    "duration": frozenset({"gt", "gte", "lt", "lte"}),
    "repeated": frozenset({"min_items", "max_items", "items"}),
    "map": frozenset({"min_pairs", "max_pairs"}),
    **dict.fromkeys(
        ("int32", "uint32", "int64", "uint64", "float", "double"), frozenset({"gt", "gte", "lt", "lte"})
    ),
}
"""Rules that are said in OpenAPI. A test walks the contract for others."""

_INTEGERS: Final[Mapping[int, tuple[int, int]]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_WIDE: Final = frozenset({FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64})
_MAX_SECONDS: Final = 315_576_000_000
"""Of google.protobuf.Duration, either way."""

_BASE64: Final = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$"
_RFC3339: Final = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
)

ID_FIELDS: Final[Mapping[str, str]] = {
    f"{name}_id": f"{kind.prefix}_{UUID7_PATTERN}"
    for name, kind in (
        ("audit_entry", AUDIT_ENTRY),
        ("body", BODY),
        ("decision", DECISION),
        ("execution", EXECUTION),
        ("node", NODE),
        ("receipt", RECEIPT),
    )
}
"""Form of the ids in fields of these names, which the contract's rules do not say."""

OUTPUT_TEXTS: Final[Mapping[str, Type]] = {
    "google.protobuf.Timestamp": Annotated[str, Field(json_schema_extra={"format": "date-time"})],
    "google.protobuf.Duration": Annotated[str, Field(pattern=r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$")],
}
FREE_FORMS: Final[Mapping[str, Type]] = {
    "google.protobuf.Struct": dict[str, Any],
    "google.protobuf.Value": Any,
    "google.protobuf.ListValue": list[Any],
}


def rules_of(field: FieldDescriptor) -> Rules:
    """Return the rules of a field; of one without any: none set."""
    return field.GetOptions().Extensions[validate_pb2.field]


def input_type(field: FieldDescriptor, rules: Rules) -> Type:
    """Return the type of one value of a field that is no message, in a request."""
    kind = field.cpp_type
    if kind in _INTEGERS:
        return _integer(kind, rules)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return bool
    if field.enum_type is not None:
        # A list of nothing in particular means nothing: there the zero value has no use.
        return _enum(field.enum_type, rules, 1 if field.is_repeated else 0)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _base64(rules)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return _string(rules, ID_FIELDS.get(field.name))
    return float


def output_type(field: FieldDescriptor) -> Type:  # noqa: PLR0911 - one line for each kind
    """Return the type of one value of a field that is no message, in an answer."""
    kind = field.cpp_type
    if kind in _WIDE:
        signed = kind == FieldDescriptor.CPPTYPE_INT64
        return Annotated[str, Field(pattern=f"^{'-?' if signed else ''}[0-9]{{1,20}}$")]
    if kind in _INTEGERS:
        return int
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return bool
    if field.enum_type is not None:
        return Literal[tuple(value.name for value in field.enum_type.values)]
    if field.type == FieldDescriptor.TYPE_BYTES:
        return Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return str
    return float


def header_type(rules: Rules) -> Type:
    """Return the type of a text that travels as a header: HTTP takes blanks at its ends away."""
    named = rules.string
    return Annotated[
        str,
        Field(
            min_length=named.min_len or None,
            max_length=named.max_len if named.HasField("max_len") else None,
            pattern=r"^[!-~]([ -~]*[!-~])?$",
        ),
    ]


def timestamp_type() -> Type:
    """Return the type of a time in a request (RFC 3339)."""
    return Annotated[
        str, Field(pattern=_RFC3339, json_schema_extra={"format": "date-time"}), AfterValidator(_real_time)
    ]


def duration_type(rules: Rules) -> Type:
    """Return the type of a length of time in a request: ``"1.5s"``, within its rules."""
    named = rules.duration
    # No request has a use for less than nothing, whether or not its rules say so.
    low, high = 0, _MAX_SECONDS
    if named.HasField("gt") or named.HasField("gte"):
        low = (named.gt if named.HasField("gt") else named.gte).seconds
    if named.HasField("lt") or named.HasField("lte"):
        high = (named.lt if named.HasField("lt") else named.lte).seconds
    return Annotated[str, Field(pattern=_duration_pattern(low, high, above=named.HasField("gt")))]


def decimal_pattern(low: int, high: int) -> str:
    """Return a regular expression, without anchors, of the decimal numbers from `low` to `high`."""
    digits = len(str(high))
    if low in {0, 1} and high == 10**digits - 1:
        return f"(?:{'0|' if low == 0 else ''}[1-9][0-9]{{0,{digits - 1}}})"
    if low < 0:
        below = decimal_pattern(max(1, -high), -low)
        return f"(?:-{below}|{decimal_pattern(0, high)})" if high >= 0 else f"-{below}"
    parts: list[str] = []
    start = low
    while start <= high:
        end = _block_end(start, high)
        parts.append(_block(str(start), str(end)))
        start = end + 1
    return f"(?:{'|'.join(parts)})"


def _block_end(start: int, high: int) -> int:
    """Return the largest end such that start to end is one prefix, one range of digits, any digits."""
    size = 1
    while start % (size * 10) == 0 and start + size * 10 - 1 <= high and start:
        size *= 10
    digit = start // size % 10
    end = start + size - 1
    while digit < 9 and end + size <= high:  # noqa: PLR2004 - the last digit
        digit, end = digit + 1, end + size
    return end


def _block(start: str, end: str) -> str:
    same = next((at for at, (a, b) in enumerate(zip(start, end, strict=True)) if a != b), len(start))
    rest = len(start) - same - 1
    if rest < 0:
        return start
    free = {0: "", 1: "[0-9]"}.get(rest, f"[0-9]{{{rest}}}")
    return f"{start[:same]}[{start[same]}-{end[same]}]{free}"


def _duration_pattern(low: int, high: int, *, above: bool) -> str:
    fraction = r"(?:\.[0-9]{1,9})?"
    first = max(low, 1)
    parts = [f"{decimal_pattern(first, high - 1)}{fraction}s", rf"{high}(?:\.0{{1,9}})?s"]
    if low == 0:
        parts.append(r"0\.[0-9]{0,8}[1-9]s" if above else f"0{fraction}s")
    return f"^(?:{'|'.join(parts)})$"


def _real_time(text: str) -> str:
    Timestamp().FromJsonString(text)
    return text


def _whole(value: Any) -> Any:
    """Return an integer for a number without a fraction: to JSON, which has one kind of number, 7.0 is 7."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _integer(kind: int, rules: Rules) -> Type:
    low, high = _INTEGERS[kind]
    name = rules.WhichOneof("type")
    if name is not None:
        named = getattr(rules, name)
        low = max(low, named.gte if named.HasField("gte") else low)
        low = max(low, named.gt + 1 if named.HasField("gt") else low)
        high = min(high, named.lte if named.HasField("lte") else high)
        high = min(high, named.lt - 1 if named.HasField("lt") else high)
    number = Annotated[int, Field(ge=low, le=high), BeforeValidator(_whole)]
    if kind not in _WIDE:
        return number
    # proto3 JSON writes 64 bits as text, because many readers know doubles only, and takes both. What has no
    # bound of its own ends, as text, a digit earlier: the exact pattern would be a page long.
    text_low = -(10**18 - 1) if low == _INTEGERS[kind][0] < 0 else low
    text_high = 10 ** (len(str(high)) - 1) - 1 if high == _INTEGERS[kind][1] else high
    return Annotated[str, Field(pattern=f"^{decimal_pattern(text_low, text_high)}$")] | number


def _enum(enum: EnumDescriptor, rules: Rules, lowest: int) -> Type:
    allowed = [
        value.name
        for value in enum.values
        if value.number >= lowest
        and value.number not in rules.enum.not_in
        and (not getattr(rules.enum, "in") or value.number in getattr(rules.enum, "in"))
    ]
    return Literal[tuple(allowed)]


def _string(rules: Rules, form: str | None) -> Type:
    named = rules.string
    if getattr(named, "in"):
        return Literal[tuple(getattr(named, "in"))]
    if form is not None:
        return Annotated[str, Field(pattern=f"^{form}$" if named.min_len else f"^({form})?$")]
    exact = named.len if named.HasField("len") else None
    return Annotated[
        str,
        Field(
            min_length=exact if exact is not None else (named.min_len or None),
            max_length=exact if exact is not None else (named.max_len if named.HasField("max_len") else None),
            # RE2 reads `$` as the end of the text, as JSON Schema does.
            pattern=named.pattern or None,
        ),
    ]


def _base64(rules: Rules) -> Type:
    named = rules.bytes
    low, high = named.min_len, named.max_len if named.HasField("max_len") else None
    if named.HasField("len"):
        low = high = named.len

    def within(text: str) -> str:
        size = len(base64.b64decode(text))
        if size < low or (high is not None and size > high):
            raise ValueError(f"{size} bytes are not within {low} and {high}")
        return text

    said: dict[str, Any] = {"contentEncoding": "base64"}
    if high is not None and (whole := high // 3 * 4) >= max(_encoded(low), 1):
        # A last group without padding may hold a byte more than there may be: what is said stops before it.
        said["maxLength"] = whole
    return Annotated[
        str,
        Field(
            pattern=_BASE64,
            min_length=_encoded(low) or None,
            max_length=None if high is None else _encoded(high),
            json_schema_extra=said,
        ),
        AfterValidator(within),
    ]


def _encoded(size: int) -> int:
    return (size + 2) // 3 * 4


def text_value(field: FieldDescriptor, text: str) -> Any:
    """Return what a word of a query or a path stands for, or the word itself where that is to be refused."""
    if field.cpp_type in _INTEGERS and re.fullmatch(r"-?[0-9]{1,20}", text):
        return int(text)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"true": True, "false": False}.get(text, text)
    return text
