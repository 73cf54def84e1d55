"""Counts the words of a text."""

from collections import Counter
from typing import TypedDict

from agentfactory_guest import Host


class Input(TypedDict):
    text: str


class Output(TypedDict):
    words: int
    most_common: list[str]


def run(input: Input, host: Host) -> Output:
    words = input["text"].lower().split()
    host.log.info("counted", words=len(words))
    return {"words": len(words), "most_common": [word for word, _ in Counter(words).most_common(3)]}
