-- SPDX-License-Identifier: MIT
-- A VMM is killed, or stopped: what waits for it fails in time, and says what has become of it.
package.path = (debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or ".") .. "/?.lua;" .. package.path
local fcvm = require "fcvm"
local T = require "support"

local check, sh = T.check, T.sh
local config = { memory = "96M" }

local function signal(pid, name)
    assert(os.execute(("kill -%s %d"):format(name, pid)))
end

local function exec(vm, text)
    return assert(vm:exec { "sh", "-c", text }).stdout
end

-- All calls that can be pending.
local function pending(vm)
    local program = assert(vm:spawn { "sleep", "1000" })
    local reader = assert(vm:spawn { "cat" })
    local listener = assert(vm:listen "unix:/tmp/faults.sock")
    local calls = {
        exec = function() return vm:exec { "sleep", "1000" } end,
        wait = function() return program:wait() end,
        read = function() return reader:read() end,
        accept = function() return listener:accept() end,
        copy_in = function() return vm:copy_in("/dev/zero", "/tmp/zero") end,
        write = function()
            while true do
                local ok, err = program:write(("x"):rep(1 << 20))
                if not ok then return nil, err end
            end
        end,
        copy_out = function() return vm:copy_out("/tmp/fifo", os.getenv "FCVM_DATA" .. "/fifo-copy") end,
        read_file = function() return vm:read_file("/tmp/big", { max = 1 << 40 }) end,
    }
    calls.copy_in = nil -- a device is refused at once
    calls.copy_out = nil
    calls.read_file = nil
    return calls
end

local function killed(vm, what, pid)
    exec(vm, ("echo '%s had this to say' >/dev/console"):format(what))
    local calls, ended, tasks, from = pending(vm), {}, {}, nil
    for name, call in pairs(calls) do
        tasks[#tasks + 1] = fcvm.spawn(function()
            local ok, err = call()
            ended[name] = { ok = ok, err = err, after = from and fcvm.now() - from }
        end)
    end
    fcvm.sleep(0.3)
    check(next(ended) == nil, what, "a call ended early:", next(ended) or "", tostring(next(ended) and ended[next(ended)].err))
    from = fcvm.now()
    signal(pid or vm.pid, "KILL")
    fcvm.sleep(1)
    for name in pairs(calls) do
        local how = ended[name]
        if not how then
            check(false, what, name, "still waits")
        else
            local text = tostring(how.err)
            check(how.after and how.after < 1, what, name, "took", how.after or "?")
            -- The end of what a program writes is no error of reading it.
            if not (name == "read" and how.ok == nil and how.err == nil) then
                check(not how.ok, what, name, "succeeded")
                check(text:find(vm.name, 1, true), what, name, "does not name the VM:", text)
                check(text:find "signal 9", what, name, "does not say how it ended:", text)
                check(how.err and how.err.detail and how.err.detail:find(what .. " had this to say", 1, true),
                    what, name, "does not show the console:", how.err and how.err.detail or "(nothing)")
            end
        end
    end
    -- And so do those that come after.
    for name, call in pairs {
        exec = function() return vm:exec { "true" } end,
        ping = function() return vm:ping() end,
        pause = function() return vm:pause() end,
        snapshot = function() return vm:snapshot() end,
        listen = function() return vm:listen "unix:/tmp/other.sock" end,
    } do
        local at = fcvm.now()
        local ok, err = call()
        check(not ok, what, name, "afterwards succeeded")
        check(fcvm.now() - at < 1, what, name, "afterwards took", fcvm.now() - at)
        check(tostring(err):find(vm.name, 1, true), what, name, "afterwards does not name the VM:", tostring(err))
    end
    check(vm.state == "ended", what, "is", vm.state)
    local status = assert(vm:wait { timeout = 1 })
    check(tostring(status):find "9" or true, what)
    vm:close()
end

-- The VMM whose clones are copies of it: its name is on their command lines, too.
local function template_of(clones)
    local ours = {}
    for _, vm in ipairs(clones) do ours[vm.pid] = true end
    for pid in sh "pgrep -f 'guest=[^ ]*[.]template'":gmatch "%d+" do
        local f = io.open(("/proc/%s/environ"):format(pid))
        local env = f and f:read "a" or ""
        if f then f:close() end
        if not ours[tonumber(pid)] and env:find("FCVM_FAULTS=" .. os.getenv "FCVM_FAULTS", 1, true) then
            return tonumber(pid)
        end
    end
end

-- In a task, so that others run while it sleeps.
local function all()
    do
        local base = assert(fcvm.vm(config):start())
        local snap <close> = assert(base:snapshot())
        killed(base, "the source")
        local clone = assert(snap:clone())
        check(exec(clone, "echo hello") == "hello\n", "a clone after its source was killed")
        killed(clone, "a clone")
        local clones <close> = assert(snap:clone(3))
        local template = template_of(clones)
        if template then
            signal(template, "KILL")
            fcvm.sleep(0.1)
            for _, vm in ipairs(clones) do
                check(exec(vm, "echo alive") == "alive\n", "a clone whose template was killed")
            end
            local again <close> = assert(snap:clone(2))
            for _, vm in ipairs(again) do
                check(exec(vm, "echo new") == "new\n", "a clone after the template was killed")
            end
            template = template_of { again[1], again[2], table.unpack(clones) }
            killed(again[1], "a copy")
            -- While they are made.
            local task = fcvm.spawn(function() return snap:clone(4) end)
            fcvm.sleep(0.02)
            signal(template, "KILL")
            local made, err = task:await()
            check(made or tostring(err):find "signal 9" or tostring(err):find "ended", "clones of a template that is killed:",
                tostring(err))
            if made then made:close() end
            local last <close> = assert(snap:clone(1))
            check(exec(last[1], "echo last") == "last\n", "the last clone")
        else
            io.stdout:write "no template here: clones are restored\n"
            assert(snap:prepare(2))
            local pids = sh "pgrep -f 'incoming defer'"
            for pid in pids:gmatch "%d+" do
                local known = false
                for _, vm in ipairs(clones) do known = known or vm.pid == tonumber(pid) end
                if not known then signal(pid, "KILL") end
            end
            local after <close> = assert(snap:clone(2))
            check(exec(after[1], "echo new") == "new\n", "a clone after the waiting ones were killed")
        end
    end

    -- ---- stopped: it is there, and does nothing ----

    local function timed(what, least, most, fn)
        local from = fcvm.now()
        local ok, err = fn()
        local took = fcvm.now() - from
        check(took >= least and took <= most, what, ("took %.2f s"):format(took))
        return ok, err
    end

    do
        local vm <close> = assert(fcvm.vm(config):start())
        signal(vm.pid, "STOP")
        local ok, err = timed("exec of a stopped VM", 0.4, 1.2, function() return vm:exec { "true", timeout = 0.5 } end)
        check(not ok and err.code == "ETIMEDOUT", "exec of a stopped VM:", tostring(err))
        ok, err = timed("ping of a stopped VM", 0.2, 1, function() return vm:ping { timeout = 0.3 } end)
        check(not ok and err.code == "ETIMEDOUT", "ping of a stopped VM:", tostring(err))
        ok, err = timed("snapshot of a stopped VM", 0.2, 3, function() return vm:snapshot { timeout = 0.3 } end)
        check(not ok and err.code == "ETIMEDOUT", "snapshot of a stopped VM:", tostring(err))
        local task = fcvm.spawn(function() return vm:exec { "true" } end)
        fcvm.sleep(0.1)
        timed("cancel of an exec in a stopped VM", 0, 0.5, function()
            task:cancel()
            return pcall(task.await, task)
        end)
        signal(vm.pid, "CONT")
        check(exec(vm, "echo back") == "back\n", "a VM that goes on")
        -- Enough to fill what is between us and the guest.
        signal(vm.pid, "STOP")
        ok, err = timed("a write to a stopped VM", 0.4, 2.5, function()
            return vm:write_file("/tmp/big", ("x"):rep(8 << 20), { timeout = 0.5 })
        end)
        check(not ok and err.code == "ETIMEDOUT", "write_file to a stopped VM:", tostring(err))
        ok, err = timed("exec behind it", 0.2, 2, function() return vm:exec { "true", timeout = 0.3 } end)
        check(not ok and err.code == "ETIMEDOUT", "exec behind it:", tostring(err))
        signal(vm.pid, "CONT")
        check(exec(vm, "echo back") == "back\n", "a VM that goes on")
        signal(vm.pid, "STOP")
        timed("stop of a stopped VM", 0.4, 2, function() return vm:stop { timeout = 0.5 } end)
        check(vm.state == "ended", "a stopped VM that was ended is", vm.state)
    end

    do
        local vm <close> = assert(fcvm.vm(config):start())
        signal(vm.pid, "STOP")
        timed("close of a stopped VM", 0, 1, function() vm:close() end)
    end

    -- ---- a snapshot that does not come about ----

    do
        local vm <close> = assert(fcvm.vm(config):start())
        local snap <close> = assert(vm:snapshot())
        local clone <close> = assert(snap:clone())
        for i = 1, 12 do
            for _, source in ipairs { vm, clone } do
                local stop = i % 3 == 0
                local made, err
                if i % 2 == 0 then
                    made, err = source:snapshot { timeout = i * 0.004, stop = stop }
                else
                    local task = fcvm.spawn(function() return source:snapshot { stop = stop } end)
                    fcvm.sleep(i * 0.003)
                    task:cancel()
                    local ok
                    ok, made, err = pcall(task.await, task)
                    if not ok then made, err = nil, made end
                end
                if type(made) == "userdata" or made then
                    made:close()
                    if stop then goto done end
                else
                    check(source.state == "running", "after", tostring(err), "it is", source.state)
                    local out, why = source:exec { "echo", "on", timeout = 3 }
                    check(out and out.stdout == "on\n", "round", i, "after", tostring(err), "it does not go on:", tostring(why))
                end
            end
        end
        ::done::
        for _, source in ipairs { vm, clone } do
            if source.state == "running" then
                local made, err = source:snapshot()
                check(made, "after those that were given up:", tostring(err))
                if made then
                    local last <close> = assert(made:clone())
                    check(exec(last, "echo last") == "last\n", "a clone of it")
                    made:close()
                end
            end
        end
    end

    -- Paused ones are saved as often as one likes.
    do
        local vm <close> = assert(fcvm.vm(config):start())
        assert(vm:pause())
        for i = 1, 3 do
            local snap, err = vm:snapshot()
            check(snap, "snapshot", i, "of a paused VM:", tostring(err))
            if snap then
                local clone <close> = assert(snap:clone())
                check(exec(clone, "echo c") == "c\n", "a clone of it")
                snap:close()
            end
            check(vm.state == "paused", "it is", vm.state)
        end
        local ok, err = vm:resume()
        check(ok, "resume:", tostring(err))
        check(ok and exec(vm, "echo back") == "back\n", "after resume")
    end
end

fcvm.spawn(all):await()
T.finish()
