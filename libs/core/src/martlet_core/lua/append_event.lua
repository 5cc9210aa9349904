-- ARGV: prefix, id, type, level, attempt, message, data (JSON).
if redis.call('EXISTS', job_key(ARGV[2])) == 0 then
  return {'not_found'}
end
return {'ok', append_event(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]), whole(NOW)}
