"""Is anything lost when something fails? The model is simulated, all else is real.

__main__    `make chaos`: workers killed, paused or restarted, Redis killed or at its maxmemory, a full disk
files       a disk that can be filled, and files that must not change
partition   a worker or Redis loses its network for a while (root)
hosts       network namespaces with addresses of their own; docker/check.py uses them too
verdict     what became of the jobs
"""
