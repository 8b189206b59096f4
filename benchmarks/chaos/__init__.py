"""Is anything lost when something fails? The model is simulated, all else is real.

__main__    `make chaos`: workers killed with -9, Redis killed and restarted, rolling restarts of workers
partition   a worker or Redis loses its network for a while (root)
hosts       network namespaces with addresses of their own; docker/check.py uses them too
verdict     what became of the jobs
"""
