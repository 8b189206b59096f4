"""What Redis itself does with a generation's record, in one go each: the compare-and-set of its status, its room given back, who is unwanted."""

from __future__ import annotations

from clipsynth.admission.limits import RELEASE

UNFINISHED_KEY = "clipsynth:unfinished"  # hash: the model of each generation that has not ended, by id

# KEYS[1] hash, KEYS[2] expiry, KEYS[3] channel, KEYS[4] counts; ARGV[1] new status, ARGV[2] allowed old ones (comma-separated), ARGV[3] expiry time or '',
# ARGV[4] what to add to `lost`, ARGV[5] id, ARGV[6…] further fields. The value of `lost` where the change was made, else -1;
# what is no hash counts as no record. An end whose cancel came first is not made: the generation ends canceled here and now, with nothing of that
# end but its times, for whoever asked may not live to see to it, and nobody else would.
# Of what succeeds, the list `clipsynth:eta_ratios:{model}` gets the time that it took by the time that it was told, for better estimates.
TRANSITION = (
    RELEASE
    + """
local old = redis.pcall('HGET', KEYS[1], 'status')
if type(old) ~= 'string' or not string.find(',' .. ARGV[2] .. ',', ',' .. old .. ',', 1, true) then return -1 end
local status = ARGV[1]
local too_late = ARGV[3] ~= '' and status ~= 'canceled' and redis.call('HEXISTS', KEYS[1], 'cancel_requested') == 1
if too_late then status = 'canceled' end
local fields = {}
for n = 6, #ARGV, 2 do
  if not too_late or string.match(ARGV[n], '_at$') then
    table.insert(fields, ARGV[n])
    table.insert(fields, ARGV[n + 1])
  end
end
redis.call('HSET', KEYS[1], 'status', status, unpack(fields))
local told = redis.call('HMGET', KEYS[1], 'webhook_events', 'changed_at')
local function tell(event)
  if told[1] and string.find(told[1], event, 1, true) then
    redis.call('ZADD', 'clipsynth:webhooks', told[2], ARGV[5] .. ' ' .. event)
  end
end
if old == 'queued' and status == 'processing' and redis.call('HSETNX', KEYS[1], 'told_started', 1) == 1 then tell('started') end
if ARGV[3] ~= '' then
  tell('completed')
  redis.call('ZADD', KEYS[2], ARGV[3], ARGV[5])
  redis.call('HINCRBY', KEYS[4], status, 1)
  redis.call('HDEL', 'clipsynth:unfinished', ARGV[5])
  local of = redis.call('HMGET', KEYS[1], 'owner', 'model', 'work', 'eta_s', 'created_at', 'finished_at')
  if of[3] then release(of[1], of[2], of[3]) end
  if of[4] and status == 'succeeded' then
    local ratios = 'clipsynth:eta_ratios:' .. of[2]
    redis.call('LPUSH', ratios, string.format('%.6g', (of[6] - of[5]) / math.max(of[4], 0.001)))
    redis.call('LTRIM', ratios, 0, 199)
  end
end
redis.call('PUBLISH', KEYS[3], status)
local lost = redis.call('HINCRBY', KEYS[1], 'lost', ARGV[4])
return too_late and -1 or lost
"""
)
# KEYS[1] hash of what is forgotten before its end.
RELEASE_UNFINISHED = (
    RELEASE
    + """
local of = redis.call('HMGET', KEYS[1], 'owner', 'model', 'work', 'status')
if of[3] and (of[4] == 'queued' or of[4] == 'processing') then release(of[1], of[2], of[3]) end
"""
)
# ARGV: ids. Returns those that were forgotten or canceled, or whose cancel was asked for.
UNWANTED = """
local unwanted = {}
for _, id in ipairs(ARGV) do
  local of = redis.pcall('HMGET', 'clipsynth:gen:' .. id, 'status', 'cancel_requested')
  if not of[1] or of[1] == 'canceled' or of[2] then table.insert(unwanted, id) end
end
return unwanted
"""
