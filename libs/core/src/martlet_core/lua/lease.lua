-- Takes, renews or gives back a named lease. ARGV: prefix, name, owner, lease in milliseconds (0 gives it back).
local key = PREFIX .. 'lease:' .. ARGV[2]
local owner = redis.call('GET', key)
if ARGV[4] == '0' then
  if owner == ARGV[3] then
    redis.call('DEL', key)
  end
  return {'ok', 0}
end
if owner and owner ~= ARGV[3] then
  return {'ok', 0}
end
redis.call('SET', key, ARGV[3], 'PX', ARGV[4])
return {'ok', 1}
