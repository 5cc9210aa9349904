-- ARGV: prefix, id, reason, data of the event (JSON). Answers {'ok', 1} when the reason is a new one.
local job = load_job(ARGV[2])
if not job then
  return {'not_found'}
end
if job.state ~= 'QUEUED' or (redis.call('HGET', job_key(job.id), 'queued_reason') or '') == ARGV[3] then
  return {'ok', 0}
end
redis.call('HSET', job_key(job.id), 'queued_reason', ARGV[3], 'update_time', whole(NOW))
if ARGV[3] ~= '' then
  append_event(job.id, 'log', 'info', job.attempt, ARGV[3], ARGV[4])
end
return {'ok', 1}
