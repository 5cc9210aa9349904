-- Handles lapsed leases. ARGV: prefix, stage, most jobs, error of a job that lost all its attempts (JSON).
local ids = redis.call('ZRANGEBYSCORE', leases_key(ARGV[2]), '-inf', whole(NOW), 'LIMIT', 0, tonumber(ARGV[3]))
local jobs = {}
for _, id in ipairs(ids) do
  local job = load_job(id)
  local move = TRANSITIONS.lapse[job.state]
  local fields = {}
  if move.to == 'QUEUED' then
    local lost = whole(tonumber(job.lost_attempts) + 1)
    fields = {'lost_attempts', lost}
    if tonumber(lost) >= tonumber(job.max_attempts) then
      move = TRANSITIONS.exhaust[job.state]
      fields[#fields + 1] = 'error'
      fields[#fields + 1] = (string.gsub(ARGV[4], '{lost_attempts}', lost))
    end
  end
  make_move(job, move, fields)
  jobs[#jobs + 1] = read_job(id)
end
return {'ok', jobs}
