"""The former place of `e2e.lib.models`, until the engine's tests name the new one."""

from e2e.lib.models import main, random_model, smollm2

__all__ = ["main", "random_model", "smollm2"]
