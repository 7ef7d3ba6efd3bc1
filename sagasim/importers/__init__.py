"""Importers: what a trace format says, as tasks. Nothing here knows where a file came from."""
