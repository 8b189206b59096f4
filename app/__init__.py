"""The HTTP API. Imports no torch; the worker does the work."""
