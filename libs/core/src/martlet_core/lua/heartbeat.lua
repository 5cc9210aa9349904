-- ARGV: prefix, id, token, lease in microseconds.
local job = load_job(ARGV[2])
if not job then
  return {'not_found'}
end
local refusal = refuse_token(job, ARGV[3])
if refusal then
  return refusal
end
local lease_until = whole(NOW + tonumber(ARGV[4]))
redis.call('HSET', job_key(job.id), 'lease_until', lease_until)
redis.call('ZADD', leases_key(job.stage), lease_until, job.id)
return {'ok', job.state}
