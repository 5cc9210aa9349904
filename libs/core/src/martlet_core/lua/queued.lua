-- One page of a queue. ARGV: prefix, queue, member to go on behind, most members, least age in the queue in microseconds.
local start = ARGV[3] == '' and '-' or '(' .. ARGV[3]
local members = redis.call('ZRANGEBYLEX', queue_key(ARGV[2]), start, '+', 'LIMIT', 0, tonumber(ARGV[4]))
local newest = NOW - tonumber(ARGV[5])
local jobs = {}
for _, member in ipairs(members) do
  local id = string.match(member, '[^:]+$')
  if tonumber(redis.call('HGET', job_key(id), 'queue_time')) <= newest then
    jobs[#jobs + 1] = read_job(id)
  end
end
return {'ok', #members == tonumber(ARGV[4]) and members[#members] or '', jobs}
