-- SPDX-License-Identifier: MIT
-- Guests whose agent breaks every rule: an error in time, memory that stays bounded, and nothing else.
package.path = (debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or ".") .. "/?.lua;" .. package.path
local fcvm = require "fcvm"
local T = require "support"

local check = T.check

local function memory_mb()
    for line in io.lines "/proc/self/status" do
        local kb = line:match "^VmHWM:%s+(%d+)"
        if kb then return tonumber(kb) / 1024 end
    end
end

-- What is expected of the error: nothing but that it is one, names the VM and comes in time.
local function in_time(word, what, limit, fn)
    local from = fcvm.now()
    local ok, err = fn()
    local took = fcvm.now() - from
    io.stdout:write(("  %-18s %-10s %5.1f s  %s\n"):format(word, what, took,
        ok and "went well" or tostring(err):match "^[^\n]*"))
    check(took < limit, word, what, "took", took)
    return ok, err, took
end

local base <close> = assert(fcvm.vm { memory = "96M", cold = true, name = "hostile" }:start())

-- A snapshot whose clones greet in the way of `word`.
local function greets(word)
    local ok, err = base:exec { "next-" .. word, timeout = 10 }
    assert(not ok and err.code == "ENOENT", tostring(err))
    return assert(base:snapshot())
end

for _, word in ipairs { "garbage", "zeros", "silent", "blind", "version", "nonce", "magic", "half-welcome", "welcomes" } do
    local snap <close> = greets(word)
    local clone, err = in_time(word, "clone", 3.5, function() return snap:clone { timeout = 1.5 } end)
    check(not clone, word, "was cloned")
    if not clone then
        check(tostring(err):find("hostile", 1, true), word, "is not named")
    else
        clone:close()
    end
end

local snap <close> = greets "ping"
do
    local vm <close> = assert(snap:clone())
    local ok = in_time("ping", "ping", 3, function() return vm:ping { timeout = 1 } end)
    check(not ok, "ping is answered by what was not sent")
end
for _, word in ipairs { "escape", "escape-root", "tree" } do
    local vm <close> = assert(snap:clone())
    local to = os.getenv "FCVM_DATA" .. "/" .. word
    local ok = in_time(word, "copy_out", 5, function() return vm:copy_out("/" .. word, to, { timeout = 3 }) end)
    check(not ok, word, "was copied")
    ok = in_time(word, "read_file", 5, function() return vm:read_file("/" .. word, { timeout = 3 }) end)
    check(not ok, word, "was read")
    check(not io.open(os.getenv "FCVM_DATA" .. "/escaped") and not io.open "/tmp/escaped", word, "got out")
end

local ways = { "never", "short-result", "huge-errno", "result-twice", "over-window", "wrong-channel", "credits",
    "after-eof", "strangers", "oversized", "half", "late-garbage", "late-zeros", "deaf", "no-exit" }
fcvm.parallel(ways, function(word)
    local vm <close> = assert(snap:clone())
    local ok, err = in_time(word, "exec", 4, function() return vm:exec { word, timeout = 1.5 } end)
    check(not ok, word, "exec succeeded")
    check(tostring(err):find(vm.name, 1, true), word, "is not named")
    in_time(word, "again", 3, function() return vm:exec { word, timeout = 0.5 } end)
    in_time(word, "snapshot", 3, function() return vm:snapshot { timeout = 0.5 } end)
    in_time(word, "stop", 3, function() return vm:stop { timeout = 0.5 } end)
end, { limit = fcvm.processors() })

local mb = memory_mb()
io.stdout:write(("  at most %.0f MiB\n"):format(mb))
check(mb < 150, "memory grew to", mb, "MiB")
check(#fcvm.list() == 1, "VMs are left")
base:close()
T.finish()
