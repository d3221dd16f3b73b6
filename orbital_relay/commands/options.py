"""Options that many commands take, and the settings that come of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from orbital_relay import config
from orbital_relay.config import ConfigError, Settings

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting (see `orbital-relay config`).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def settings_from(file: Path | None, sets: list[str] | None, **flags: Any) -> Settings:
    """Load the settings; `--set` stands beside the flags."""
    given: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    for text in sets or []:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise ConfigError([f"--set {text}: must be KEY=VALUE"])
        given[key.strip().replace("-", "_")] = value
    return config.load(given, file=file)
