-- How many jobs wait in each queue of a stage, and how many of it workers hold. ARGV: prefix, stage.
local held = {}
for _, id in ipairs(redis.call('ZRANGE', leases_key(ARGV[2]), 0, -1)) do
  local queue = redis.call('HGET', job_key(id), 'queue')
  if queue then
    held[queue] = (held[queue] or 0) + 1
  end
end
local loads = {}
for _, queue in ipairs(redis.call('SMEMBERS', PREFIX .. 'queues:' .. ARGV[2])) do
  loads[#loads + 1] = {queue, redis.call('ZCARD', queue_key(queue)), held[queue] or 0}
end
return {'ok', loads}
