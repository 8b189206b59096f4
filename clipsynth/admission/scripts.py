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
--   6 most tokens, 7 most unfinished of an owner (0: no limit), 8 reservation, or '' if the generation is
--   created with it, 9 most bytes kept of an owner (0: no limit), 10 value of the idempotency key, 11 seconds
--   until it expires.
-- Returns 'ok', 'reserved' if the id already has a place, 'bound' if the idempotency key already has a value,
-- or the limit that refuses the request; and a text: the requests left for 'ok', that value, seconds for
-- 'rate', work for the others. All but 'ok' end a batch.
local function number(value) return tonumber(value or '0') end
local owner, work, max_jobs, max_work = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local rate, burst, max_unfinished = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local is_known = redis.call('ZSCORE', KEYS[4], ARGV[8]) or redis.call('EXISTS', KEYS[5]) == 1
if is_known then return {'reserved', '0'}, true end
local bound = KEYS[7] and redis.call('GET', KEYS[7])
if bound then return {'bound', bound}, true end
local max_kept = tonumber(ARGV[9])
if max_kept > 0 and number(redis.call('HGET', KEYS[6], owner)) >= max_kept then return {'kept', '0'}, true end

local load = redis.call('HMGET', KEYS[1], 'n', 'w', 'n:' .. owner, 'w:' .. owner)
local jobs, total, own_jobs, own_work = number(load[1]), number(load[2]), number(load[3]), number(load[4])
if max_unfinished > 0 and number(redis.call('HGET', KEYS[2], owner)) >= max_unfinished then
  return {'inflight', tostring(own_jobs > 0 and total / own_jobs or 0)}, true
end
if jobs > 0 and (jobs + 1 > max_jobs or (max_work > 0 and total + work > max_work)) then
  return {'full', tostring(math.max(total / jobs, max_work > 0 and total + work - max_work or 0))}, true
end
if own_jobs > 0 then
  -- Each of k owners may use one part in k + 1 of the queue, so that one more owner has room.
  local parts = (redis.call('HLEN', KEYS[1]) - 2) / 2 + 1
  if own_jobs + 1 > max_jobs / parts or (max_work > 0 and own_work + work > max_work / parts) then
    return {'share', tostring(total / own_jobs)}, true
  end
end

local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local tokens = burst
if rate > 0 then
  local bucket = redis.call('HMGET', KEYS[3], 'tokens', 'at')
  if bucket[1] then tokens = math.min(burst, bucket[1] + math.max(0, now - bucket[2]) * rate) end
  if tokens < 1 then return {'rate', tostring((1 - tokens) / rate)}, true end
  tokens = tokens - 1
  redis.call('HSET', KEYS[3], 'tokens', tostring(tokens), 'at', string.format('%.6f', now))
  redis.call('EXPIRE', KEYS[3], math.ceil(burst / rate) + 1)
end

for _, suffix in ipairs({'', ':' .. owner}) do
  redis.call('HINCRBY', KEYS[1], 'n' .. suffix, 1)
  redis.call('HINCRBYFLOAT', KEYS[1], 'w' .. suffix, ARGV[2])
end
redis.call('HINCRBY', KEYS[2], owner, 1)
if ARGV[8] ~= '' then redis.call('ZADD', KEYS[4], string.format('%.6f', now), ARGV[8]) end
if KEYS[7] then redis.call('SET', KEYS[7], ARGV[10], 'EX', ARGV[11]) end
return {'ok', tostring(tokens)}
"""
# Running jobs that an estimate reads.
MAX_RUNNING = 256
_BEFORE = (
    lua_names("RECORD", "LOAD", "RUNNING", "ETA_RATIOS", "WORKERS", "MODEL", "QUEUE", "ALIVE", "STARTING")
    + f"local MAX_RUNNING = {MAX_RUNNING}\n"
    + """
-- Return the load of a model by name, and the work that runs now by owner.
local function read_load(model)
  local load, running, values = {}, {}, redis.call('HGETALL', LOAD .. model)
  for n = 1, #values, 2 do load[values[n]] = tonumber(values[n + 1]) end
  for _, execution in ipairs(redis.call('ZRANGE', RUNNING .. model, 0, MAX_RUNNING - 1)) do
    local job = redis.pcall('HMGET', RECORD .. string.match(execution, '^[^:]*'), 'owner', 'work')
    if job[1] and job[2] then running[job[1]] = (running[job[1]] or 0) + job[2] end
  end
  return load, running
end

-- Return the work done before a job with `own` work of its owner before it. Owners share the queue fairly: of
-- another owner's work, at most `own` and one job are done before. Running jobs count half.
local function work_before(load, running, owner, own)
  local before = own
  for name, jobs in pairs(load) do
    local other = string.match(name, '^n:(.*)$')
    if other and other ~= owner then
      local total = load['w:' .. other] or 0
      before = before + math.min(total, own + total / math.max(1, jobs) + (running[other] or 0))
    end
  end
  for _, work in pairs(running) do before = before - work / 2 end
  return math.max(0, before)
end

-- Return the seconds of this work for a model's workers as a text; '' if no worker serves or loads it.
local function seconds_of(model, work, audio_step_s)
  if redis.call('EXISTS', ALIVE .. model, STARTING .. model) == 0 then return '' end
  local workers = math.max(1, redis.call('SCARD', WORKERS .. model))
  return string.format('%.17g', work * audio_step_s / workers)
end
"""
)
READ_LOAD = (
    _BEFORE
    + """
-- ARGV: 1 model, 2 owner, 3 work of the owner in the load that is not before the request, 4 seconds of one
--   work, 5 index of the last ratio (-1 all, 0 none), 6 the request's own seconds, 7 id of its record or ''.
-- Returns the number of unfinished generations, the seconds before the request ('' if unknown), and the
-- ratios of actual by estimated duration. The record gets the sum of seconds.
local model, owner, id = ARGV[1], ARGV[2], ARGV[7]
local load, running = read_load(model)
local own = math.max(0, (load['w:' .. owner] or 0) - ARGV[3])
local before = ''
if ARGV[4] ~= '' then before = seconds_of(model, work_before(load, running, owner, own), ARGV[4]) end
if id ~= '' and before ~= '' then
  redis.call('HSET', RECORD .. id, 'eta_s', string.format('%.17g', before + ARGV[6]))
end
local ratios = ARGV[5] == '0' and {} or redis.call('LRANGE', ETA_RATIOS .. model, 0, ARGV[5])
return {load.n or 0, before, ratios}
"""
)
READ_PLACE = (
    _BEFORE
    + """
-- ARGV: 1 id. Returns the jobs before a queued one, and if its estimate is known the seconds before it, its
-- work, and the cost of its model as JSON; nothing unless it is in the queue.
local job = redis.pcall('HMGET', RECORD .. ARGV[1], 'status', 'model', 'owner', 'work', 'turn')
local model, owner, work = job[2], job[3], job[4]
if job[1] ~= 'queued' or not model then return {} end
local position = redis.call('LPOS', QUEUE .. model, ARGV[1])
if not position then return {} end
-- In a JSON text, a name in quotation marks is nowhere else.
local cost = string.match(redis.call('GET', MODEL .. model) or '', '"cost":(%b{})')
if not cost or not owner or not work then return {position} end
local load, running = read_load(model)
local first = redis.call('HGET', RECORD .. redis.call('LINDEX', QUEUE .. model, 0), 'turn') or 0
-- An owner's jobs follow each other in virtual time, so the distance of turns is the queued work before.
local own = (running[owner] or 0) + math.max(0, (job[5] or 0) - first)
own = math.min(own, math.max(0, (load['w:' .. owner] or 0) - work))
local before = work_before(load, running, owner, own)
return {position, seconds_of(model, before, cjson.decode(cost).audio_step_s), work, cost}
"""
)
# Runs several scripts and commands as one.
RUN = """
-- ARGV: for each command the number of its words, then its words. A script is the word `@` and its number,
--   its number of keys, its keys and its arguments.
-- Returns a result or an error for each command. A script that returns a second value ends the batch.
-- Redis refuses writes only until a script has written; then nothing was carried out, and that is the error.
local REFUSALS = {'OOM ', 'MISCONF ', 'READONLY ', 'NOREPLICAS '}
local results, at = {}, 1
while at <= #ARGV do
  local first, last = at + 1, at + ARGV[at]
  local script, result, ends = SCRIPTS[ARGV[first]], nil, false
  if script then
    local keys = first + 1 + ARGV[first + 1]
    local ok
    ok, result, ends = pcall(script, {unpack(ARGV, first + 2, keys)}, {unpack(ARGV, keys + 1, last)})
    if not ok then result = {err = type(result) == 'table' and result.err or tostring(result)} end
  else
    result = redis.pcall(unpack(ARGV, first, last))
  end
  if type(result) == 'table' and result.err then
    for _, refusal in ipairs(REFUSALS) do
      if string.find(result.err, refusal, 1, true) then return {err = result.err} end
    end
  end
  table.insert(results, result or false)
  if ends then break end
  at = last + 1
end
return results
"""
