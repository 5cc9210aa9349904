-- ARGV: prefix, id, stage, kind, tenant, queue, priority, state, request id, create time, lease until, fields...
if redis.call('EXISTS', job_key(ARGV[2])) == 1 then
  return {'exists'}
end
local job = {id = ARGV[2], stage = ARGV[3], queue = ARGV[6], priority = ARGV[7], state = ARGV[8], create_time = ARGV[10]}
local fields = {'queue_time', whole(NOW)}
for i = 12, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
insert_job(job, ARGV[4], ARGV[5], ARGV[9], ARGV[11], fields)
return {'ok'}
