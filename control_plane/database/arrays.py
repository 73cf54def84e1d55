"""Conditions over any number of values. Holds no query."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import ARRAY, Column, ColumnElement, any_, literal


def is_one_of(of: Column[Any], values: Collection[Any]) -> ColumnElement[bool]:
    """Like `in_`, with one array: the statement, and with it its plan, is the same for any number of values.

    `in_` has a parameter for each, so every number of them is another statement, compiled here and planned
    there.
    """
    return of == any_(literal(list(values), ARRAY(of.type)))
