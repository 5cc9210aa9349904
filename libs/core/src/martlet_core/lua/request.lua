-- Enqueue, cancel, pause or resume. ARGV: prefix, id, action.
local job = load_job(ARGV[2])
if not job then
  return {'not_found'}
end
local move = TRANSITIONS[ARGV[3]][job.state]
if not move then
  return {'illegal', job.state}
end
if move.to ~= job.state then
  make_move(job, move)
end
return {'ok', read_job(job.id)}
