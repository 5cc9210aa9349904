-- ARGV: prefix, then id and cursor of each place. Answers the numbers, counted from 1, of those with an event behind them or without a job.
local found = {}
for i = 2, #ARGV, 2 do
  local bound = ARGV[i + 1] ~= '' and '(' .. ARGV[i + 1] or '-'
  if redis.call('EXISTS', job_key(ARGV[i])) == 0
      or #redis.call('XRANGE', events_key(ARGV[i]), bound, '+', 'COUNT', 1) > 0 then
    found[#found + 1] = i / 2
  end
end
return {'ok', found}
