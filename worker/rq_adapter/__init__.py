"""The worker's side of RQ. It knows the engine and the job runner, but no model.

worker.py  RQ's worker with many jobs at a time.
claim.py   Jobs as data, the claim from the queue, the set of claimed jobs.
finish.py  Final states of ended jobs.
leases.py  Leases, and recovery of lost workers' jobs.
"""
