-- SPDX-License-Identifier: MIT
-- Firecracker is killed at each step, and meets snapshots that are torn: what waits for it fails in time and says why, and
-- nothing is left. Run where KVM works: see the script firecracker. ROUNDS: how many kills of each kind.
package.path = (debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or ".") .. "/?.lua;" .. package.path
local fcvm = require "fcvm"
local T = require "support"

local check, sh = T.check, T.sh
local rounds = tonumber(arg[1]) or 4
local config = { driver = "firecracker", memory = "96M" }
-- an emulated machine, and others on it
local SLOW = 60

-- Prints the pids of this test's Firecrackers, by its mark: there may be others on this machine.
local OURS = ([[for p in $(pgrep -f -- '[-]-api-sock'); do grep -saq "FCVM_FAULTS=%s" /proc/$p/environ && echo $p; done]])
    :format(os.getenv "FCVM_FAULTS")

-- Those that are there, but for those of the VMs given.
local function others(...)
    local mine = {}
    for _, vm in ipairs { ... } do mine[vm.pid] = true end
    local list = {}
    for pid in sh(OURS):gmatch "%d+" do
        if not mine[tonumber(pid)] then list[#list + 1] = tonumber(pid) end
    end
    return list
end

-- A run folder's leases, without those of the VMs and snapshots given.
local function folders(...)
    local mine, n = {}, 0
    for _, object in ipairs { ... } do mine[object.dir] = true end
    for path in sh(("ls -d '%s'/????????"):format(os.getenv "FCVM_RUN")):gmatch "[^\n]+" do
        if not mine[path] then n = n + 1 end
    end
    return n
end

local function none_left(what, ...)
    local list = { ... }
    local vms = {}
    for _, object in ipairs(list) do
        if tostring(object):find "^vm" then vms[#vms + 1] = object end
    end
    for _ = 1, 50 do
        if #others(table.unpack(vms)) == 0 and folders(...) == 0 then return end
        fcvm.sleep(0.1)
    end
    check(#others(table.unpack(vms)) == 0, what, "left processes")
    check(folders(...) == 0, what, "left folders:", sh("ls " .. os.getenv "FCVM_RUN"))
end

-- Has fn fail by killing the Firecrackers that it starts, `after` seconds after it began: by a process of its own, since fn
-- blocks. Returns whether that was in time.
local function killed_in(what, after, fn, ...)
    local keep = {}
    for _, vm in ipairs { ... } do keep[#keep + 1] = "^" .. vm.pid .. "$" end
    local killer = assert(io.popen(("sleep %.3f; { %s; } | grep -v '%s' | xargs -r kill -KILL 2>/dev/null; :")
        :format(after, OURS, table.concat(keep, "\\|"))))
    local from = fcvm.now()
    local made, err = fn()
    local took = fcvm.now() - from
    killer:close()
    check(took < SLOW, what, ("took %.1f s"):format(took))
    if made then
        made:close()
        return false
    end
    local text = tostring(err)
    check(text:find "signal 9" or text:find "reset" or text:find "ended", what, "does not say how:", text)
    io.stdout:write(("  %s, killed after %.2f s: %.1f s: %s\n"):format(what, after, took, (text:match "^[^\n]*")))
    return true
end

local base <close> = assert(fcvm.vm(config):start { timeout = 180 })

-- ---- killed at each step ----

do
    local dead = 0
    for i = 1, rounds do
        local hit = killed_in("boot", ({ 0.05, 0.4, 3, 8 })[i] or i, function()
            return fcvm.vm { driver = "firecracker", memory = "96M", cold = true }:start { timeout = SLOW }
        end, base)
        dead = dead + (hit and 1 or 0)
    end
    check(dead > 0, "no boot was killed in time")
    none_left("killed boots", base)
end

local snap <close> = assert(base:snapshot())
do
    local dead = 0
    for i = 1, rounds do
        local hit = killed_in("clone", 0.05 * 2 ^ (i - 1), function() return snap:clone { timeout = SLOW } end, base)
        dead = dead + (hit and 1 or 0)
    end
    check(dead > 0, "no clone was killed in time")
    none_left("killed clones", base, snap)
end

local hits = 0
for i = 1, rounds do
    local vm <close> = assert(snap:clone { timeout = SLOW })
    local hit = killed_in("snapshot", 0.05 * 2 ^ (i - 1), function() return vm:snapshot { timeout = SLOW } end, base)
    hits = hits + (hit and 1 or 0)
    check(assert(base:exec { "echo", "on" }).stdout == "on\n", "the base went with a clone")
end
check(hits > 0, "no snapshot was killed in time")
none_left("killed snapshots", base, snap)

-- ---- stopped: its socket is there, and silent ----

do
    local vm <close> = assert(snap:clone { timeout = SLOW })
    os.execute(("kill -STOP %d"):format(vm.pid))
    local from = fcvm.now()
    local ok, err = vm:pause()
    check(not ok and fcvm.now() - from < 30 and tostring(err):find(vm.name, 1, true), "a silent Firecracker:", tostring(err))
    io.stdout:write(("  pause of a silent one: %.1f s: %s\n"):format(fcvm.now() - from, (tostring(err):match "^[^\n]*")))
end
none_left("a silent one", base, snap)

-- ---- torn snapshots ----

local function torn(what, file, script, pattern)
    local vm <close> = assert(snap:clone { timeout = SLOW })
    local torn_one <close> = assert(vm:snapshot { timeout = SLOW })
    local path = torn_one.dir .. "/" .. file
    assert(os.execute(script:gsub("FILE", "'" .. path .. "'")))
    local from = fcvm.now()
    local clone, err = torn_one:clone { timeout = SLOW }
    check(not clone, what, "was cloned")
    check(tostring(err):find(pattern), what, tostring(err))
    check(fcvm.now() - from < 30, what, "took long")
    io.stdout:write(("  %s: %s\n"):format(what, (tostring(err):match "^[^\n]*")))
end

torn("a memory file cut short", "memory", "truncate -s 1M FILE", "not its snapshot")
torn("no memory file", "memory", "rm FILE", "No such file")
torn("a state file cut short", "state", "truncate -s 4096 FILE", "snapshot")
torn("a state file of zeros", "state", "n=$(wc -c < FILE) && truncate -s 0 FILE && truncate -s $n FILE", "snapshot")
torn("no state file", "state", "rm FILE", "No such file")
none_left("torn snapshots", base, snap)

-- ---- some of many die at load: the others are handed out, or none, as the caller chose ----

-- The first `doomed` Firecrackers that are started die when they open the snapshot's memory (the script firecracker).
local function some_die(n, doomed, opts)
    local doom = os.getenv "DOOM"
    local file <close> = assert(io.open(doom .. "/memory", "w"))
    file:write(snap.dir, "/memory\n")
    file:flush()
    for i = 1, doomed do assert(io.open(("%s/ticket.%d"):format(doom, i), "w")):close() end
    local clones, err = snap:clone(n, opts)
    os.execute(("rm -f '%s'/*"):format(doom))
    return clones, err
end

if os.getenv "DOOMED" then
    local many <const> = 50
    local clones <close>, err = some_die(many, 3, { partial = true, timeout = 4 * SLOW })
    check(clones, "partial: nothing was handed out:", tostring(err))
    if clones then
        local errors = 0
        for i in pairs(clones.errors or {}) do
            errors = errors + 1
            if errors == 1 then
                io.stdout:write("  one of those that died: ", (tostring(clones.errors[i]):match "^[^\n]*"), "\n")
            end
        end
        check(#clones + errors == many and errors >= 3, ("partial: %d clones, %d errors"):format(#clones, errors))
        for _, vm in ipairs(clones) do
            check(assert(vm:exec { "hostname" }).stdout == vm.name .. "\n", "a clone that is somebody else")
        end
        clones:close()
    end
    none_left("partial clones", base, snap)
    local all
    all, err = some_die(many, 3, { timeout = 4 * SLOW })
    check(not all and err, "three died, and all were handed out")
    io.stdout:write("  all or none: ", (tostring(err):match "^[^\n]*"), "\n")
    none_left("all or none", base, snap)
end

check(assert(base:exec { "echo", "on" }).stdout == "on\n", "the base does not live")
T.finish()
