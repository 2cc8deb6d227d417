"""Metrics of several processes in one exposition."""

from prometheus_client.parser import text_string_to_metric_families

from service.api.ray_serve import join_expositions
from service.cli.top import reading_of
from service.telemetry import Telemetry


def exposition(requests: int) -> bytes:
    telemetry = Telemetry()
    for _ in range(requests):
        telemetry.request_finished("encode", "pumps", 200, 0.01)
        telemetry.refused("queue")
    return telemetry.exposition()


def test_every_sample_is_there_with_its_source() -> None:
    """Kinds and names stay as they are; a scraper sums over the label."""
    joined = join_expositions({"a": exposition(2), "b": exposition(3)}, label="replica").decode()
    alone = {family.name: family for family in text_string_to_metric_families(exposition(2).decode())}
    families = {family.name: family for family in text_string_to_metric_families(joined)}
    assert families.keys() == alone.keys()
    assert all(families[name].type == family.type for name, family in alone.items())
    counted = {
        sample.labels["replica"]: sample.value
        for sample in families["autoencoder_requests"].samples
        if sample.name.endswith("_total")
    }
    assert counted == {"a": 2, "b": 3}
    assert joined.count("# TYPE autoencoder_requests_total ") == 1


def test_top_reads_the_sum() -> None:
    """`autoencoder top` shows all replicas together."""
    joined = join_expositions({"a": exposition(2), "b": exposition(3)}, label="replica").decode()
    assert reading_of(joined)["refusals_total"] == {("queue",): 5}
