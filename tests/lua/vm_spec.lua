-- SPDX-License-Identifier: MIT
-- One VM for the whole file, started from the kept snapshot if there is one.
local core = require "fcvm.core"
local fcvm = require "fcvm"
local pretty = require "fcvm.pretty"

-- luassert's assert formats what it is given; this one is Lua's.
local function check(value, err, ...)
    if not value then error(tostring(err), 2) end
    return value, err, ...
end

describe("a VM", function()
    local vm

    setup(function() vm = check(fcvm.vm { name = "vm-spec", memory = "128M" }:start()) end)
    teardown(function() vm:close() end)

    it("has fields", function()
        assert.matches("^%x%x%x%x%x%x%x%x$", vm.id)
        assert.equal("vm-spec", vm.name)
        assert.equal("running", vm.state)
        assert.equal(128 << 20, vm.memory)
        assert.equal(1, vm.vcpus)
        assert.equal("qemu", vm.driver)
        assert.is_true(vm.accel == "kvm" or vm.accel == "tcg")
        assert.is_true(vm.pid > 0)
        assert.is_true(vm.uptime >= 0)
        assert.is_false(vm.attached)
        assert.equal("boolean", type(vm.warm))
    end)

    it("shows itself", function()
        assert.matches('^vm "vm%-spec" running, qemu/%a+, 128 MiB, 1 vCPU', tostring(vm))
        assert.equal(tostring(vm), pretty.format(vm))
    end)

    it("is in the list", function()
        local found
        for _, entry in ipairs(check(fcvm.list())) do
            if entry.id == vm.id then found = entry end
        end
        assert.equal("vm-spec", found.name)
    end)

    it("answers a ping", function()
        local seconds = check(vm:ping())
        assert.is_true(seconds > 0 and seconds < 5)
        assert.is_true(check(vm:ping(2)) < 2)
    end)

    it("runs programs", function()
        local out = check(vm:exec { "sh", "-c", "echo out; echo err >&2; exit 3" })
        assert.same({ status = 3, stdout = "out\n", stderr = "err\n" }, out)
        assert.equal('{ status = 3, stdout = "out\\n", stderr = "err\\n" }', pretty.format(out))
        out = check(vm:exec "kill -9 $$")
        assert.equal(137, out.status)
        assert.equal(9, out.signal)
    end)

    it("runs them with options", function()
        assert.equal("/tmp\n", check(vm:exec { "pwd", cwd = "/tmp" }).stdout)
        assert.equal("x y\n", check(vm:exec { "sh", "-c", "echo $A $B", env = { A = "x", B = "y" } }).stdout)
        assert.equal("A=1\n", check(vm:exec { "/bin/busybox", "env", clear_env = true, env = { "A=1" } }).stdout)
        assert.equal("some\0bytes", check(vm:exec { "cat", input = "some\0bytes" }).stdout)
        assert.equal("12345", check(vm:exec { "id", "-u", user = "12345" }).stdout:match "%d+")
        local out = check(vm:exec { "sh", "-c", "echo a; echo b >&2", merge_stderr = true })
        assert.equal("a\nb\n", out.stdout)
        out = check(vm:exec { "sh", "-c", "yes | head -c 100000", limit = "1K" })
        assert.equal(1024, #out.stdout)
        assert.is_true(out.truncated)
    end)

    it("fails with an error that says what and why", function()
        local out, err = vm:exec { "no-such-program" }
        assert.is_nil(out)
        assert.equal("ENOENT", err.code)
        assert.equal("number", type(err.errno))
        assert.matches("vm%-spec", tostring(err))
        assert.matches("no%-such%-program", tostring(err))
        local start = core.now()
        out, err = vm:exec { "sleep", "100", timeout = 0.2 }
        assert.is_nil(out)
        assert.equal("ETIMEDOUT", err.code)
        assert.is_true(core.now() - start < 5)
    end)

    it("runs many at once in tasks", function()
        local list = {}
        for i = 1, 8 do list[i] = i end
        local results = fcvm.parallel(list, function(i) return check(vm:exec { "echo", i }).stdout end)
        for i = 1, 8 do assert.equal(i .. "\n", results[i]) end
    end)

    it("ends a call when its task is cancelled", function()
        local t = fcvm.spawn(function() return vm:exec { "sleep", "100" } end)
        core.sleep(0.1)
        local start = core.now()
        t:cancel()
        local ok, err = pcall(t.await, t)
        assert.is_false(ok)
        assert.equal(fcvm.cancelled, err)
        assert.is_true(core.now() - start < 2)
    end)

    it("holds files", function()
        check(vm:write_file("/tmp/f", "hello\0world", { mode = tonumber("600", 8) }))
        assert.equal("hello\0world", check(vm:read_file "/tmp/f"))
        assert.equal("600", check(vm:exec { "stat", "-c", "%a", "/tmp/f" }).stdout:match "%d+")
        local _, err = vm:read_file "/tmp/none"
        assert.equal("ENOENT", err.code)
        _, err = vm:read_file("/tmp/f", { max = 4 })
        assert.equal("EFBIG", err.code)
    end)

    it("has files copied in and out", function()
        local here = os.tmpname()
        local file = assert(io.open(here, "w"))
        file:write "copied"
        file:close()
        check(vm:copy_in(here, "/tmp/in"))
        assert.equal("copied", check(vm:read_file "/tmp/in"))
        check(vm:write_file("/tmp/out", "back"))
        check(vm:copy_out("/tmp/out", here))
        file = assert(io.open(here))
        assert.equal("back", file:read "a")
        file:close()
        os.remove(here)
    end)

    it("has sockets", function()
        local listener <close> = check(vm:listen "unix:/tmp/sock")
        local accepted = fcvm.spawn(function() return check(listener:accept(10)) end)
        local a <close> = check(vm:connect "unix:/tmp/sock")
        local b <close> = accepted:await()
        a:write "ping\n"
        assert.equal("ping", b:read("l", { timeout = 5 }))
        b:write "pong\n"
        assert.equal("pong", a:read("l", { timeout = 5 }))
        b:close()
        assert.is_nil((a:read(1, { timeout = 5 })))
        local _, err = vm:connect "unix:/tmp/none"
        assert.equal("ENOENT", err.code)
    end)

    it("can be paused and resumed", function()
        assert.equal(vm, check(vm:pause()))
        assert.equal("paused", vm.state)
        check(vm:resume())
        assert.equal("running", vm.state)
        check(vm:ping())
        assert.is_nil((vm:resume()))
    end)

    it("can be attached to", function()
        local other <close> = check(fcvm.attach(vm.id))
        assert.equal("vm-spec", other.name)
        assert.is_true(other.attached)
        assert.equal("hi\n", check(other:exec { "echo", "hi" }).stdout)
        other:close()
        assert.equal("running", vm.state)
        local _, err = fcvm.attach "no-such-vm"
        assert.equal("ENOENT", err.code)
    end)

    it("keeps its console", function()
        assert.equal("string", type(vm:console()))
        assert.is_true(#vm:console(100) <= 100)
    end)

    it("is misused loudly", function()
        local function message(fn)
            local ok, err = pcall(fn)
            assert.is_false(ok)
            assert.matches("vm_spec.lua:%d+: ", err)
            return err
        end
        assert.matches("did you mean \"timeout\"", message(function() local _ = vm:exec { "ls", timeot = 1 } end))
        assert.matches("did you mean \"state\"", message(function() local _ = vm.sate end))
        assert.matches("with a colon", message(function() local _ = vm.exec { "ls" } end))
        assert.matches("read only", message(function() vm.name = "x" end))
        assert.matches("unix:/path", message(function() local _ = vm:connect "here" end))
    end)
end)

describe("a VM's life", function()
    it("ends with its <close> variable", function()
        local dir
        do
            local vm <close> = check(fcvm.vm { memory = "128M" }:start())
            dir = vm.dir
            assert.is_not_nil(io.open(dir))
        end
        assert.is_nil(io.open(dir))
    end)

    it("ends by stop, and waits", function()
        local vm <close> = check(fcvm.vm { memory = "128M" }:start())
        local waiting = fcvm.spawn(function() return check(vm:wait(20)) end)
        check(vm:stop())
        assert.equal("ended", vm.state)
        assert.equal(0, waiting:await().status)
        local _, err = vm:exec { "true" }
        assert.matches("ended", tostring(err))
    end)

    it("ends by kill, and says so to who waits for an answer", function()
        local vm <close> = check(fcvm.vm { memory = "128M", name = "to-be-killed" }:start())
        local call = fcvm.spawn(function() return vm:exec { "sleep", "100" } end)
        core.sleep(0.1)
        local start = core.now()
        check(vm:kill())
        local out, err = call:await()
        assert.is_nil(out)
        assert.matches("to%-be%-killed", err.msg)
        assert.is_true(core.now() - start < 1)
        assert.equal(9, check(vm:wait(5)).signal)
    end)

    it("ends the calls of other tasks when it is closed", function()
        local vm = check(fcvm.vm { memory = "128M" }:start())
        local call = fcvm.spawn(function() return vm:exec { "sleep", "100" } end)
        core.sleep(0.1)
        vm:close()
        local out, err = call:await()
        assert.is_nil(out)
        assert.is_string(err.code)
        assert.equal("vm (closed)", tostring(vm))
    end)

    it("is refused what cannot be", function()
        local ok, err = pcall(fcvm.vm, { driver = "no-such-driver" })
        if ok then
            local vm <close> = err
            ok, err = vm:start()
        end
        assert.is_falsy(ok)
        assert.matches("no%-such%-driver", tostring(err))
    end)
end)
