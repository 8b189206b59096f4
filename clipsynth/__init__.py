"""The contract between API, workers and clients, and the services around them."""
