-- ARGV: prefix, id, cursor to go on from or '', most events, '1' for newest first.
if redis.call('EXISTS', job_key(ARGV[2])) == 0 then
  return {'not_found'}
end
local bound = ARGV[3] ~= '' and '(' .. ARGV[3]
if ARGV[5] == '1' then
  return {'ok', redis.call('XREVRANGE', events_key(ARGV[2]), bound or '+', '-', 'COUNT', ARGV[4])}
end
return {'ok', redis.call('XRANGE', events_key(ARGV[2]), bound or '-', '+', 'COUNT', ARGV[4])}
