"""What every set of metrics of this project is made of: a registry of its own, described for the documentation."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector


class MetricInfo(NamedTuple):
    """One metric as the documentation lists it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    description: str


class MetricSet:
    """Nothing is global: each set owns a registry. Names start with `streamrec_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.described: list[MetricInfo] = []
        ProcessCollector(namespace="streamrec", registry=self.registry)

    def value(self, name: str, **labels: str) -> float:
        """One sample by its full name (`streamrec_events_total`); 0 where nothing was counted yet."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def exposition(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)

    def markdown(self) -> str:
        """The metrics as a Markdown table, for the README."""
        lines = ["| metric | type | labels | what it counts |", "|---|---|---|---|"]
        for info in self.described:
            labels = ", ".join(f"`{label}`" for label in info.labels)
            lines.append(f"| `{info.name}` | {info.kind} | {labels} | {info.description} |")
        return "\n".join(lines)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        self.described.append(MetricInfo(f"streamrec_{name}_total", "counter", labels, description))
        return Counter(f"streamrec_{name}", description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        self.described.append(MetricInfo(f"streamrec_{name}", "gauge", labels, description))
        return Gauge(f"streamrec_{name}", description, labels, registry=self.registry)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        self.described.append(MetricInfo(f"streamrec_{name}", "histogram", labels, description))
        return Histogram(f"streamrec_{name}", description, labels, registry=self.registry, buckets=buckets)
