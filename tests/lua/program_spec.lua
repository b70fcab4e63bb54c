-- SPDX-License-Identifier: MIT
local core = require "fcvm.core"
local fcvm = require "fcvm"

local function check(value, err, ...)
    if not value then error(tostring(err), 2) end
    return value, err, ...
end

describe("a program", function()
    local vm

    setup(function() vm = check(fcvm.vm { memory = "128M" }:start()) end)
    teardown(function() vm:close() end)

    it("is written to and read from", function()
        local p <close> = check(vm:spawn { "cat" })
        assert.is_true(p.pid > 1)
        check(p:write "one\ntwo\n")
        assert.equal("one", check(p:read("l", { timeout = 10 })))
        assert.equal("two\n", check(p:read("L", { timeout = 10 })))
        check(p:write "rest")
        p:close_stdin()
        assert.equal("rest", p:read "a")
        assert.same({ status = 0 }, check(p:wait(10)))
        assert.same({ status = 0 }, check(p:wait()))
        assert.is_nil((p:read()))
    end)

    it("has two outputs", function()
        local p <close> = check(vm:spawn { "sh", "-c", "echo to out; echo to err >&2; exit 4" })
        assert.equal("to err\n", p:read("a", { from = "stderr", timeout = 10 }))
        local lines = {}
        for line in p:lines() do lines[#lines + 1] = line end
        assert.same({ "to out" }, lines)
        assert.equal(4, check(p:wait(10)).status)
    end)

    it("is signalled", function()
        local p <close> = check(vm:spawn { "sleep", "100" })
        check(p:signal "TERM")
        assert.same({ status = 143, signal = 15 }, check(p:wait(10)))
        assert.has_error(function() p:signal "NONSENSE" end)
        assert.has_error(function() p:signal(65) end)
        assert.has_error(function() p:signal() end)
    end)

    it("has a terminal if wanted", function()
        local p <close> = check(vm:spawn { "sh", tty = { rows = 40, cols = 120 } })
        -- assembled in the guest: the echo of what is typed does not match
        check(p:write "stty size; echo do''ne\n")
        local size
        for line in p:lines("stdout", { timeout = 10 }) do
            size = size or line:match "^(%d+ %d+)$"
            if line:find "^done" then break end
        end
        assert.equal("40 120", size)
        check(p:resize(50, 132))
        check(p:write "stty size; exit 7\n")
        local again
        for line in p:lines("stdout", { timeout = 10 }) do again = again or line:match "^(%d+ %d+)$" end
        assert.equal("50 132", again)
        assert.equal(7, check(p:wait(10)).status)
    end)

    it("keeps to timeouts", function()
        local p <close> = check(vm:spawn { "sleep", "100" })
        local start = core.now()
        local data, err = p:read(1, { timeout = 0.05 })
        assert.is_nil(data)
        assert.equal("ETIMEDOUT", err.code)
        data, err = p:wait(0.05)
        assert.is_nil(data)
        assert.equal("ETIMEDOUT", err.code)
        assert.is_true(core.now() - start < 2)
    end)

    it("is killed with its <close> variable", function()
        local pid
        do
            local p <close> = check(vm:spawn { "sleep", "1000" })
            pid = p.pid
            assert.equal(0, check(vm:exec { "kill", "-0", tostring(pid) }).status)
        end
        local status
        for _ = 1, 50 do
            status = check(vm:exec { "kill", "-0", tostring(pid) }).status
            if status ~= 0 then break end
            fcvm.sleep(0.02)
        end
        assert.not_equal(0, status)
    end)

    it("is read and written by different tasks", function()
        local p <close> = check(vm:spawn { "cat" })
        local data = ("0123456789abcdef"):rep(1 << 14)
        local writer = fcvm.spawn(function()
            check(p:write(data))
            p:close_stdin()
        end)
        local reader = fcvm.spawn(function() return p:read "a" end)
        assert.is_true(data == reader:await())
        writer:await()
        assert.equal(0, check(p:wait(10)).status)
    end)

    it("survives its VM, as a handle", function()
        local other = check(fcvm.vm { memory = "128M" }:start())
        local p = check(other:spawn { "cat" })
        other:close()
        local data, err = p:read(1, { timeout = 5 })
        assert.is_nil(data)
        assert.is_true(err == nil or err.code ~= "ETIMEDOUT")
        assert.is_nil((p:write "x"))
        p:close()
        assert.equal("program (closed)", tostring(p))
    end)
end)
