-- SPDX-License-Identifier: MIT
-- disk_full.lua run|data|boot: what is on the small file system.
local fcvm = require "fcvm"

local function holds(vm)
    local out = assert(vm:exec { "sh", "-c", "cat /tmp/mark; date +%s" })
    assert(out.stdout:match "^still here\n%d+\n$", out.stdout)
end

-- The VM goes on, and can be snapshotted once there is room.
local function refused(vm, opts, file_system)
    local snap, err = vm:snapshot(opts)
    assert(not snap, "a snapshot was taken on a full disk")
    io.stdout:write("  ", tostring(err), "\n")
    assert(err.code == "ENOSPC", "code is " .. tostring(err.code))
    assert(err.msg:find(vm.name, 1, true) or err.msg:find "snapshot", "it does not say what was to be done")
    assert(err.msg:find(file_system, 1, true), "it does not say where there is no room")
    assert(err.msg:find "%d+ [KMG]i?B", "it does not say how much is needed")
    assert(vm.state == "running", vm.state)
    holds(vm)
end

local what, place = arg[1], arg[2]
if what == "boot" then
    local vm <close> = fcvm.vm { memory = "96M", cold = true }
    local ok, err = vm:start { timeout = 60 }
    assert(not ok, "it boots on a disk that is too small")
    io.stdout:write("  ", tostring(err), "\n")
    assert(tostring(err):find "space" or tostring(err):find "full", "it does not say that the disk is full")
    return
end
local vm <close> = assert(fcvm.vm { memory = "96M", cold = what == "data" }:start())
assert(vm:write_file("/tmp/mark", "still here\n"))
local name = what == "data" and "full" or nil
for _, stop in ipairs { false, true, false } do
    refused(vm, { name = name, stop = stop }, place)
    assert(#assert(fcvm.snapshots()) == 0)
end
-- With room again, all is well. The big file was put there by the test.
os.remove(place .. "/filler")
local snap <close> = assert(vm:snapshot { name = name })
local clone <close> = assert(snap:clone())
holds(clone)
holds(vm)
