-- SPDX-License-Identifier: MIT
--- What scripts that measure have in common: the time that calls take, the memory and processor time of processes.
--
--     local measure = require "fcvm.measure"
--     local ms = measure.timed(clones, function(vm) assert(vm:exec { "true" }) end)
--     print(measure.percentile(ms, 50), measure.percentile(ms, 99))
-- @module fcvm.measure

local core = require "fcvm.core"
local task = require "fcvm.task"

local M = {}

--- How long a call takes.
-- @tparam function fn
-- @param ... its arguments
-- @treturn number milliseconds
-- @return what it returned first
function M.ms(fn, ...)
    local from = core.now()
    local result = fn(...)
    return (core.now() - from) * 1000, result
end

--- How long a call takes for each item of a list, as many at a time as there are processors.
-- @tparam table items
-- @tparam function fn called as `fn(item)`
-- @treturn {number,...} milliseconds, the shortest first
function M.timed(items, fn)
    local ms = task.parallel(items, function(item) return (M.ms(fn, item)) end, { limit = core.processors() })
    table.sort(ms)
    return ms
end

--- The value that so many per cent of the others do not exceed.
-- @tparam {number,...} sorted the smallest first
-- @tparam number p per cent
-- @treturn number
function M.percentile(sorted, p)
    return sorted[math.max(1, math.ceil(#sorted * p / 100))]
end

--- The middle of some values, and how far they are spread.
-- @tparam {number,...} values in any order
-- @treturn table `median`, `min`, `max`
function M.spread(values)
    local sorted = table.move(values, 1, #values, 1, {})
    table.sort(sorted)
    local n = #sorted
    return { median = (sorted[(n + 1) // 2] + sorted[n // 2 + 1]) / 2, min = sorted[1], max = sorted[n] }
end

-- A file of /proc of this host, or of a VM.
local function proc(node, path)
    if node then return assert(node:read_file(path)) end
    local file <close> = assert(io.open(path))
    return file:read "a"
end

--- The memory that a machine could still give to programs.
-- @tparam ?vm node of which machine (default: this host)
-- @treturn number MiB
function M.available_mb(node)
    for line in proc(node, "/proc/meminfo"):gmatch "[^\n]+" do
        local kb = line:match "^MemAvailable:%s+(%d+)"
        if kb then return tonumber(kb) / 1024 end
    end
    return 0
end

--- The memory of a VMM: what it shares with others is divided among them.
-- @tparam integer pid
-- @tparam ?vm node where it runs (default: this host)
-- @treturn number MiB
-- @treturn number of these, the guest's RAM (the mappings of its `memory` file)
function M.pss_mb(pid, node)
    local all, ram, in_ram = 0, 0, false
    for line in proc(node, ("/proc/%d/smaps"):format(pid)):gmatch "[^\n]+" do
        local kb = line:match "^Pss:%s+(%d+)"
        if kb then
            all = all + tonumber(kb)
            ram = in_ram and ram + tonumber(kb) or ram
        elseif line:match "^%x+%-%x+ " then
            in_ram = line:match "/memory$" ~= nil or line:match "/memory %(deleted%)$" ~= nil
        end
    end
    return all / 1024, ram / 1024
end

--- The processor time that a process has taken so far, of user and system.
-- @tparam integer pid
-- @treturn number seconds
function M.cpu_s(pid)
    local file <close> = assert(io.open(("/proc/%d/stat"):format(pid)))
    -- the name may hold anything; utime and stime are the 12th and 13th after it, in 1/100 s
    local utime, stime = file:read "a":match("^.*%) " .. ("%S+ "):rep(11) .. "(%d+) (%d+)")
    return (tonumber(utime) + tonumber(stime)) / 100
end

return M
