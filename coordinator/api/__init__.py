"""HTTP: the OpenAI routes, the pool's own, and those for operations."""

from coordinator.api.app import create_api
from coordinator.api.context import Context

__all__ = ["Context", "create_api"]
