"""In which order jobs of several API keys wait: by start-time fair queueing (Goyal et al. 1996), so that nobody waits for another's whole backlog.

A key's jobs follow each other in virtual time, each as long as its work; a key that had nothing queued begins where the queue's head is. The
queue is kept sorted by those starts. With one key, or while none has a backlog, that is first come, first served.
"""

from __future__ import annotations

# KEYS: the queue's list, at whose end the job is; the hash of where each owner's next job starts, and under '' the latest start of all: when
# the queue is empty the owners are forgotten and time goes on from there, so that a job that is put back is never later than new ones.
# ARGV: the job, its owner, its work.
TAKE_TURN = """
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
