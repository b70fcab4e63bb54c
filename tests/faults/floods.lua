-- SPDX-License-Identifier: MIT
-- Guests that print without end, and hundreds of programs at once: memory and logs stay bounded, nobody is stalled.
package.path = (debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or ".") .. "/?.lua;" .. package.path
local fcvm = require "fcvm"
local T = require "support"

local check = T.check

local function status_mb(what)
    for line in io.lines "/proc/self/status" do
        local kb = line:match("^" .. what .. ":%s+(%d+)")
        if kb then return tonumber(kb) / 1024 end
    end
end

local function size(path)
    local f = io.open(path, "r")
    if not f then return 0 end
    local n = f:seek "end"
    f:close()
    return n
end

local MUCH = tonumber(os.getenv "FCVM_FLOOD_MB" or 96) -- MiB that are printed

local function all()
    local vm <close> = assert(fcvm.vm { memory = "128M", name = "floods" }:start())
    local before = status_mb "VmHWM"

    -- The agent's port is nobody else's.
    local port = assert(vm:exec "cat /dev/vport0p1; echo x >/dev/vport0p1")
    check(port.stdout == "" and port.stderr:find "busy", "the agent's port:", port.stdout, port.stderr)

    -- A program that prints much: what is kept is bounded, and its neighbours go on.
    local from = fcvm.now()
    local loud = fcvm.spawn(function()
        return assert(vm:exec { "sh", "-c", ("dd if=/dev/zero bs=1M count=%d 2>/dev/null"):format(MUCH), limit = "1M" })
    end)
    local slowest = 0
    while not loud:done() do
        local at = fcvm.now()
        assert(vm:exec { "true", timeout = 30 })
        slowest = math.max(slowest, fcvm.now() - at)
    end
    local out = loud:await()
    check(#out.stdout == 1 << 20 and out.truncated, "kept", #out.stdout, tostring(out.truncated))
    io.stdout:write(("  %d MiB of output in %.1f s, a neighbour's exec at most %.2f s\n"):format(MUCH,
        fcvm.now() - from, slowest))
    check(slowest < 5, "a neighbour waited", slowest)

    -- One that nobody reads.
    local unread <close> = assert(vm:spawn { "sh", "-c", "cat /dev/zero" })
    local unread_too <close> = assert(vm:spawn { "sh", "-c", "cat /dev/zero >&2" })
    fcvm.sleep(0.5)
    assert(vm:exec { "true", timeout = 10 })
    unread:close()
    unread_too:close()
    check(status_mb "VmHWM" - before < 64, "memory grew by", status_mb "VmHWM" - before, "MiB")

    -- The console.
    from = fcvm.now()
    assert(vm:exec { "sh", "-c", "yes 'a line on the console that is of no use to anybody' | " ..
        "dd bs=1k count=2048 iflag=fullblock 2>/dev/null >/dev/console", timeout = 200 })
    assert(vm:exec { "sh", "-c", "echo the last words >/dev/console" })
    fcvm.sleep(0.3)
    local log = size(vm.dir .. "/console.log") + size(vm.dir .. "/console.log.1")
    io.stdout:write(("  2 MiB on the console in %.1f s, of which %d KiB are kept\n"):format(fcvm.now() - from, log // 1024))
    check(log <= 3 << 20, "the console's log has", log)
    check(log >= 4096, "nothing of the console is kept")
    check(vm:console(100):find "the last words", "the console's end:", vm:console(100))

    -- Many at once.
    from = fcvm.now()
    local numbers = {}
    for i = 1, 200 do numbers[i] = i end
    local sums = fcvm.parallel(numbers, function(i)
        return tonumber(assert(vm:exec { "sh", "-c", ("echo %d; exit %d"):format(i, i % 7), timeout = 120 }).stdout)
    end)
    local sum = 0
    for _, n in ipairs(sums) do sum = sum + n end
    check(sum == 200 * 201 // 2, "the sum is", sum)
    io.stdout:write(("  200 programs at once in %.1f s\n"):format(fcvm.now() - from))
    -- And really at once: all wait for the last.
    local waiting = {}
    for i = 1, 200 do waiting[i] = assert(vm:spawn { "sh", "-c", "read line; echo $line" }) end
    for i, p in ipairs(waiting) do assert(p:write(("for %d\n"):format(i))) end
    for i, p in ipairs(waiting) do
        local text = p:read "a"
        check(text == ("for %d\n"):format(i), i, "got", tostring(text))
        check(assert(p:wait { timeout = 30 }), "no end")
        p:close()
    end
    check(status_mb "VmHWM" - before < 128, "memory grew by", status_mb "VmHWM" - before, "MiB")
    io.stdout:write(("  at most %.0f MiB\n"):format(status_mb "VmHWM"))
    local processes = tonumber(assert(vm:exec "ls -d /proc/[0-9]* | wc -l").stdout)
    io.stdout:write(("  %d processes in the guest afterwards\n"):format(processes))
    local left = assert(vm:exec "ps | grep -c '[c]at /dev/zero' || true").stdout
    check(left == "0\n", "programs that nobody reads go on: ", left)
end

fcvm.spawn(all):await()
T.finish()
