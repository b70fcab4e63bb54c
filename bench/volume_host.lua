-- SPDX-License-Identifier: MIT
-- Volumes with both halves on this host: the folder itself, the rival (fuse_inprocess.c) and ours (fusepipe_loop.c).
local fcvm = require "fcvm"
local measure = require "fcvm.measure"
local sample = require "volume_sample"

local M = {}

local SETTLE_S = 2.5 -- a server and a pump give back what they used within a second or two

local function quote(text)
    return "'" .. text:gsub("'", "'\\''") .. "'"
end

-- { programs=, source=, target= }, gone with its mount at the end.
local function workplace(programs, dir)
    local place = { programs = programs, source = dir .. "/volume-source", target = dir .. "/volume-target" }
    sample.sh(("mkdir -p %s %s && %s/fuse-volume fill %s"):format(quote(place.source), quote(place.target), quote(programs),
        quote(place.source)))
    return setmetatable(place, {
        __close = function()
            os.execute(("umount -l %s 2>/dev/null; rm -rf %s; rmdir %s"):format(quote(place.target), quote(place.source),
                quote(place.target)))
        end,
    })
end

local function work_in(place, work, folder, count)
    return sample.sh(("timeout -k 2 120 %s/fuse-volume %s %s %s"):format(quote(place.programs), work, quote(folder),
        count or ""))
end

local function mount(place, program, options)
    sample.sh(("timeout -k 2 30 %s/%s %s %s %s >/dev/null"):format(quote(place.programs), program, quote(place.source),
        quote(place.target), options))
end

local function unmount(place)
    sample.sh("umount " .. quote(place.target))
end

local function mounted(place, program, options)
    return function(work, timeout, count)
        mount(place, program, ("%s --timeout %g"):format(options, timeout))
        local ok, text = pcall(work_in, place, work, place.target, count)
        unmount(place)
        return ok and text or error(text, 0)
    end
end

local function subjects(place, readers)
    local list = {
        {
            name = "host", label = "host",
            run = function(work, timeout, count) return work_in(place, work, place.source, count) end,
        },
        { name = "libfuse", label = "libfuse in process", run = mounted(place, "fuse-inprocess", "") },
    }
    list[#list + 1] = {
        name = "local_locks", label = "locks=guest", run = mounted(place, "fusepipe-loop", "--local-locks"),
    }
    for _, n in ipairs(readers) do
        list[#list + 1] = {
            name = "readers_" .. n, label = n == 1 and "1 reader" or n .. " readers", readers = n,
            run = mounted(place, "fusepipe-loop", "--readers " .. n),
        }
    end
    return list
end

--- The guide's parallel reads and writes.
function M.throughput(config)
    local place <close> = workplace(config.programs, config.dir)
    return sample.collect(subjects(place, config.readers), config.rounds, "throughput", 1, { "host", "readers_1" })
end

--- Single operations, forced and as programs call them.
function M.operations(config)
    local place <close> = workplace(config.programs, config.dir)
    local who, against = subjects(place, { 1, 256 }), { "host", "libfuse" }
    return {
        forced = sample.collect(who, config.rounds, "operations", 0, against, config.count),
        cached = sample.collect(who, config.rounds, "cached", 1, against, config.count),
    }
end

function M.protocol(config)
    return assert(fcvm.json.decode(sample.sh(quote(config.programs .. "/fuse-protocol"))))
end

-- The processes of the mount, by what they are: the pump has the device, the server none of either half's.
local function halves(place)
    local found = {}
    local pids = sample.sh("pgrep -x fusepipe-loop || true")
    for pid in pids:gmatch "%d+" do
        local line = sample.sh(("tr '\\0' ' ' </proc/%s/cmdline; ls -l /proc/%s/fd"):format(pid, pid))
        if line:find(place.target, 1, true) then
            if line:find("/dev/fuse", 1, true) then
                found.pump = math.tointeger(tonumber(pid))
            elseif line:find("socket:", 1, true) then
                found.server = math.tointeger(tonumber(pid))
            end
        end
    end
    assert(found.pump and found.server, "the processes of " .. place.target .. " were not found")
    return found
end

local function virtual_mb(pid)
    local file <close> = assert(io.open(("/proc/%d/statm"):format(pid)))
    return file:read "n" * 4096 / 1048576
end

local function idle(place)
    local pids = halves(place)
    return {
        server_mb = measure.pss_mb(pids.server), guest_mb = measure.pss_mb(pids.pump),
        server_virtual_mb = virtual_mb(pids.server), guest_virtual_mb = virtual_mb(pids.pump),
    }
end

--- MiB of either half, mounted and after the guide's work, both idle.
function M.memory(config)
    local place <close> = workplace(config.programs, config.dir)
    local results = {}
    for i, n in ipairs { 1, 64, 256 } do
        mount(place, "fusepipe-loop", "--readers " .. n)
        fcvm.sleep(0.5)
        local fresh = idle(place)
        work_in(place, "throughput", place.target)
        fcvm.sleep(SETTLE_S)
        results[i] = { readers = n, mounted = fresh, used = idle(place) }
        unmount(place)
    end
    return results
end

return M
