-- Sends the requests of a folder, and says as one line of JSON what came of it.
--
-- arguments: the folder, and "measure" or "check". The folder holds `headers` (a line each) and, counted from 0,
-- `body-<n>` and `answer-<n>`. "measure" sends the first body alone and lets wrk count what is not 2xx; "check" gives
-- each thread a body of its own in turn, and compares every byte of every answer. With one connection a thread, an
-- answer that went to the wrong connection is found, too.

local threads = {}

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

local function content(path)
  local file = io.open(path, "rb")
  if file == nil then return nil end
  local text = file:read("*a")
  file:close()
  return text
end

function init(arguments)
  local folder, mode = arguments[1], arguments[2]
  local count = 1
  if mode == "check" then
    while content(folder .. "/body-" .. count) ~= nil do count = count + 1 end
  end
  local mine = number % count
  wrk.method = "POST"
  wrk.body = content(folder .. "/body-" .. mine)
  for name, value in content(folder .. "/headers"):gmatch("([^\n:]+): ([^\n]+)") do wrk.headers[name] = value end
  wrong, seen = 0, 0
  if mode == "check" then
    local expected = content(folder .. "/answer-" .. mine)
    -- wrk hands answers over only where this function is there, which costs it time
    response = function(status, headers, body)
      seen = seen + 1
      if status ~= 200 or body ~= expected then wrong = wrong + 1 end
    end
  end
end

function done(summary, latency, requests)
  local wrong, seen = 0, 0
  for _, thread in ipairs(threads) do
    wrong = wrong + thread:get("wrong")
    seen = seen + thread:get("seen")
  end
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "microseconds": %d, "p50": %.1f, "p99": %.1f, "wrong": %d, "compared": %d, '
      .. '"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), wrong, seen,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout
  ))
end
