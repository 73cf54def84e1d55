"""What is counted of witnesses, in Prometheus' form. Implements `WitnessObserver`."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from control_plane.witnesses.domain import (
    Cosignature,
    Forked,
    Moved,
    Outcome,
    Refused,
    Witness,
    WitnessState,
)


class WitnessMetrics:
    """Counts; cheap and never raises. A label for each witness: there are 16 at most."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._age = Gauge(
            "af_log_witness_age_seconds",
            "Since a witness cosigned last; -1: it never did.",
            ["witness"],
            registry=registry,
        )
        self._seen = Gauge(
            "af_log_witness_size", "The largest head that a witness saw.", ["witness"], registry=registry
        )
        self._answers = Counter(
            "af_log_witness_answers",
            "What this replica got from a witness: cosigned, moved, forked, or why not.",
            ["witness", "answer"],
            registry=registry,
        )
        self._witnessed = Gauge(
            "af_log_witnessed_size", "The newest head with a quorum of cosignatures.", registry=registry
        )
        self._stopped = Gauge(
            "af_log_stopped", "1: the log signs nothing any more, because of a fork.", registry=registry
        )

    def witness_is(self, witness: Witness, state: WitnessState) -> None:
        """See `WitnessObserver.witness_is`."""
        age = state.success_age
        self._age.labels(witness.name).set(-1 if age is None else age.total_seconds())
        self._seen.labels(witness.name).set(state.tree_size)

    def witness_answered(self, witness: Witness, outcome: Outcome) -> None:
        """See `WitnessObserver.witness_answered`."""
        self._answers.labels(witness.name, _word(outcome)).inc()

    def witnessed(self, tree_size: int) -> None:
        """See `WitnessObserver.witnessed`."""
        self._witnessed.set(tree_size)

    def log_stopped(self, stopped: int) -> None:
        """See `WitnessObserver.log_stopped`."""
        self._stopped.set(stopped)


def _word(outcome: Outcome) -> str:
    match outcome:
        case Cosignature():
            return "cosigned"
        case Moved():
            return "moved"
        case Forked():
            return "forked"
        case Refused():
            return str(outcome.refusal)
