-- ARGV: prefix, id, stage, kind, tenant, queue, priority, state, request id, fingerprint, event (level, message, data), fields...
local id, stage, kind, tenant, queue = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local priority, state, request_id, fingerprint = ARGV[7], ARGV[8], ARGV[9], ARGV[10]

if request_id ~= '' then
  local known = redis.call('HGET', requests_key(stage, tenant), request_id)
  if known then
    if redis.call('HGET', job_key(known), 'fingerprint') ~= fingerprint then
      return {'request_id_taken', known}
    end
    return {'known', read_job(known)}
  end
end
if redis.call('EXISTS', job_key(id)) == 1 then
  return {'job_id_taken'}
end
local now = whole(NOW)
local fields = {'create_time', now, 'update_time', now, 'queue_time', now}
for i = 14, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
local job = {id = id, stage = stage, queue = queue, priority = priority, state = state, create_time = now}
insert_job(job, kind, tenant, request_id, '0', fields)
append_event(id, 'state', ARGV[11], '0', ARGV[12], ARGV[13])
return {'ok', read_job(id)}
