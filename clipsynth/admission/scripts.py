"""Lua scripts of admission, each one atomic step."""

from __future__ import annotations

from clipsynth.redis_keys import lua_names

# A Lua function for other scripts: release the place of one generation.
RELEASE = (
    lua_names("LOAD", "INFLIGHT")
    + """
local function release(owner, model, work)
  local load = LOAD .. model
  for _, suffix in ipairs({'', ':' .. owner}) do
    if redis.call('HINCRBY', load, 'n' .. suffix, -1) <= 0 then
      redis.call('HDEL', load, 'n' .. suffix, 'w' .. suffix)
    else
      redis.call('HINCRBYFLOAT', load, 'w' .. suffix, '-' .. work)
    end
  end
  if redis.call('HINCRBY', INFLIGHT, owner, -1) <= 0 then redis.call('HDEL', INFLIGHT, owner) end
end
"""
)
RELEASE_RESERVATION = (
    RELEASE
    + """
-- KEYS: 1 reservations, 2 idempotency key, if there is one. ARGV: 1 the reservation, "id owner model work",
--   2 value of the idempotency key.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
  if KEYS[2] and redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('DEL', KEYS[2]) end
  local _, owner, model, work = string.match(ARGV[1], '^(%S+) (%S+) (%S+) (%S+)$')
  release(owner, model, work)
end
"""
)
ADMIT = """
-- KEYS: 1 load of the model, 2 unfinished by owner, 3 token bucket, 4 reservations, 5 record,
--   6 bytes kept by owner, 7 idempotency key, if there is one.
-- ARGV: 1 owner, 2 work, 3 most jobs, 4 most work (0: no limit), 5 tokens per second (0: no limit),
--   6 most tokens, 7 most unfinished of an owner (0: no limit), 8 reservation, 9 most bytes kept of an owner
--   (0: no limit), 10 value of the idempotency key, 11 seconds until it expires.
-- Returns 'ok', 'reserved' if the id already has a place, 'bound' if the idempotency key already has a value,
-- or the limit that refuses the request; and a text: the requests left for 'ok', that value, seconds for
-- 'rate', work for the others.
local function number(value) return tonumber(value or '0') end
local owner, work, max_jobs, max_work = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local rate, burst, max_unfinished = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local is_known = redis.call('ZSCORE', KEYS[4], ARGV[8]) or redis.call('EXISTS', KEYS[5]) == 1
if is_known then return {'reserved', '0'} end
local bound = KEYS[7] and redis.call('GET', KEYS[7])
if bound then return {'bound', bound} end
local max_kept = tonumber(ARGV[9])
if max_kept > 0 and number(redis.call('HGET', KEYS[6], owner)) >= max_kept then return {'kept', '0'} end

local load = redis.call('HMGET', KEYS[1], 'n', 'w', 'n:' .. owner, 'w:' .. owner)
local jobs, total, own_jobs, own_work = number(load[1]), number(load[2]), number(load[3]), number(load[4])
if max_unfinished > 0 and number(redis.call('HGET', KEYS[2], owner)) >= max_unfinished then
  return {'inflight', tostring(own_jobs > 0 and total / own_jobs or 0)}
end
if jobs > 0 and (jobs + 1 > max_jobs or (max_work > 0 and total + work > max_work)) then
  return {'full', tostring(math.max(total / jobs, max_work > 0 and total + work - max_work or 0))}
end
if own_jobs > 0 then
  -- Each of k owners may use one part in k + 1 of the queue, so that one more owner has room.
  local parts = (redis.call('HLEN', KEYS[1]) - 2) / 2 + 1
  if own_jobs + 1 > max_jobs / parts or (max_work > 0 and own_work + work > max_work / parts) then
    return {'share', tostring(total / own_jobs)}
  end
end

local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local tokens = burst
if rate > 0 then
  local bucket = redis.call('HMGET', KEYS[3], 'tokens', 'at')
  if bucket[1] then tokens = math.min(burst, bucket[1] + math.max(0, now - bucket[2]) * rate) end
  if tokens < 1 then return {'rate', tostring((1 - tokens) / rate)} end
  tokens = tokens - 1
  redis.call('HSET', KEYS[3], 'tokens', tostring(tokens), 'at', string.format('%.6f', now))
  redis.call('EXPIRE', KEYS[3], math.ceil(burst / rate) + 1)
end

for _, suffix in ipairs({'', ':' .. owner}) do
  redis.call('HINCRBY', KEYS[1], 'n' .. suffix, 1)
  redis.call('HINCRBYFLOAT', KEYS[1], 'w' .. suffix, ARGV[2])
end
redis.call('HINCRBY', KEYS[2], owner, 1)
redis.call('ZADD', KEYS[4], string.format('%.6f', now), ARGV[8])
if KEYS[7] then redis.call('SET', KEYS[7], ARGV[10], 'EX', ARGV[11]) end
return {'ok', tostring(tokens)}
"""
_LOAD_NAMES = ("LOAD", "RUNNING", "ETA_RATIOS", "WORKERS", "MODEL", "QUEUE", "ALIVE", "STARTING")
_READ_LOAD = """
-- KEYS: 1 load of the model, 2 running jobs, 3 ratios of actual by estimated duration, 4 workers, 5 model,
--   6 queue, 7 and 8 whether a worker serves or loads the model.
-- ARGV: 1 most running jobs to read, 2 index of the last ratio (-1: all, 0: none), 3 id of a queued
--   generation or ''.
-- Returns the load and the running work by owner, each as a list of pairs, the ratios, the number of workers,
-- and 0 if no worker serves or loads the model; and for an id also the description of the model ('' if
-- unknown), the jobs before it (-1 if it is not in the queue), and its owner, work and turn, and the turn of
-- the first job in the queue.
local load, by_owner, running = {}, {}, {}
local values = redis.call('HGETALL', KEYS[1])
for n = 1, #values, 2 do table.insert(load, {values[n], values[n + 1]}) end
for _, execution in ipairs(redis.call('ZRANGE', KEYS[2], 0, ARGV[1] - 1)) do
  local job = redis.call('HMGET', RECORD .. string.match(execution, '^[^:]*'), 'owner', 'work')
  if job[1] and job[2] then by_owner[job[1]] = (by_owner[job[1]] or 0) + job[2] end
end
for owner, work in pairs(by_owner) do table.insert(running, {owner, string.format('%.6f', work)}) end
local ratios = ARGV[2] == '0' and {} or redis.call('LRANGE', KEYS[3], 0, ARGV[2])
local found = {load, running, ratios, redis.call('SCARD', KEYS[4]), redis.call('EXISTS', KEYS[7], KEYS[8])}
if ARGV[3] == '' then return found end

local first = redis.call('LINDEX', KEYS[6], 0)
local job = redis.call('HMGET', RECORD .. ARGV[3], 'owner', 'work', 'turn')
table.insert(found, redis.call('GET', KEYS[5]) or '')
table.insert(found, redis.call('LPOS', KEYS[6], ARGV[3]) or -1)
table.insert(found, job[1] or '')
table.insert(found, job[2] or '')
table.insert(found, job[3] or '0')
table.insert(found, first and redis.call('HGET', RECORD .. first, 'turn') or '0')
return found
"""
READ_LOAD = lua_names("RECORD") + _READ_LOAD
READ_PLACE = (
    lua_names("RECORD", *_LOAD_NAMES)
    + f"""
-- ARGV: as of READ_LOAD; 3 is the id of a generation. Returns as READ_LOAD, or nothing unless it is queued.
local job = redis.pcall('HMGET', RECORD .. ARGV[3], 'status', 'model')
if job[1] ~= 'queued' or not job[2] then return {{}} end
local KEYS = {{}}
for n, prefix in ipairs({{{", ".join(_LOAD_NAMES)}}}) do KEYS[n] = prefix .. job[2] end
"""
    + _READ_LOAD
)
