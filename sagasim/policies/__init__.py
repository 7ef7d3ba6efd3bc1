"""The policies that come with sagasim. A new one is a file here, or anywhere, with one decorated function or class."""

from sagasim.policies import evict, order, route

__all__ = ["evict", "order", "route"]
