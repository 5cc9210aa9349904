-- Reads, or compares and sets, the book of GPU leases of a machine. ARGV: key; to set also: the text it is taken to have
-- ('' for none), the new text ('' for none), its life in milliseconds. Answers {1 when it was set, the text it has now, time in microseconds}.
local clock = redis.call('TIME')
local now = string.format('%.0f', tonumber(clock[1]) * 1000000 + tonumber(clock[2]))
local text = redis.call('GET', ARGV[1]) or ''
if #ARGV == 1 or text ~= ARGV[2] then
  return {0, text, now}
end
if ARGV[3] == '' then
  redis.call('DEL', ARGV[1])
else
  redis.call('SET', ARGV[1], ARGV[3], 'PX', ARGV[4])
end
return {1, ARGV[3], now}
