"""How fast the service is, and what it costs: `python -m benchmarks.load SCENARIO`.

The model is simulated unless a bundle is named: a step sleeps a constant time. All else is real.

__main__    the command line
workload    what is requested, and when; loads no torch
simulated   the simulated model, and a worker process with it
service     Redis, API and worker in processes of their own
client      HTTP requests at given times, or a fixed number in flight; throughput and latency
api         scenarios of the API: idle, overload, enqueue, sse
worker      scenarios of the worker: throughput, replay
redis_rate  the scenario redis: many simulated workers on one Redis
race        the scenario race: this service or another server under the same load
"""
