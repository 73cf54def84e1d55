"""Adds what a registry of companies knows to a batch of records; each company is asked about once."""

import re
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus

from agentfactory_guest import Host, HostError, Secret

REGISTRY = "https://registry.example.test/v1/companies/"
NUMBER = re.compile(r"[A-Z]{2}[0-9]{6,10}")
MAX_COMPANIES = 200


@dataclass
class Record:
    id: str
    company: str
    amount_cents: int = 0


@dataclass
class Company:
    name: str
    country: str
    is_active: bool


@dataclass
class Enriched:
    id: str
    amount_cents: int
    company: Company | None
    problem: str = ""


@dataclass
class Input:
    records: list[Record]


@dataclass
class Output:
    records: list[Enriched] = field(default_factory=list)
    asked: int = 0
    problems: dict[str, int] = field(default_factory=dict)
    cents_of_inactive: int = 0


@dataclass
class Registry:
    """Asks once about each company, and no more once it was told to stop."""

    host: Host
    key: Secret
    known: dict[str, Company | str] = field(default_factory=dict)
    """A company, or why there is none."""
    stopped: str = ""

    def find(self, number: str) -> Company | str:
        if not NUMBER.fullmatch(number):
            return "no_number"
        if number not in self.known:
            if self.stopped or len(self.known) >= MAX_COMPANIES:
                return self.stopped or "too_many_companies"
            self.known[number] = self._ask(number)
        return self.known[number]

    def _ask(self, number: str) -> Company | str:
        try:
            answer = self.host.http.fetch(REGISTRY + number, headers={"authorization": self.key})
        except HostError as error:
            # A limit, a name that leads nowhere, a server that does not answer: the batch goes on.
            self.host.log.warning("not asked", company=number, reason=error.reason)
            return error.reason.lower()
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            self.stopped = "registry_busy"
            return self.stopped
        if answer.status != HTTPStatus.OK:
            return "unknown" if answer.status == HTTPStatus.NOT_FOUND else f"status_{answer.status}"
        try:
            said = answer.json()
            return Company(str(said["name"]), str(said["country"]), said["status"] == "active")
        except (ValueError, KeyError, TypeError):
            return "unreadable"


def run(given: Input, host: Host) -> Output:
    """Return each record with its company, or with why it has none."""
    registry = Registry(host, host.secret("registry-key").with_prefix("Bearer "))
    output = Output()
    problems: Counter[str] = Counter()
    for record in given.records:
        found = registry.find(record.company)
        enriched = Enriched(record.id, record.amount_cents, None)
        if isinstance(found, Company):
            enriched.company = found
            output.cents_of_inactive += 0 if found.is_active else record.amount_cents
        else:
            enriched.problem = found
            problems[found] += 1
        output.records.append(enriched)
    output.asked = len(registry.known)
    output.problems = dict(sorted(problems.items()))
    host.log.info("enriched", records=len(output.records), asked=output.asked)
    return output
