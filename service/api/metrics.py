"""Metrics of several processes in one exposition, told apart by a label."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class _Joined(Collector):
    def __init__(self, expositions: Mapping[str, bytes], label: str) -> None:
        self._expositions, self._label = expositions, label

    def collect(self) -> Iterator[Metric]:
        joined: dict[str, Metric] = {}
        for source, exposition in self._expositions.items():
            for family in text_string_to_metric_families(exposition.decode()):
                known = joined.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples += [
                    sample._replace(labels={**sample.labels, self._label: source}) for sample in family.samples
                ]
        yield from joined.values()


def join_expositions(expositions: Mapping[str, bytes], *, label: str) -> bytes:
    """One exposition in Prometheus' text format of several, by the value that ``label`` has in the samples of each."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Joined(expositions, label))
    return generate_latest(registry)
