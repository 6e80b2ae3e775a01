"""What all commands share: the console and the settings."""

from __future__ import annotations

import logging

from rich.console import Console

from service.settings import Settings, load_settings

console = Console()


def configured() -> Settings:
    """Settings with logging set up by them."""
    loaded = load_settings()
    logging.basicConfig(level=loaded.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return loaded
