"""The scripts that run inside the server. Each of them does everything or nothing.

A script declares every key it touches. Its work grows with what changes, never with the session; only deleting and
forking go over all that a session names. A full server stops a script at its first command that takes memory, unless it
has written already. `commit` begins with such a command, so it writes everything or nothing. The others begin with one
that takes no memory, so they work on a full server.

A blob's `refs` are the sessions that name it. Each has as its score the millisecond in which it expires, or +inf. So
the refs, and the blob they guard, live as long as the longest-lived session in them, and expired ones do not count.
"""

from __future__ import annotations

# KEYS: head, index, ledger, lives, then blob and refs of each digest.
_SHARED = """
local head, index, ledger, lives, FIRST = KEYS[1], KEYS[2], KEYS[3], KEYS[4], 5
local name = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function text(number) return string.format('%.0f', number) end

local function expire(key, at)
  if at == 'inf' then redis.call('PERSIST', key)
  else redis.call('PEXPIREAT', key, text(tonumber(at))) end
end

-- When the head expires: 'inf', a millisecond, or nil when there is none.
local function life()
  local left = redis.call('PTTL', head)
  if left == -2 then return nil elseif left == -1 then return 'inf' else return text(now + left) end
end

-- Whether a session is due to be renewed: a sixteenth of its life has passed, or the ttl is another one.
local function due(ttl)
  local left = redis.call('PTTL', head)
  if ttl == '' then return left ~= -1 end
  return left < ttl * 15 / 16 or left > ttl + 1000
end

local function digest(i) return string.match(KEYS[i], '[^:]*$') end

local function settle(names)
  redis.call('ZREMRANGEBYSCORE', names, '-inf', '(' .. text(now))
  local last = redis.call('ZRANGE', names, -1, -1, 'WITHSCORES')[2]
  if last then expire(names, last) end
  return last
end

-- The ledger's sizes only limit what is written: one that cannot be read counts as 0.
local function counted(one) return tonumber(redis.call('HGET', ledger, 'b:' .. one) or 0) or 0 end
local function count(more)
  local bytes = tonumber(redis.call('HGET', ledger, 'bytes') or 0) or 0
  redis.call('HSET', ledger, 'bytes', text(bytes + more))
end

local function release(one)
  local size = redis.call('HGET', ledger, 'b:' .. one)
  if size then
    redis.call('HDEL', ledger, 'b:' .. one)
    count(-(tonumber(size) or 0))
  end
  redis.call('ZREM', lives, one)
end

-- A blob lives as long as the sessions that name it, and is counted once.
local function settle_blob(i)
  local last, one = settle(KEYS[i + 1]), digest(i)
  if not last then
    redis.call('UNLINK', KEYS[i], KEYS[i + 1])
    return release(one)
  end
  expire(KEYS[i], last)
  local size = redis.call('STRLEN', KEYS[i])
  if size == 0 then return release(one) end
  local before = counted(one)
  if before ~= size then
    redis.call('HSET', ledger, 'b:' .. one, size)
    count(size - before)
  end
  redis.call('ZADD', lives, last, one)
end

-- A key of another type than ours belongs to nobody: a script would stop at it half-way.
local function clear_foreign(first, last)
  for i = first, last, 2 do
    local blob, refs = redis.call('TYPE', KEYS[i]).ok, redis.call('TYPE', KEYS[i + 1]).ok
    if blob ~= 'string' and blob ~= 'none' then redis.call('UNLINK', KEYS[i]) end
    if refs ~= 'zset' and refs ~= 'none' then redis.call('UNLINK', KEYS[i + 1]) end
  end
end

local function name_all(first, last, death)
  for i = first, last, 2 do
    redis.call('ZADD', KEYS[i + 1], death, name)
    settle_blob(i)
  end
end

local function drop_all(first, last)
  for i = first, last, 2 do
    redis.call('ZREM', KEYS[i + 1], name)
    settle_blob(i)
  end
end

-- Removes from the ledger what has expired, a little at a time.
local function purge(most)
  local before = '(' .. text(now)
  local gone = redis.call('ZRANGEBYSCORE', lives, '-inf', before, 'LIMIT', 0, most)
  for _, one in ipairs(gone) do release(one) end
  local names = redis.call('ZRANGEBYSCORE', index, '-inf', before, 'LIMIT', 0, most)
  for _, one in ipairs(names) do
    redis.call('HDEL', ledger, 'v:' .. one)
    redis.call('ZREM', index, one)
  end
  return #gone + #names
end

-- The namespace's own keys live as long as its longest session.
local function settle_index()
  local last = redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2]
  if last then
    for _, key in ipairs({index, ledger, lives}) do expire(key, last) end
  elseif redis.call('ZCARD', lives) == 0 then
    redis.call('UNLINK', ledger)
  end
end

-- Whether the head should be there: it was not deleted by us, and has not expired.
local function lost()
  local death = redis.call('ZSCORE', index, name)
  if not death then return redis.call('HEXISTS', ledger, 'v:' .. name) == 1 end
  return death == 'inf' or tonumber(death) > now + 1000
end
"""

# ARGV: name, ttl, the version that the caller holds or ''.  Returns the rest only when it is another one.
LOOK = f"""{_SHARED}
local version = redis.call('HGET', head, 'version')
if not version then return {{lost() and 'lost' or 'none'}} end
local renew = (ARGV[2] ~= '' and due(ARGV[2])) and 1 or 0
if version == ARGV[3] then return {{'same', renew}} end
local mark = redis.call('HGET', ledger, 'v:' .. name) or ''
local fields = redis.call('HMGET', head, 'past', 'tag', 'digests', 'body')
return {{'moved', renew, mark, version, fields[1], fields[2], fields[3], fields[4]}}
"""

# ARGV: name, expected, ttl, version, its point, the point before it where the server does not have it, how many bytes
# of past are kept, tag; the body and the digests, each as three pieces of new bytes and a range of the old ones
# (delta.py); how many blobs are written, how many named anew, how many of those written replace what is there; the
# budgets of the session and of the namespace, or ''; then the blobs, in order: written now (the replacing ones first),
# in the store already, of the old head only.
COMMIT = f"""{_SHARED}
local expected, ttl, version, point, before, kept, tag = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local written, named, replaced, most, most_in_all =
  tonumber(ARGV[27]), tonumber(ARGV[28]), tonumber(ARGV[29]), ARGV[30], ARGV[31]
local BLOBS = 31

local function patched(old, at)
  local whole = {{}}
  for i = at, at + 6, 3 do whole[#whole + 1] = ARGV[i] .. string.sub(old or '', ARGV[i + 1], ARGV[i + 2]) end
  return table.concat(whole)
end

local old = redis.call('HMGET', head, 'version', 'past', 'point', 'body', 'digests', 'bytes')
local found, had = old[1] or '0', tonumber(old[6] or 0) or 0
if found ~= expected then
  -- The client sends a script again when the reply was lost. It finds its own commit, whoever has committed since.
  local place = old[2] and string.find(old[2], point, 1, true)
  while place and place % 8 ~= 1 do place = string.find(old[2], point, place + 1, true) end
  if found == version or place then
    -- A write, so that WAIT on this connection counts the replicas that have it.
    redis.call('HSET', head, 'bytes', text(had))
    return {{'moved'}}
  end
  return {{'conflict', found}}
end
if found == '0' and lost() then return {{'lost'}} end
if found ~= '0' and due(ttl) then return {{'renew'}} end

for i = replaced + 1, written do
  local key = KEYS[FIRST + 2 * i - 2]
  if redis.call('EXISTS', key) == 1 and redis.call('GET', key) ~= ARGV[BLOBS + i] then return {{'differs', i}} end
end
local bytes, more = had, 0
for i = 1, named do
  local key, refs = KEYS[FIRST + 2 * i - 2], KEYS[FIRST + 2 * i - 1]
  local size = i <= written and #ARGV[BLOBS + i] or redis.call('STRLEN', key)
  if size == 0 then return {{'missing', i}} end
  -- A name that an earlier session of this name left does not count.
  if found == '0' or not redis.call('ZSCORE', refs, name) then bytes = bytes + size end
  more = more + size - counted(digest(FIRST + 2 * i - 2))
end
for i = FIRST + 2 * named, #KEYS, 2 do
  local size = counted(digest(i))
  bytes = bytes - size
  -- No other session names it: its space becomes free.
  if redis.call('ZCARD', KEYS[i + 1]) <= 1 then more = more - size end
end
if most ~= '' and bytes > tonumber(most) and bytes > had then return {{'session', bytes}} end
if most_in_all ~= '' and more > 0 then
  local total = more + (tonumber(redis.call('HGET', ledger, 'bytes') or 0) or 0)
  if total > tonumber(most_in_all) then
    local expired = redis.call('ZRANGEBYSCORE', lives, '-inf', '(' .. text(now), 'LIMIT', 0, 1)
    return {{#expired > 0 and 'purge' or 'namespace', total}}
  end
end

local death = life() or (ttl == '' and 'inf' or text(now + ttl))
for i = 1, written do redis.call('SET', KEYS[FIRST + 2 * i - 2], ARGV[BLOBS + i]) end
local body, digests, past = patched(old[4], 9), patched(old[5], 18), ''
if found ~= '0' then past = string.sub((old[2] or '') .. (old[3] or before), -kept) end
redis.call('HSET', head, 'version', version, 'point', point, 'past', past, 'tag', tag, 'body', body,
  'digests', digests, 'bytes', text(bytes))
redis.call('HSET', ledger, 'v:' .. name, version)
expire(head, death)
redis.call('ZADD', index, death, name)
name_all(FIRST, FIRST + 2 * named - 1, death)
drop_all(FIRST + 2 * named, #KEYS)
purge(8)
settle_index()
return {{'moved'}}
"""

# ARGV: name, expected.  Where the head is lost, its traces are removed.
DELETE = f"""{_SHARED}
local version = redis.call('HGET', head, 'version') or '0'
if version ~= ARGV[2] then
  if version ~= '0' then return 0 end
  redis.call('SET', head, '', 'PX', 1)  -- sent again: a write, so that WAIT counts the replicas that have it
end
clear_foreign(FIRST, #KEYS)
redis.call('UNLINK', head)
redis.call('ZREM', index, name)
redis.call('HDEL', ledger, 'v:' .. name)
drop_all(FIRST, #KEYS)
purge(8)
settle_index()
return 1
"""

# ARGV: name, expected, the millisecond to live until or 'inf', whether to give that life to the head too.
RENEW = f"""{_SHARED}
redis.call('ZREM', index, '')
if (redis.call('HGET', head, 'version') or '0') ~= ARGV[2] then return 0 end
local death = ARGV[3]
clear_foreign(FIRST, #KEYS)
name_all(FIRST, #KEYS, death)
if ARGV[4] == '1' then
  expire(head, death)
  redis.call('ZADD', index, death, name)
  settle_index()
end
return 1
"""

# Blobs ahead of their commit, kept for so many milliseconds.  KEYS: blobs.  ARGV: milliseconds, blobs.  A blob that is
# there stays; returns the places of those that differ.
STAGE = """
local others = {}
for i = 1, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then redis.call('SET', KEYS[i], ARGV[1 + i], 'PX', ARGV[1])
  elseif redis.call('GET', KEYS[i]) ~= ARGV[1 + i] then others[#others + 1] = i end
end
return others
"""

# ARGV: name, version.  Writes a head's version to the ledger.
MARK = f"""{_SHARED}
if redis.call('HGET', head, 'version') == ARGV[2] then redis.call('HSET', ledger, 'v:' .. name, ARGV[2]) end
"""

# Signs the same bytes with another key.  ARGV: name, then 'head', version, tag, past, body; or 'blob', the tag that it
# has, the blob.
RESEAL = f"""{_SHARED}
if ARGV[2] == 'head' then
  if redis.call('HGET', head, 'version') ~= ARGV[3] then return 0 end
  redis.call('HSET', head, 'tag', ARGV[4], 'past', ARGV[5], 'body', ARGV[6])
  return 1
end
local blob = KEYS[FIRST]
if redis.call('GETRANGE', blob, 0, #ARGV[3] - 1) ~= ARGV[3] then return 0 end
redis.call('SET', blob, ARGV[4], 'KEEPTTL')
if redis.call('ZCARD', KEYS[FIRST + 1]) > 0 then settle_blob(FIRST) end
return 1
"""

# ARGV: '', how many names of heads there are (their keys come last), the names.  Names whose head is gone are removed
# from the index and the refs, then blobs that no session names.  Returns the number of blobs.
SWEEP = f"""{_SHARED}
redis.call('ZREM', index, '')
local heads, swept = tonumber(ARGV[2]), 0
local first = #KEYS - heads
clear_foreign(FIRST, first)
for i = 1, heads do
  if redis.call('EXISTS', KEYS[first + i]) == 0 then
    redis.call('ZREM', index, ARGV[2 + i])
    redis.call('HDEL', ledger, 'v:' .. ARGV[2 + i])
    for j = FIRST, first, 2 do redis.call('ZREM', KEYS[j + 1], ARGV[2 + i]) end
  end
end
for j = FIRST, first, 2 do
  local there = redis.call('EXISTS', KEYS[j])
  settle_blob(j)
  swept = swept + there - redis.call('EXISTS', KEYS[j])
end
settle_index()
return swept
"""

# Removes from the ledger what has expired; returns how much that was.
PURGE = f"""{_SHARED}
local done = purge(200)
settle_index()
return done
"""
