"""Rules of JSON Schema (Validation, draft 2020-12) that look at one value, and the count of what rules cost.

A schema and the JSON it judges both come from somebody who may mean harm: every piece of work is counted, and
the count is bounded. Rules with schemas in them are `schema_applicators`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any, Final

from shared.canonical import canonical_json
from shared.errors import ManifestInvalidError

MAX_STEPS: Final = 60_000
"""What one check may cost: a rule asked, a property, item or value looked at is one step or more."""

MAX_WHERE_CHARS: Final = 200
MAX_EXPECTED_CHARS: Final = 120
_LISTED_VALUES: Final = 8

REFERENCE_FORMAT: Final = "secret-ref"
"""The `format` of what names a secret. Asserted, unlike every other one: no secret itself may stand there."""

_FRACTION_STEPS: Final = 32
_CONTAINER_STEPS: Final = 16
_SLOW_STEPS: Final = 12
_ASCII_STEP_CHARS: Final = 64
_STEP_CHARS: Final = 4
_WORDS: Final = {True: b"true", False: b"false", None: b"null"}


class TooMuchWorkError(Exception):
    """A check was given up: it needs more than `MAX_STEPS`. Never leaves `JsonSchema.check`."""


class Work:
    """The steps that one check has left, and what it needs to know beside the value."""

    __slots__ = ("left", "secrets")

    def __init__(self, steps: int = MAX_STEPS, *, secrets: frozenset[str] = frozenset()) -> None:
        self.left = steps
        self.secrets = secrets
        """Names that a reference to a secret may have."""

    def spend(self, steps: int) -> None:
        """Take steps.

        Raises:
            TooMuchWorkError: There are not so many left.
        """
        self.left -= steps
        if self.left < 0:
            raise TooMuchWorkError


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """Which rule a value breaks, and where in it. Holds nothing of the value but names on the way."""

    keyword: str
    expected: str
    """By the schema, in words."""
    path: tuple[str | int, ...] = ()
    """Innermost first."""

    def below(self, key: str | int) -> "Broken":
        """Return the same as seen from one level up."""
        return Broken(keyword=self.keyword, expected=self.expected, path=(*self.path, key))

    @property
    def pointer(self) -> str:
        """The place as a JSON pointer (RFC 6901); empty for the value itself."""
        steps = (str(key).replace("~", "~0").replace("/", "~1") for key in reversed(self.path))
        return "".join(f"/{step}" for step in steps)[:MAX_WHERE_CHARS]


Findings = tuple[Broken, ...]
FITS: Final[Findings] = ()

Rule = Callable[[Any, Work, int], Findings]
"""What of a value breaks the rule: nothing if, and only if, it fits. May stop after so many findings."""


class Schema:
    """One compiled schema. Asked with a value, it says which rules are broken, if any."""

    __slots__ = ("height", "rules")

    def __init__(self, rules: tuple[Rule, ...], height: int) -> None:
        self.rules = rules
        self.height = height

    def broken_by(self, value: Any, work: Work, most: int) -> Findings:
        """Return what `value` breaks; it may stop looking after `most` findings, at least one.

        Raises:
            TooMuchWorkError: The work is used up.
        """
        work.spend(1 + len(self.rules))
        found = FITS
        for rule in self.rules:
            found += rule(value, work, most)
            if len(found) >= most:
                break
        return found

    def fits(self, value: Any, work: Work) -> bool:
        """Whether `value` breaks nothing.

        Raises:
            TooMuchWorkError: The work is used up.
        """
        return not self.broken_by(value, work, 1)


def key_of(value: Any, work: Work) -> str | bytes | float:
    """Return what is equal for, and only for, values that JSON Schema calls equal (1 and 1.0, not true).

    Texts and bytes have keyed hashes and numbers hardly collide: nobody can choose values to make a set slow.
    """
    if isinstance(value, bool) or value is None:
        return _WORDS[value]
    if isinstance(value, str | int | float):
        return value
    work.spend(_CONTAINER_STEPS + count_steps(value, work.left))
    return canonical_json(value)


def count_steps(value: Any, bound: int) -> int:
    """Return what it costs to write all of a value; not exact beyond `bound`."""
    found, waiting = 0, [value]
    while waiting and found <= bound:
        item = waiting.pop()
        found += 1
        if isinstance(item, dict):
            waiting.extend(item.values())
            waiting.extend(item)
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, str):
            # Beyond ASCII, and for doubles, the encoding takes its slow way.
            found += len(item) // _ASCII_STEP_CHARS
            if not item.isascii():
                found += _SLOW_STEPS + len(item) // _STEP_CHARS
        elif isinstance(item, float):
            found += _SLOW_STEPS
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


_TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "integer": _is_integer,
    "null": lambda value: value is None,
    "number": _is_number,
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
}

# keyword: (what the value must be, whether the value passes, in words); anything else passes.
_BOUNDS: Final[dict[str, tuple[Callable[[Any, Any], bool], str]]] = {
    "maximum": (lambda value, bound: value <= bound, "at most"),
    "exclusiveMaximum": (lambda value, bound: value < bound, "less than"),
    "minimum": (lambda value, bound: value >= bound, "at least"),
    "exclusiveMinimum": (lambda value, bound: value > bound, "more than"),
}
_Sized = type[str] | type[list[Any]] | type[dict[str, Any]]
_SIZES: Final[dict[str, tuple[_Sized, Callable[[int, int], bool], str]]] = {
    "maxLength": (str, lambda size, bound: size <= bound, "at most {} characters"),
    "minLength": (str, lambda size, bound: size >= bound, "at least {} characters"),
    "maxItems": (list, lambda size, bound: size <= bound, "at most {} items"),
    "minItems": (list, lambda size, bound: size >= bound, "at least {} items"),
    "maxProperties": (dict, lambda size, bound: size <= bound, "at most {} properties"),
    "minProperties": (dict, lambda size, bound: size >= bound, "at least {} properties"),
}


def wrong_keyword(keyword: str, expected: str) -> ManifestInvalidError:
    """Return the error for a keyword whose value is not what the draft says."""
    return ManifestInvalidError(f"not a JSON Schema of draft 2020-12: {keyword!r} is not {expected}")


def natural(keyword: str, value: Any) -> int:
    """Return the value of a keyword that has to be a natural number.

    Raises:
        ManifestInvalidError: It is none.
    """
    if not _is_integer(value) or value < 0:
        raise wrong_keyword(keyword, "a natural number")
    return int(value)


def _names(keyword: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise wrong_keyword(keyword, "a list of strings")
    if len(set(value)) != len(value):
        raise wrong_keyword(keyword, "a list without repetition")
    return tuple(value)


def _type(keyword: str, value: Any) -> Rule:
    names = [value] if isinstance(value, str) else value
    known = isinstance(names, list) and names and all(isinstance(n, str) and n in _TYPES for n in names)
    if not known or len(set(names)) != len(names):
        raise wrong_keyword(keyword, f"one or several of {', '.join(_TYPES)}")
    tests = tuple(_TYPES[name] for name in names)
    broken = (Broken(keyword=keyword, expected=" or ".join(names)),)
    if len(tests) == 1:
        [test] = tests
        return lambda value, _work, _most: FITS if test(value) else broken
    return lambda value, _work, _most: FITS if any(test(value) for test in tests) else broken


def _enum(keyword: str, value: Any) -> Rule:
    if not isinstance(value, list):
        raise wrong_keyword(keyword, "a list")
    return _one_of_values(keyword, value)


def _const(keyword: str, value: Any) -> Rule:
    return _one_of_values(keyword, [value])


def _one_of_values(keyword: str, values: list[Any]) -> Rule:
    keys = frozenset(key_of(value, Work()) for value in values)
    listed = ", ".join(json.dumps(value) for value in values[:_LISTED_VALUES])
    if len(listed) > MAX_EXPECTED_CHARS or len(values) > _LISTED_VALUES:
        listed = f"one of {len(values)} values"
    broken = (Broken(keyword=keyword, expected=listed if len(values) < 2 else f"one of {listed}"),)  # noqa: PLR2004
    return lambda value, work, _most: FITS if key_of(value, work) in keys else broken


def _bound(keyword: str, value: Any) -> Rule:
    passes, words = _BOUNDS[keyword]
    if not _is_number(value):
        raise wrong_keyword(keyword, "a number")
    bound, broken = value, (Broken(keyword=keyword, expected=f"{words} {value}"),)
    return lambda value, _work, _most: FITS if not _is_number(value) or passes(value, bound) else broken


def _size(keyword: str, value: Any) -> Rule:
    kind, passes, words = _SIZES[keyword]
    bound = natural(keyword, value)
    broken = (Broken(keyword=keyword, expected=words.format(bound)),)
    return lambda value, _work, _most: (
        FITS if not isinstance(value, kind) or passes(len(value), bound) else broken
    )


def _multiple_of(keyword: str, value: Any) -> Rule:
    if not _is_number(value) or value <= 0:
        raise wrong_keyword(keyword, "a number above 0")
    step, broken = Fraction(str(value)), (Broken(keyword=keyword, expected=f"a multiple of {value}"),)

    def rule(value: Any, work: Work, _most: int) -> Findings:
        if not _is_number(value):
            return FITS
        work.spend(_FRACTION_STEPS)
        # As they are written, in decimal: 0.3 is a multiple of 0.1 to whoever wrote the schema.
        return FITS if (Fraction(str(value)) / step).denominator == 1 else broken

    return rule


def _unique_items(keyword: str, value: Any) -> Rule | None:
    if not isinstance(value, bool):
        raise wrong_keyword(keyword, "true or false")
    broken = (Broken(keyword=keyword, expected="different items"),)

    def rule(value: Any, work: Work, _most: int) -> Findings:
        if not isinstance(value, list):
            return FITS
        work.spend(len(value))
        return FITS if len({key_of(item, work) for item in value}) == len(value) else broken

    return rule if value else None


def _lacking(keyword: str, value: dict[str, Any], names: tuple[str, ...], most: int) -> Findings:
    missing = (name for name in names if name not in value)
    return tuple(Broken(keyword=keyword, expected="a value", path=(name,)) for name in islice(missing, most))


def _required(keyword: str, value: Any) -> Rule:
    names = _names(keyword, value)

    def rule(value: Any, work: Work, most: int) -> Findings:
        if not isinstance(value, dict):
            return FITS
        work.spend(len(names))
        return _lacking(keyword, value, names, most)

    return rule


def _dependent_required(keyword: str, value: Any) -> Rule:
    if not isinstance(value, dict):
        raise wrong_keyword(keyword, "an object")
    wanted = {name: _names(keyword, needs) for name, needs in value.items()}
    cost = sum(1 + len(needs) for needs in wanted.values())

    def rule(value: Any, work: Work, most: int) -> Findings:
        if not isinstance(value, dict):
            return FITS
        work.spend(cost)
        found = FITS
        for name, needs in wanted.items():
            if name in value and len(found) < most:
                found += _lacking(keyword, value, needs, most)
        return found

    return rule


def _format(keyword: str, value: Any) -> Rule | None:
    """Return the rule of `secret-ref`; every other format is an annotation, as in the draft."""
    if not isinstance(value, str):
        raise wrong_keyword(keyword, "a string")
    if value != REFERENCE_FORMAT:
        return None
    no_reference = (Broken(keyword=keyword, expected='a reference to a secret: {"secret": NAME}'),)
    not_allowed = (
        Broken(keyword=keyword, expected="the name of a secret that the template's capabilities list"),
    )

    def rule(value: Any, work: Work, _most: int) -> Findings:
        if not isinstance(value, dict) or value.keys() != {"secret"} or not isinstance(value["secret"], str):
            return no_reference
        return FITS if value["secret"] in work.secrets else not_allowed

    return rule


SIMPLE_RULES: Final[dict[str, Callable[[str, Any], Rule | None]]] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    "format": _format,
    "multipleOf": _multiple_of,
    "uniqueItems": _unique_items,
    "required": _required,
    "dependentRequired": _dependent_required,
    **dict.fromkeys(_BOUNDS, _bound),
    **dict.fromkeys(_SIZES, _size),
}
