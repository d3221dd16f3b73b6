"""What Prometheus may ask, in a registry of this relay's own.

Labels are words of the code alone (error codes, frame types, sources of a wake-up), never a user, a group or what a
client sent. A counter with a label is a tally, of which samples are made when somebody asks: counting a request costs
a look-up in a dict, and no lock.
"""

import collections
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from orbital_protocol.codes import ErrorCode
from orbital_relay import __version__

WakeSource = Literal["writer", "notify", "reconnect", "sweep"]

_APPEND_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_DELIVERY_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_STORE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


Tally = collections.Counter[str]
"""How often what was seen, by a word: `tally["not_found"] += 1`."""


@dataclass(frozen=True, eq=False)
class _Family(Collector):
    """A tally, as a counter with one label."""

    tally: Tally
    name: str
    about: str
    label: str

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self.name, self.about, labels=[self.label])
        for word, count in self.tally.items():
            family.add_metric([word], count)
        return [family]


class Metrics:
    """Every metric of one relay."""

    # The one format that every scraper reads; the library's negotiation stumbles over odd Accept headers.
    CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, about: str) -> Counter:
            return Counter(name, about, registry=registry)

        def tally(name: str, about: str, label: str, words: Iterable[str] = ()) -> Tally:
            counts = Tally(dict.fromkeys(words, 0))
            registry.register(_Family(counts, name, about, label))
            return counts

        def gauge(name: str, about: str) -> Gauge:
            return Gauge(name, about, registry=registry)

        Info("orbital_build", "What runs here.", registry=registry).info({"version": __version__})
        self.connections = gauge("orbital_connections", "Open WebSockets.")
        self.connections_max = gauge("orbital_connections_max", "How many WebSockets there may be.")
        self.sessions = gauge("orbital_sessions", "Authenticated connections.")
        self.posts = counter("orbital_posts", "Posts made durable.")
        self.append_batch_size = Histogram(
            "orbital_append_batch_size", "Appends in one transaction.", buckets=_BATCH_SIZES, registry=registry
        )
        self.append_seconds = Histogram(
            "orbital_append_seconds", "From a batch's start to its commit.", buckets=_APPEND_SECONDS, registry=registry
        )
        self.delivery_seconds = Histogram(
            "orbital_delivery_seconds",
            "From a commit here, or its reading from the store, to the sockets: a batch's first event.",
            buckets=_DELIVERY_SECONDS,
            registry=registry,
        )
        self.events_delivered = counter("orbital_events_delivered", "Events handed to sockets.")
        self.outbox_bytes = gauge("orbital_outbox_bytes", "Bytes that wait in all outboxes.")
        self.slow_consumers = counter("orbital_slow_consumers", "Sessions cut because they drained nothing.")
        self.replays_active = gauge("orbital_replays_active", "Replays that are paging from the store.")
        self.listener_up = gauge("orbital_listener_up", "1 while the listener hears its own echo.")
        self.database_up = gauge("orbital_database_up", "1 while the database answers.")
        self.certificate_expires = gauge(
            "orbital_tls_certificate_expires_timestamp_seconds",
            "When the certificate ends, in seconds since 1970; 0 where TLS is not the relay's.",
        )
        self.media_store_up = gauge("orbital_media_store_up", "1 while the store of files answers.")
        self.media_bytes = tally(
            "orbital_media_bytes", "Bytes of files that became durable (in) or were read (out).", "direction"
        )
        self.media_uploads = tally("orbital_media_uploads", "Uploads, by what became of them.", "outcome")
        self.media_expired = counter("orbital_media_expired", "Files that expired.")
        self.media_waiting_bytes = gauge("orbital_media_waiting_bytes", "Bytes of uploads that wait for the store.")
        self.media_store_seconds = Histogram(
            "orbital_media_store_seconds",
            "Requests to the store of files.",
            ["operation"],
            buckets=_STORE_SECONDS,
            registry=registry,
        )
        self.media_store_errors = tally(
            "orbital_media_store_errors", "Requests to the store of files that failed.", "operation"
        )
        self.requests = tally("orbital_requests", "Requests by frame type.", "type")
        # What has not happened is 0, not absent: nobody could tell that the first of its kind is one more.
        self.errors = tally("orbital_errors", "Errors sent to clients by code.", "code", ErrorCode)
        self.wakeups = tally(
            "orbital_wakeups",
            "Hints that a group's head moved, by where they came from.",
            "source",
            get_args(WakeSource),
        )

    def expose(self) -> bytes:
        """Everything, as text of CONTENT_TYPE."""
        return generate_latest(self.registry)
