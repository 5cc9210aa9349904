-- ARGV: prefix, id, token, fields...
local job = load_job(ARGV[2])
if not job then
  return {'not_found'}
end
local refusal = refuse_token(job, ARGV[3])
if refusal then
  return refusal
end
redis.call('HSET', job_key(job.id), 'update_time', whole(NOW), unpack(ARGV, 4))
return {'ok', read_job(job.id)}
