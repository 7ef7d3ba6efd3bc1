"""The policies that come with sagasim. A new one is a file here, or anywhere, with one decorated function or class."""

from sagasim.policies import aeg, balance, evict, order, route, saga

__all__ = ["aeg", "balance", "evict", "order", "route", "saga"]
