"""Write dashboard.json, a Grafana dashboard of what relays measure; `make docs` does it."""

import json
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
)

FILE: Final = Path(__file__).with_name("dashboard.json")

_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
_RELAY: Final = 'instance=~"$instance"'
_WINDOW: Final = "[$__rate_interval]"  # Grafana's, which holds enough samples
_HEIGHT: Final = 8
_COLUMNS: Final = 24


@dataclass(frozen=True)
class Chart:
    """Lines over time: what each is called (with Prometheus's labels), and its query."""

    title: str
    unit: str
    lines: dict[str, str]
    about: str = ""


def rate(metric: str, by: str = "") -> str:
    """How much a counter grows a second, of all relays together, or by a label."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{_RELAY}}}{_WINDOW}))"


def total(metric: str) -> str:
    """A gauge, of all relays together."""
    return f"sum ({metric}{{{_RELAY}}})"


def each(metric: str) -> str:
    """A gauge, relay by relay."""
    return f"{metric}{{{_RELAY}}}"


def quantile(q: float, metric: str, by: str = "le") -> str:
    """A quantile of a histogram of all relays together, or by `le` and a label."""
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', by)})"


def quantiles(metric: str) -> dict[str, str]:
    """The median and the 99th percentile of a histogram."""
    return {"p50": quantile(0.5, metric), "p99": quantile(0.99, metric)}


ROWS: Final[dict[str, list[Chart]]] = {
    "At a glance": [
        Chart(
            "Posts and deliveries",
            "ops",
            {"posts": rate("orbital_posts_total"), "deliveries": rate("orbital_events_delivered_total")},
        ),
        Chart("People", "short", {"connections": total("orbital_connections"), "sessions": total("orbital_sessions")}),
        Chart(
            "Health",
            "bool_on_off",
            {
                f"{what} {{{{instance}}}}": each(f"orbital_{metric}_up")
                for what, metric in (("database", "database"), ("listener", "listener"), ("store", "media_store"))
            },
            "The database answers, the listener hears, the store of files answers.",
        ),
    ],
    "How long it takes": [
        Chart(
            "To make a batch durable",
            "s",
            quantiles("orbital_append_seconds"),
            "From a batch's start to its commit: the database's share.",
        ),
        Chart("From commit to sockets", "s", quantiles("orbital_delivery_seconds")),
        Chart(
            "Posts in one transaction",
            "short",
            quantiles("orbital_append_batch_size"),
            "Grows with load: a lane takes what queued while it was busy.",
        ),
    ],
    "What waits": [
        Chart(
            "Bytes in outboxes",
            "bytes",
            {"{{instance}}": each("orbital_outbox_bytes")},
            "Grows where readers, or the way to them, are slow.",
        ),
        Chart(
            "Replays",
            "short",
            {"{{instance}}": each("orbital_replays_active")},
            "Clients that catch up from the store.",
        ),
        Chart("Slow readers cut", "ops", {"{{instance}}": rate("orbital_slow_consumers_total", by="instance")}),
    ],
    "What is asked": [
        Chart("Requests", "ops", {"{{type}}": rate("orbital_requests_total", by="type")}),
        Chart(
            "Errors",
            "ops",
            {"{{code}}": rate("orbital_errors_total", by="code") + " > 0"},
            "`internal` is a defect; the log has it as `request.failed`.",
        ),
        Chart(
            "Wake-ups",
            "ops",
            {"{{source}}": rate("orbital_wakeups_total", by="source")},
            "`sweep`: a notification was lost, or is late.",
        ),
    ],
    "Files": [
        Chart("Bytes", "Bps", {"{{direction}}": rate("orbital_media_bytes_total", by="direction")}),
        Chart(
            "Uploads",
            "ops",
            {
                "{{outcome}}": rate("orbital_media_uploads_total", by="outcome"),
                "expired": rate("orbital_media_expired_total"),
            },
        ),
        Chart(
            "The store's p99",
            "s",
            {"{{operation}}": quantile(0.99, "orbital_media_store_seconds", by="le, operation")},
        ),
        Chart(
            "Waiting for the store",
            "bytes",
            {"{{instance}}": each("orbital_media_waiting_bytes")},
            "Bytes of uploads in memory, of at most `media_memory_bytes`.",
        ),
    ],
    "The processes": [
        Chart(
            "Processor",
            "percentunit",
            {"{{instance}}": rate("process_cpu_seconds_total", by="instance")},
            "Of one core, which is all that one relay can use.",
        ),
        Chart("Memory", "bytes", {"{{instance}}": each("process_resident_memory_bytes")}),
        Chart("File descriptors", "short", {"{{instance}}": each("process_open_fds")}),
        Chart("Versions", "short", {"{{version}} {{instance}}": each("orbital_build_info")}),
    ],
}


def build() -> str:
    """The dashboard as JSON."""
    made = (
        dashboard.Dashboard("Orbital")
        .uid("orbital")
        .tags(["orbital"])
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_instances())
    )
    ids = count(1)
    for title, charts in ROWS.items():
        made = made.with_row(dashboard.Row(title).id(next(ids)))
        for chart in charts:
            made = made.with_panel(_panel(chart, _COLUMNS // len(charts)).id(next(ids)))
    return json.dumps(made.build(), cls=JSONEncoder, indent=2) + "\n"


def _instances() -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("instance")
        .label("Relay")
        .datasource(_SOURCE)
        .query("label_values(orbital_build_info, instance)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .current(VariableOption(text="All", value="$__all"))
    )


def _panel(chart: Chart, span: int) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )
    panel = (
        timeseries.Panel()
        .title(chart.title)
        .datasource(_SOURCE)
        .unit(chart.unit)
        .min(0)
        .fill_opacity(8)
        .height(_HEIGHT)
        .span(span)
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if chart.about:
        panel = panel.description(chart.about)
    for letter, (name, query) in zip("ABCDEF", chart.lines.items(), strict=False):
        panel = panel.with_target(prometheus.Dataquery().ref_id(letter).expr(query).legend_format(name).range())
    return panel


if __name__ == "__main__":
    FILE.write_text(build(), encoding="utf-8")
