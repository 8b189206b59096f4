"""Servers of others around the same model function; each runs in an environment of its own and is given its options as JSON."""
