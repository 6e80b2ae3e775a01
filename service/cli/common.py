"""What all commands share: the console and the settings."""

from __future__ import annotations

from rich.console import Console

from service.logs import set_up_logging
from service.settings import Settings, load_settings

console = Console()


def configured() -> Settings:
    """Settings with logging set up by them."""
    loaded = load_settings()
    set_up_logging(loaded.log_level, loaded.log_format, loaded.log_texts)
    return loaded
