-- ARGV: prefix, id, owner, lease in microseconds.
local job = load_job(ARGV[2])
if not job then
  return {'not_found'}
end
if not TRANSITIONS.claim[job.state] then
  return {'none'}
end
return claim_job(job, ARGV[3], tonumber(ARGV[4]))
