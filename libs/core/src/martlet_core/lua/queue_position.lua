-- ARGV: prefix, id.
local job = load_job(ARGV[2])
if not job then
  return {'not_found'}
end
if job.state ~= 'QUEUED' then
  return {'ok', 0}
end
return {'ok', redis.call('ZRANK', queue_key(job.queue), queue_member(job)) + 1}
