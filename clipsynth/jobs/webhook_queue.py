"""Queue of webhooks: the messages of each API key by their next attempt, so that keys take turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import cast

from redis import Redis

from clipsynth.redis_keys import RECORD, WEBHOOK_TURNS, WEBHOOKS, WEBHOOKS_ENDED, lua_names

# Owners that are looked at for one claim.
MAX_OWNERS = 1000
# Between two looks for messages of an earlier version.
ADOPT_S = 10.0
CLAIM_S = 60.0  # then another sender may take the messages of one that was killed

_ADOPT = (
    lua_names("RECORD", "WEBHOOKS_OF", "WEBHOOK_TURNS")
    + """
-- KEYS: 1 the one queue of an earlier version. Moves its messages to the queues of their owners.
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, 99)) do
  local at = redis.call('ZSCORE', KEYS[1], member)
  local owner = redis.pcall('HGET', RECORD .. string.match(member, '^%S+'), 'owner')
  if type(owner) == 'string' then
    redis.call('ZADD', WEBHOOKS_OF .. owner, at, member)
    redis.call('ZADD', WEBHOOK_TURNS, 'LT', at, owner)
  end
  redis.call('ZREM', KEYS[1], member)
end
"""
)
# A Lua function: note when the next message of an owner is due.
_TURN = (
    lua_names("WEBHOOKS_OF", "WEBHOOK_TURNS")
    + """
local function take_turn(owner)
  local first = redis.call('ZRANGE', WEBHOOKS_OF .. owner, 0, 0, 'WITHSCORES')
  if first[1] then redis.call('ZADD', WEBHOOK_TURNS, first[2], owner)
  else redis.call('ZREM', WEBHOOK_TURNS, owner) end
end
"""
)
_CLAIM = (
    _TURN
    + """
-- ARGV: 1 now, 2 end of the claim, 3... owner, most messages. Returns owner, message, owner, message ...
local claimed = {}
for n = 3, #ARGV, 2 do
  local owner, queue = ARGV[n], WEBHOOKS_OF .. ARGV[n]
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', queue, '-inf', ARGV[1], 'LIMIT', 0, ARGV[n + 1])) do
    redis.call('ZADD', queue, ARGV[2], member)
    table.insert(claimed, owner)
    table.insert(claimed, member)
  end
  take_turn(owner)
end
return claimed
"""
)
_NOTE = (
    _TURN
    + """
-- KEYS: 1 record, 2 counts. ARGV: 1 owner, 2 message, 3 field or '', 4 its value, 5 next attempt or '',
--   6 status of the delivery, '' for none.
local queue = WEBHOOKS_OF .. ARGV[1]
if ARGV[3] ~= '' and redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], ARGV[3], ARGV[4]) end
if ARGV[5] ~= '' then
  redis.call('ZADD', queue, 'XX', ARGV[5], ARGV[2])
elseif redis.call('ZREM', queue, ARGV[2]) == 1 and ARGV[6] ~= '' then
  redis.call('HINCRBY', KEYS[2], ARGV[6], 1)
end
take_turn(ARGV[1])
"""
)
_WAITING = (
    lua_names("WEBHOOKS_OF")
    + """
-- KEYS: 1 owners with messages. Returns the number of their messages.
local waiting = 0
for _, owner in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  waiting = waiting + redis.call('ZCARD', WEBHOOKS_OF .. owner)
end
return waiting
"""
)


class WebhookQueue:
    """Claims messages, "<generation> <event>", and notes what became of them.

    The scripts that change a generation's state add the messages.
    """

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._claim = redis.register_script(_CLAIM)
        self._note = redis.register_script(_NOTE)
        self._adopt = redis.register_script(_ADOPT)
        self._adopt_at = 0.0

    def due_owners(self) -> list[str]:
        """Return the owners of messages that are due."""
        now = time.time()
        # Processes of an earlier version add to it only during an upgrade.
        if now >= self._adopt_at:
            self._adopt(keys=[WEBHOOKS])
            self._adopt_at = now + (0.0 if self.redis.exists(WEBHOOKS) else ADOPT_S)
        owners = self.redis.zrange(WEBHOOK_TURNS, "-inf", repr(now), byscore=True, offset=0, num=MAX_OWNERS)
        return [owner.decode() for owner in cast(list[bytes], owners)]

    def claim(self, shares: Mapping[str, int]) -> list[tuple[str, str]]:
        """Claim due messages, of each owner at most its share; return them with their owners."""
        now = time.time()
        flat = [part for share in shares.items() for part in share]
        claimed = cast(list[bytes], self._claim(args=[now, now + CLAIM_S, *flat])) if flat else []
        return [(claimed[n].decode(), claimed[n + 1].decode()) for n in range(0, len(claimed), 2)]

    def drop(self, owner: str, member: str) -> None:
        """Remove a message whose generation was removed."""
        self._note(keys=["", ""], args=[owner, member, "", "", "", ""])

    def put_back(self, owner: str, member: str, seconds: float) -> None:
        """Have a message claimed again later; this is no attempt."""
        self._note(keys=["", ""], args=[owner, member, "", "", time.time() + seconds, ""])

    def note(self, owner: str, member: str, *, delivery: str, status: str, next_at: float | None) -> None:
        """Keep an attempt in the record of the generation, and when the next one is due."""
        generation_id, _, event = member.partition(" ")
        self._note(
            keys=[RECORD + generation_id, WEBHOOKS_ENDED],
            args=[owner, member, f"delivery:{event}", delivery, next_at or "", status],
        )

    def counts(self) -> tuple[int, dict[str, int]]:
        """Return the number of waiting messages, and the finished ones by outcome."""
        waiting = self.redis.register_script(_WAITING)(keys=[WEBHOOK_TURNS])
        ended = cast(dict[bytes, bytes], self.redis.hgetall(WEBHOOKS_ENDED))
        return int(waiting), {k.decode(): int(v) for k, v in ended.items()}
