-- Shared by every script of the job store. RedisJobStore puts the tables TRANSITIONS, HELD and FINAL before it.
-- A script is atomic: it reads a job, decides, and writes the job, its indices and its event in one go.
-- Times are whole microseconds since the epoch by the server's clock. Answers begin with a word that says how it went.

local PREFIX = ARGV[1]
local MAX_EVENTS = 100000
local CLOCK = redis.call('TIME')
local NOW = tonumber(CLOCK[1]) * 1000000 + tonumber(CLOCK[2])

-- A whole number as text; tostring() would write large ones as 1.76e+15.
local function whole(number)
  return string.format('%.0f', number)
end

local function job_key(id)
  return PREFIX .. 'job:' .. id
end

local function events_key(id)
  return PREFIX .. 'events:' .. id
end

local function queue_key(queue)
  return PREFIX .. 'queue:' .. queue
end

local function leases_key(stage)
  return PREFIX .. 'leases:' .. stage
end

local function requests_key(stage, tenant)
  return PREFIX .. 'requests:' .. stage .. ':' .. tenant
end

-- Queues are sorted sets whose members all have score 0 and so are in lexical order: by priority from high to low, then by creation time,
-- then by id. A score couldn't hold priority and microseconds without loss.
local function queue_member(job)
  return string.format('%d:%017.0f:%s', 9 - tonumber(job.priority), tonumber(job.create_time), job.id)
end

local STATE_FIELDS = {
  'state', 'attempt', 'stage', 'queue', 'priority', 'create_time', 'start_time', 'max_attempts', 'lost_attempts', 'finished'
}

-- The fields that decide what may happen to a job; nil if there is none of that id.
local function load_job(id)
  local values = redis.call('HMGET', job_key(id), unpack(STATE_FIELDS))
  if not values[1] then
    return nil
  end
  local job = {id = id}
  for i, name in ipairs(STATE_FIELDS) do
    job[name] = values[i]
  end
  return job
end

local function read_job(id)
  return redis.call('HGETALL', job_key(id))
end

local function append_event(id, type, level, attempt, message, data)
  return redis.call('XADD', events_key(id), 'MAXLEN', '~', MAX_EVENTS, '*',
    'type', type, 'level', level, 'attempt', attempt, 'message', message, 'data', data, 'time', whole(NOW))
end

-- Puts a job into the queue or the set of leases that its state calls for.
local function index_state(job, lease_until)
  if job.state == 'QUEUED' then
    redis.call('ZADD', queue_key(job.queue), 0, queue_member(job))
  elseif HELD[job.state] then
    redis.call('ZADD', leases_key(job.stage), lease_until, job.id)
  end
end

-- Adds a job that isn't there yet: its fields, and its place in every list (one for each choice of stage, kind and tenant).
local function insert_job(job, kind, tenant, request_id, lease_until, fields)
  redis.call('HSET', job_key(job.id), unpack(fields))
  for _, s in ipairs({job.stage, '*'}) do
    for _, k in ipairs({kind, '*'}) do
      for _, t in ipairs({':' .. tenant, '*'}) do
        redis.call('ZADD', PREFIX .. 'jobs:' .. s .. ':' .. k .. ':' .. t, job.create_time, job.id)
      end
    end
  end
  redis.call('SADD', PREFIX .. 'queues:' .. job.stage, job.queue)
  if request_id ~= '' then
    redis.call('HSETNX', requests_key(job.stage, tenant), request_id, job.id)
  end
  index_state(job, lease_until)
end

-- Carries a move of TRANSITIONS out. `fields` (may be nil) are further fields to set; `detail` (may be '') is added to the event's text.
local function make_move(job, move, fields, detail, lease_until)
  fields = fields or {}
  if move.to ~= job.state then
    if job.state == 'QUEUED' then
      redis.call('ZREM', queue_key(job.queue), queue_member(job))
      fields[#fields + 1] = 'queued_reason'
      fields[#fields + 1] = ''
    end
    if HELD[job.state] and not HELD[move.to] then
      redis.call('ZREM', leases_key(job.stage), job.id)
      for _, value in ipairs({'lease_owner', '', 'lease_until', '0'}) do
        fields[#fields + 1] = value
      end
    end
    if FINAL[move.to] then
      fields[#fields + 1] = 'end_time'
      fields[#fields + 1] = whole(NOW)
    end
    if move.to == 'QUEUED' then
      fields[#fields + 1] = 'queue_time'
      fields[#fields + 1] = whole(NOW)
    end
    fields[#fields + 1] = 'state'
    fields[#fields + 1] = move.to
    local held_before = HELD[job.state]
    job.state = move.to
    if not (held_before and HELD[move.to]) then
      index_state(job, lease_until)
    end
    local message = move.message
    if detail and detail ~= '' then
      message = message .. ': ' .. detail
    end
    append_event(job.id, 'state', move.level, job.attempt, message, move.data)
  end
  fields[#fields + 1] = 'update_time'
  fields[#fields + 1] = whole(NOW)
  redis.call('HSET', job_key(job.id), unpack(fields))
end

-- QUEUED -> RUNNING with a new attempt and a lease.
local function claim_job(job, owner, lease_micros)
  local lease_until = whole(NOW + lease_micros)
  job.attempt = whole(tonumber(job.attempt) + 1)
  local fields = {'attempt', job.attempt, 'lease_owner', owner, 'lease_until', lease_until}
  if job.start_time == '0' then
    fields[#fields + 1] = 'start_time'
    fields[#fields + 1] = whole(NOW)
  end
  make_move(job, TRANSITIONS.claim[job.state], fields, '', lease_until)
  return {'ok', read_job(job.id)}
end

-- nil if `token` is the current one and a worker holds the job; else the answer to give.
local function refuse_token(job, token)
  if HELD[job.state] and job.attempt == token then
    return nil
  end
  return {'lease_lost', job.state, job.attempt}
end
