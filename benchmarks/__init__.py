"""Measurements of the service; each script says how to run it."""
