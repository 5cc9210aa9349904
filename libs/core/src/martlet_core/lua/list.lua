-- ARGV: prefix, index, id to go on behind, most jobs, most to look at, number of states, states..., label fields and values...
-- Answers {'full', 'more' or 'end'; last id looked at, jobs}: full when another job fits but there is no room for it, more when
-- the budget is spent.
local index = PREFIX .. 'jobs:' .. ARGV[2]
local last, limit, budget, state_count = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local states = {}
for i = 7, 6 + state_count do
  states[ARGV[i]] = true
end
local label_fields, label_values = {}, {}
for i = 7 + state_count, #ARGV, 2 do
  label_fields[#label_fields + 1] = ARGV[i]
  label_values[#label_values + 1] = ARGV[i + 1]
end

local function fits(id)
  if state_count > 0 and not states[redis.call('HGET', job_key(id), 'state')] then
    return false
  end
  if #label_fields > 0 then
    local values = redis.call('HMGET', job_key(id), unpack(label_fields))
    for i, wanted in ipairs(label_values) do
      if values[i] ~= wanted then
        return false
      end
    end
  end
  return true
end

local start = 0
if last ~= '' then
  local rank = redis.call('ZREVRANK', index, last)
  if not rank then
    return {'unknown_token'}
  end
  start = rank + 1
end
local ids = redis.call('ZREVRANGE', index, start, start + budget - 1)
local jobs = {}
for _, id in ipairs(ids) do
  if fits(id) then
    if #jobs == limit then
      return {'full', last, jobs}
    end
    jobs[#jobs + 1] = read_job(id)
  end
  last = id
end
return {#ids == budget and 'more' or 'end', last, jobs}
