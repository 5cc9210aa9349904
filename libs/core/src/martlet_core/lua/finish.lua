-- ARGV: prefix, id, token, action, '1' if there is an error, its text, fields...
local id, token, action, failed, detail = ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1', ARGV[6]
local job = load_job(id)
if not job then
  return {'not_found'}
end
local stamp = token .. ':' .. action
if not HELD[job.state] and job.attempt == token and job.finished == stamp then
  return {'ok', read_job(id)}  -- said before; that answer was lost on the way
end
local refusal = refuse_token(job, token)
if refusal then
  return refusal
end
local move = TRANSITIONS[action][job.state]
local fields = {'finished', stamp}
for i = 7, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
if failed and move.to == 'QUEUED' then
  local lost = tonumber(job.lost_attempts) + 1
  fields[#fields + 1] = 'lost_attempts'
  fields[#fields + 1] = whole(lost)
  if lost >= tonumber(job.max_attempts) then
    move = TRANSITIONS.exhaust[job.state]
  end
end
make_move(job, move, fields, detail)
return {'ok', read_job(id)}
