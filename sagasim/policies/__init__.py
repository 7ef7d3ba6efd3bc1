"""The policies that come with sagasim. A new one is a file here, or anywhere, with one decorated function or class."""

from sagasim.policies import aeg, balance, clairvoyant, evict, order, route, saga, yardsticks

__all__ = ["aeg", "balance", "clairvoyant", "evict", "order", "route", "saga", "yardsticks"]
