"""What hostile and broken requests do to the API: `make fuzz`."""
