"""The worker: a resident model that takes jobs from the queue and writes sounds to storage."""
