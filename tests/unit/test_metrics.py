"""Names, labels and independence of the metrics."""

import inspect
import re
import typing

import pytest
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from orbital_protocol.codes import ErrorCode
from orbital_relay import __version__
from orbital_relay.metrics import Metrics, WakeSource

NAMES = {
    "orbital_append_batch_size": "histogram",
    "orbital_append_seconds": "histogram",
    "orbital_build_info": "gauge",
    "orbital_connections": "gauge",
    "orbital_connections_max": "gauge",
    "orbital_database_up": "gauge",
    "orbital_delivery_seconds": "histogram",
    "orbital_errors": "counter",
    "orbital_events_delivered": "counter",
    "orbital_listener_up": "gauge",
    "orbital_media_bytes": "counter",
    "orbital_media_expired": "counter",
    "orbital_media_store_errors": "counter",
    "orbital_media_store_seconds": "histogram",
    "orbital_media_store_up": "gauge",
    "orbital_media_uploads": "counter",
    "orbital_media_waiting_bytes": "gauge",
    "orbital_outbox_bytes": "gauge",
    "orbital_posts": "counter",
    "orbital_replays_active": "gauge",
    "orbital_requests": "counter",
    "orbital_sessions": "gauge",
    "orbital_slow_consumers": "counter",
    "orbital_tls_certificate_expires_timestamp_seconds": "gauge",
    "orbital_wakeups": "counter",
}


def exposed(metrics: Metrics) -> str:
    return metrics.expose().decode()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_the_names_are_those_that_dashboards_use() -> None:
    families = {family.name: family.type for family in text_string_to_metric_families(exposed(Metrics()))}
    own = {name: kind for name, kind in families.items() if name.startswith("orbital_") and "_created" not in name}
    assert own == NAMES


def test_counters_end_in_total() -> None:
    metrics = Metrics()
    metrics.posts.inc(3)
    metrics.slow_consumers.inc()
    metrics.events_delivered.inc(1000)
    assert value(metrics, "orbital_posts_total") == 3
    assert value(metrics, "orbital_slow_consumers_total") == 1
    assert value(metrics, "orbital_events_delivered_total") == 1000


def test_two_relays_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.connections.inc()
    one.errors["internal"] += 1
    assert value(one, "orbital_connections") == 1
    assert value(other, "orbital_connections") == 0
    assert value(other, "orbital_errors_total", code="internal") == 0


def test_an_error_that_has_not_happened_is_counted_as_none() -> None:
    assert {value(Metrics(), "orbital_errors_total", code=code) for code in ErrorCode} == {0}


def test_tallies_hold_what_was_counted() -> None:
    metrics = Metrics()
    metrics.errors["not_found"] += 1
    assert [code for code, count in metrics.errors.items() if count] == ["not_found"]
    metrics.requests["group.create"] += 2
    assert value(metrics, "orbital_errors_total", code="not_found") == 1
    assert value(metrics, "orbital_requests_total", type="group.create") == 2


@pytest.mark.parametrize("source", typing.get_args(WakeSource))
def test_wakeups_count_each_source(source: WakeSource) -> None:
    metrics = Metrics()
    assert set(metrics.wakeups) == set(typing.get_args(WakeSource))
    metrics.wakeups[source] += 1
    assert value(metrics, "orbital_wakeups_total", source=source) == 1


def test_gauges_may_be_read_when_they_are_asked_for() -> None:
    metrics = Metrics()
    metrics.outbox_bytes.set_function(lambda: 4_096)
    assert value(metrics, "orbital_outbox_bytes") == 4_096


def test_labels_name_neither_users_nor_groups() -> None:
    metrics = Metrics()
    metrics.errors["internal"] += 1
    metrics.requests["register"] += 1
    metrics.media_bytes["in"] += 1
    metrics.media_uploads["begun"] += 1
    metrics.media_store_errors["read"] += 1
    metrics.media_store_seconds.labels("read").observe(1)
    labels = {
        label
        for family in metrics.registry.collect()
        if family.name.startswith("orbital_")
        for sample in family.samples
        for label in sample.labels
    }
    assert labels == {"code", "type", "source", "version", "le", "direction", "outcome", "operation"}


def test_what_runs_is_told() -> None:
    assert value(Metrics(), "orbital_build_info", version=__version__) == 1


def test_the_process_is_measured_too() -> None:
    assert (value(Metrics(), "process_open_fds") or 0) > 0


def test_every_metric_is_described() -> None:
    for line in exposed(Metrics()).splitlines():
        if line.startswith("# HELP orbital_"):
            assert re.search(r" .+\.$", line), line
    attributes = inspect.getmembers(Metrics(), lambda member: isinstance(member, Counter | Gauge | Histogram))
    assert len(attributes) == len(NAMES) - 7  # build_info has none; six are kept by label
