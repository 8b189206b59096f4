"""In which order jobs of several API keys wait: by start-time fair queueing (Goyal et al. 1996), so that nobody waits for another's whole backlog.

A key's jobs follow each other in virtual time, each as long as its work; a key that had nothing queued begins where the queue's head is. The
queue is kept sorted by those starts. With one key, or while none has a backlog, that is first come, first served.
"""

from __future__ import annotations

from redis.client import Pipeline

# KEYS: the queue's list, at whose end the job is; the hash of where each owner's next job starts, and under '' the latest start of all: when
# the queue is empty the owners are forgotten and time goes on from there, so that a job that is put back is never later than new ones.
# ARGV: the job, its owner, its work.
_TAKE_TURN = """
local function start_of(id) return tonumber(redis.call('HGET', 'clipsynth:gen:' .. id, 'turn') or '0') end
local list, starts, id, owner, work = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('LINDEX', list, -1) ~= id then return end
redis.call('RPOP', list)
local size = redis.call('LLEN', list)
local latest = tonumber(redis.call('HGET', starts, '') or '0')
if size == 0 then redis.call('DEL', starts) end
local now = size == 0 and latest or start_of(redis.call('LINDEX', list, 0))
local start = math.max(now, tonumber(redis.call('HGET', starts, owner) or '0'))
redis.call('HSET', starts, owner, string.format('%.6f', start + work), '', string.format('%.6f', math.max(latest, start)))
redis.call('HSET', 'clipsynth:gen:' .. id, 'turn', string.format('%.6f', start))
local low, high = 0, size
if size > 0 and start_of(redis.call('LINDEX', list, -1)) <= start then low = size end
while low < high do
  local middle = math.floor((low + high) / 2)
  if start_of(redis.call('LINDEX', list, middle)) <= start then low = middle + 1 else high = middle end
end
if low == size then
  redis.call('RPUSH', list, id)
else
  redis.call('LINSERT', list, 'BEFORE', redis.call('LINDEX', list, low), id)
end
"""


def take_turn(pipeline: Pipeline, *, model: str, generation_id: str, owner: str, work: float) -> None:
    """Queue the command that moves a job from the end of its queue to its owner's turn; its record has to be there by then."""
    keys = [f"rq:queue:clipsynth-{model}", f"clipsynth:turns:{model}"]
    # EVAL, not a registered script: before a pipeline with one, redis-py asks in a round trip of its own whether Redis has it.
    pipeline.eval(_TAKE_TURN, len(keys), *keys, generation_id, owner, f"{work:.6f}")
