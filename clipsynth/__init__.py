"""The contract that app, worker and command line share: settings, schemas, errors, state, queue, storage. Imports no torch, no FastAPI."""
