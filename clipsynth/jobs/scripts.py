"""Lua scripts that change the record of a generation, each in one atomic step."""

from __future__ import annotations

from clipsynth.admission.scripts import RELEASE
from clipsynth.redis_keys import lua_names

# Bytes in Redis of a generation beside its fields: names, indexes, and its idempotency key.
RECORD_BYTES = 1500

# Compare-and-set of the status. A cancel that was accepted before an end wins: the generation is canceled by
# this script, because the worker may die before it can do so, and no other process would.
TRANSITION = (
    RELEASE
    + lua_names("UNFINISHED", "WEBHOOKS_OF", "WEBHOOK_TURNS", "ETA_RATIOS", "DEADLINES", "KEPT")
    + f"local RECORD_BYTES = {RECORD_BYTES}\n"
    + """
-- KEYS: 1 record, 2 expiry times, 3 channel of events, 4 counts by final status.
-- ARGV: 1 new status, 2 allowed old statuses (comma-separated), 3 expiry time if the new status is final,
--   else ''; 4 number to add to `lost`, 5 id, 6... further fields (name, value).
-- Returns `lost` if the transition was made, else -1. A key that is no hash counts as no record.
local record, expiry, channel, counts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local status, allowed, expires_at, add_lost, id = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local is_end = expires_at ~= ''

local function send_webhook(event)
  local webhook = redis.call('HMGET', record, 'webhook_events', 'changed_at', 'owner')
  if webhook[1] and string.find(webhook[1], event, 1, true) then
    redis.call('ZADD', WEBHOOKS_OF .. webhook[3], webhook[2], id .. ' ' .. event)
    redis.call('ZADD', WEBHOOK_TURNS, 'LT', webhook[2], webhook[3])
  end
end

-- Keep the ratio of actual to estimated duration, which corrects later estimates.
local function note_duration(model, estimated_s, created_at, finished_at)
  local ratios = ETA_RATIOS .. model
  local ratio = (finished_at - created_at) / math.max(estimated_s, 0.001)
  redis.call('LPUSH', ratios, string.format('%.6g', ratio))
  redis.call('LTRIM', ratios, 0, 199)
end

-- Count the bytes that the record of an ended generation keeps.
local function weigh(owner)
  local before = redis.call('HGET', record, 'kept')
  if not before then return end
  local size = RECORD_BYTES
  for _, value in ipairs(redis.call('HVALS', record)) do size = size + #value end
  redis.call('HINCRBY', KEPT, owner, size - before)
  redis.call('HSET', record, 'kept', size)
end

local function finish()
  send_webhook('completed')
  redis.call('ZADD', expiry, expires_at, id)
  redis.call('HINCRBY', counts, status, 1)
  redis.call('ZREM', DEADLINES, id)
  local job = redis.call('HMGET', record, 'owner', 'model', 'work', 'eta_s', 'created_at', 'finished_at')
  if job[3] then release(job[1], job[2], job[3]) end
  weigh(job[1])
  if job[4] and status == 'succeeded' then note_duration(job[2], job[4], job[5], job[6]) end
end

local old = redis.pcall('HGET', record, 'status')
if type(old) ~= 'string' then return -1 end
if not string.find(',' .. allowed .. ',', ',' .. old .. ',', 1, true) then return -1 end
local has_cancel = redis.call('HEXISTS', record, 'cancel_requested') == 1
local canceled_before = is_end and status ~= 'canceled' and has_cancel
if canceled_before then status = 'canceled' end
local fields, times = {}, {}
local ttl = is_end and redis.call('HGET', record, 'ttl_s')
for n = 6, #ARGV, 2 do times[ARGV[n]] = n + 1 end
if ttl then
  expires_at = tostring(math.min(expires_at, ARGV[times.finished_at] + ttl))
  ARGV[times.expires_at] = expires_at
end
for n = 6, #ARGV, 2 do
  -- Of an end that a cancel replaces, only the times are kept.
  if not canceled_before or string.match(ARGV[n], '_at$') then
    table.insert(fields, ARGV[n])
    table.insert(fields, ARGV[n + 1])
  end
end
-- At `maxmemory`, Redis stops only scripts that have written nothing yet; an end makes room later.
if is_end then redis.call('HDEL', UNFINISHED, id) else redis.call('HDEL', record, '') end
redis.call('HSET', record, 'status', status, unpack(fields))
if old == 'queued' and status == 'processing' and redis.call('HSETNX', record, 'told_started', 1) == 1 then
  send_webhook('started')
end
if is_end then finish() end
redis.call('PUBLISH', channel, status)
local lost = redis.call('HINCRBY', record, 'lost', add_lost)
return canceled_before and -1 or lost
"""
)
FORGET = (
    RELEASE
    + lua_names("UNFINISHED", "OWNER_INDEX", "DEADLINES", "WEBHOOKS_OF", "TOMBSTONES", "KEPT", "IDEMPOTENCY")
    + """
-- KEYS: 1 record, 2 progress, 3 expiry times, 4 channel of events.
-- ARGV: 1 id, 2 now, 3 when its files are removed at the latest, 4 seconds of a tombstone,
--   5 most tombstones of an owner, 6 seconds that its idempotency key stays bound at most.
-- Frees memory first: at `maxmemory`, Redis stops only scripts that have written nothing yet.
local id = ARGV[1]
local job = redis.pcall('HMGET', KEYS[1], 'owner', 'model', 'work', 'status', 'kept', 'claim')
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HDEL', UNFINISHED, id)
redis.call('ZREM', DEADLINES, id)
local owner = job[1]
if owner then
  redis.call('ZREM', WEBHOOKS_OF .. owner, id .. ' started', id .. ' completed')
  redis.call('ZREM', OWNER_INDEX .. owner, id)
  if job[3] and (job[4] == 'queued' or job[4] == 'processing') then release(owner, job[2], job[3]) end
  if job[5] and redis.call('HINCRBY', KEPT, owner, -job[5]) <= 0 then redis.call('HDEL', KEPT, owner) end
  local tombstones = TOMBSTONES .. owner
  redis.call('ZADD', tombstones, ARGV[2] + ARGV[4], id)
  redis.call('ZREMRANGEBYSCORE', tombstones, '-inf', ARGV[2])
  redis.call('ZREMRANGEBYRANK', tombstones, 0, -1 - ARGV[5])
  redis.call('EXPIRE', tombstones, ARGV[4])
  local claim = job[6] and IDEMPOTENCY .. owner .. ':' .. job[6]
  if claim and redis.call('TTL', claim) > tonumber(ARGV[6]) then redis.call('EXPIRE', claim, ARGV[6]) end
end
redis.call('ZADD', KEYS[3], 'NX', ARGV[3], id)
redis.call('PUBLISH', KEYS[4], 'gone')
"""
)
UNWANTED = (
    lua_names("RECORD")
    + """
-- ARGV: ids. Returns the ids that were removed or have ended, or for which a cancel was requested.
local unwanted = {}
for _, id in ipairs(ARGV) do
  local job = redis.pcall('HMGET', RECORD .. id, 'status', 'cancel_requested')
  local runs = job[1] == 'queued' or job[1] == 'processing'
  if not runs or job[2] then table.insert(unwanted, id) end
end
return unwanted
"""
)

# Note how the model understands a generation.
NOTE_UNDERSTOOD = """
-- KEYS: 1 record, 2 channel of events. ARGV: fields (name, value).
if redis.call('HEXISTS', KEYS[1], 'status') == 1 and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  redis.call('HSET', KEYS[1], unpack(ARGV))
  redis.call('PUBLISH', KEYS[2], 'progress')
end
"""

TAKE_TURN = (
    lua_names("RECORD")
    + """
-- KEYS: 1 queue, whose last job is the new one; 2 hash: virtual start time of each owner's next job, and the
--   latest start time under ''. ARGV: 1 id, 2 owner, 3 work.
-- If the queue is empty, the owners' times are removed and time continues from the latest start, so that a
-- requeued job never starts after newer jobs.
local function start_of(id) return tonumber(redis.call('HGET', RECORD .. id, 'turn') or '0') end
local queue, starts, id, owner, work = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('LINDEX', queue, -1) ~= id then return end

redis.call('RPOP', queue)
local size = redis.call('LLEN', queue)
local latest = tonumber(redis.call('HGET', starts, '') or '0')
if size == 0 then redis.call('DEL', starts) end
local now = size == 0 and latest or start_of(redis.call('LINDEX', queue, 0))
local start = math.max(now, tonumber(redis.call('HGET', starts, owner) or '0'))
local function text(number) return string.format('%.6f', number) end
redis.call('HSET', starts, owner, text(start + work), '', text(math.max(latest, start)))
redis.call('HSET', RECORD .. id, 'turn', text(start))

-- Binary search for the first job that starts later.
local low, high = 0, size
if size > 0 and start_of(redis.call('LINDEX', queue, -1)) <= start then low = size end
while low < high do
  local middle = math.floor((low + high) / 2)
  if start_of(redis.call('LINDEX', queue, middle)) <= start then low = middle + 1 else high = middle end
end
if low == size then
  redis.call('RPUSH', queue, id)
else
  redis.call('LINSERT', queue, 'BEFORE', redis.call('LINDEX', queue, low), id)
end
"""
)
