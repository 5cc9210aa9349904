-- ARGV: prefix, queue.
local member = redis.call('ZRANGE', queue_key(ARGV[2]), 0, 0)[1]
if not member then
  return {'none'}
end
return {'ok', read_job(string.match(member, '[^:]+$'))}
