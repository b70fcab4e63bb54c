-- SPDX-License-Identifier: MIT
-- leaks.lua N: starts, snapshots, clones and frees over and over; descriptors, threads and memory stay as they were.
package.path = (debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or ".") .. "/?.lua;" .. package.path
local fcvm = require "fcvm"
local T = require "support"

local check = T.check
local count = tonumber(arg[1])

local function lines(command)
    local p = assert(io.popen(command))
    local n = 0
    for _ in p:lines() do n = n + 1 end
    p:close()
    return n
end

local function pid()
    local f = assert(io.open "/proc/self/stat")
    local n = f:read "n"
    f:close()
    return math.tointeger(n)
end

local self = pid()
local function used()
    collectgarbage()
    collectgarbage()
    local rss
    for line in io.lines "/proc/self/status" do
        rss = rss or tonumber(line:match "^VmRSS:%s+(%d+)")
    end
    return {
        fds = lines(("ls /proc/%d/fd"):format(self)),
        threads = lines(("ls /proc/%d/task"):format(self)),
        children = lines(("pgrep -P %d"):format(self)),
        rss = rss,
    }
end

local function measure(what, n, fn)
    for _ = 1, 5 do fn() end
    fcvm.sleep(0.3)
    local before = used()
    local from = fcvm.now()
    for _ = 1, n do fn() end
    local after = used()
    -- What has been killed is collected a little later.
    for _ = 1, 20 do
        if after.fds <= before.fds and after.children <= before.children then break end
        fcvm.sleep(0.1)
        after = used()
    end
    io.stdout:write(("  %-28s %4d rounds, %4.0f ms each: fds %d -> %d, threads %d -> %d, RSS %d -> %d KiB\n"):format(what, n,
        (fcvm.now() - from) * 1000 / n, before.fds, after.fds, before.threads, after.threads, before.rss, after.rss))
    -- The reactor lets go of a VM's descriptors when it next has something to do: one VM may still have them.
    for _, key in ipairs { "fds", "threads", "children" } do
        check(after[key] <= before[key] + (key == "fds" and 12 or 0), ("%s: %s grew from %d to %d"):format(what, key, before[key],
            after[key]))
    end
    -- What is left of malloc's habits; a leak of a page each time would be more.
    check(after.rss - before.rss <= 1024 + 4 * n, ("%s: memory grew from %d to %d KiB"):format(what, before.rss, after.rss))
end

local config = { memory = "96M" }
local folder = os.getenv "FCVM_DATA" .. "/volume"
assert(os.execute("mkdir " .. folder))

do
    local keep <close> = assert(fcvm.vm(config):start()) -- so that what all share is there
    measure("start and close", count // 4, function()
        local vm <close> = assert(fcvm.vm(config):start())
    end)
    measure("exec", count, function() assert(keep:exec { "true" }) end)
    measure("spawn and close", count, function()
        local p <close> = assert(keep:spawn { "cat" })
    end)
    measure("attach", count, function()
        local vm <close> = assert(fcvm.attach(keep.id))
        assert(vm:ping())
    end)
    measure("snapshot", count // 4, function()
        local snap <close> = assert(keep:snapshot())
    end)
    measure("files", count // 2, function()
        assert(keep:write_file("/tmp/x", "hello"))
        assert(keep:read_file "/tmp/x")
        assert(not keep:read_file "/nothing")
    end)
    local snap <close> = assert(keep:snapshot())
    assert(snap:prepare(1))
    measure("clone and close", count, function()
        local clone <close> = assert(snap:clone())
    end)
    measure("clone and kill", count // 4, function()
        local clone <close> = assert(snap:clone())
        assert(clone:kill())
        assert(not clone:exec { "true" })
    end)
    measure("snapshot and two clones", count // 10, function()
        local s <close> = assert(keep:snapshot())
        local clones <close> = assert(s:clone(2))
    end)
    measure("failed starts", count // 4, function()
        assert(not fcvm.vm { memory = "96M", image = "none" }:start())
        assert(not fcvm.vm { memory = "96M", name = keep.name }:start())
    end)
    measure("mount and unmount", count // 4, function()
        assert(keep:mount { host = folder, guest = "/volume", readers = 2 })
        assert(keep:exec { "sh", "-c", "echo x >/volume/file; cat /volume/file" })
        assert(keep:unmount "/volume")
    end)
    measure("failed mounts", count // 4, function()
        assert(not keep:mount { host = folder .. "/none", guest = "/volume" })
        assert(not keep:mount { host = folder, guest = "/proc/none" })
        assert(not keep:unmount "/volume")
    end)
    assert(keep:mount { host = folder, guest = "/volume" })
    measure("snapshot and clone with a volume", count // 4, function()
        local s <close> = assert(keep:snapshot())
        local clone <close> = assert(s:clone())
        assert(clone:exec { "cat", "/volume/file" })
    end)
    assert(keep:unmount "/volume")
    measure("given up", count // 4, function()
        assert(not keep:exec { "sleep", "100", timeout = 0.005 })
        local made = keep:snapshot { timeout = 0.001 }
        if made then made:close() end
    end)
end
measure("all of it", 10, function()
    local vm <close> = assert(fcvm.vm(config):start())
    local snap <close> = assert(vm:snapshot { stop = true })
    local clones <close> = assert(snap:clone(2))
end)
T.finish()
