-- ARGV: prefix, queue, owner, lease in microseconds.
local member = redis.call('ZRANGE', queue_key(ARGV[2]), 0, 0)[1]
if not member then
  return {'none'}
end
return claim_job(load_job(string.match(member, '[^:]+$')), ARGV[3], tonumber(ARGV[4]))
