"""How hypothesis searches here: no time limit per example, because the machine may be busy."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("fantail", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fantail")
