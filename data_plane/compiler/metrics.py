"""What a compiling node has done, by name and unit."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class CompilerMetrics:
    """One registry per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.compiled = Counter(
            "agentfactory_compiler_modules", "Modules compiled and handed in", registry=registry
        )
        self.failures = Counter(
            "agentfactory_compiler_failures",
            "Modules that were not compiled, or not taken",
            ["reason"],
            registry=registry,
        )
        self.seconds = Histogram(
            "agentfactory_compiler_seconds",
            "Time to compile one module",
            buckets=(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
            registry=registry,
        )
        self.ready = Gauge(
            "agentfactory_compiler_ready",
            "1: the last look for work went well; 0: nothing is compiled now, /readyz says why",
            registry=registry,
        )
        self.certificate_seconds = Gauge(
            "agentfactory_compiler_certificate_seconds",
            "How long this node's certificate counts yet; below 0: no more",
            registry=registry,
        )
