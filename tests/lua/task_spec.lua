-- SPDX-License-Identifier: MIT
-- Tasks need no VM: they wait in sleeps, and on workers in the reads of a pair of sockets.
local core = require "fcvm.core"
local fcvm = require "fcvm"

local function elapsed(fn, ...)
    local start = core.now()
    fn(...)
    return core.now() - start
end

-- Two connected streams; reading from one blocks on a worker until something is written to the other.
local pair = core.stream_pair

-- What closes both when it goes.
local function closing(a, b)
    return setmetatable({}, { __close = function()
        a:close()
        b:close()
    end })
end

describe("a task", function()
    it("returns what its function returns", function()
        assert.same({ n = 3, 1, nil, 3 }, table.pack(fcvm.spawn(function(...) return ... end, 1, nil, 3):await()))
    end)

    it("begins at once, up to its first wait, when spawned from outside", function()
        local seen = {}
        local t = fcvm.spawn(function()
            seen[#seen + 1] = "task"
            fcvm.sleep(0)
            seen[#seen + 1] = "woken"
        end)
        seen[#seen + 1] = "main"
        t:await()
        assert.same({ "task", "main", "woken" }, seen)
    end)

    it("waits beside others", function()
        local seen = {}
        local took = elapsed(function()
            local tasks = {}
            for i = 1, 5 do
                tasks[i] = fcvm.spawn(function()
                    fcvm.sleep(0.02 * (6 - i))
                    seen[#seen + 1] = i
                end)
            end
            for _, t in ipairs(tasks) do t:await() end
        end)
        assert.same({ 5, 4, 3, 2, 1 }, seen)
        assert.is_true(took < 0.25)
    end)

    it("runs its blocking calls on workers", function()
        local results = {}
        local tasks, writers = {}, {}
        for i = 1, 40 do
            local a, b = pair()
            writers[i] = b
            tasks[i] = fcvm.spawn(function()
                results[i] = a:read()
                a:close()
            end)
        end
        for i = 40, 1, -1 do assert(writers[i]:write("hello " .. i)) end
        for i = 1, 40 do
            tasks[i]:await()
            assert.equal("hello " .. i, results[i])
            writers[i]:close()
        end
    end)

    it("raises its error where it is awaited, with its traceback", function()
        local t = fcvm.spawn(function()
            fcvm.sleep(0)
            local function inner() error "boom" end
            inner()
        end)
        local ok, err = pcall(t.await, t)
        assert.is_false(ok)
        assert.matches("task_spec.lua:%d+: boom", err)
        assert.matches("stack traceback:.*in local 'inner'", err)
        -- and again
        assert.is_false(pcall(t.await, t))
    end)

    it("raises error tables as they are", function()
        local t = fcvm.spawn(function()
            local _, err = fcvm.snapshot "there-is-no-such-snapshot"
            error(err)
        end)
        local ok, err = pcall(t.await, t)
        assert.is_false(ok)
        assert.equal("ENOENT", err.code)
        assert.matches("task_spec.lua", err.traceback)
        assert.matches("there%-is%-no%-such%-snapshot", tostring(err))
        local mine = {}
        ok, err = pcall(t.await, fcvm.spawn(error, mine))
        assert.is_false(ok)
        assert.equal(mine, err)
    end)

    it("can await others, and they others", function()
        local function depth(n)
            if n == 0 then
                fcvm.sleep(0.001)
                return 0
            end
            return fcvm.spawn(depth, n - 1):await() + 1
        end
        assert.equal(50, fcvm.spawn(depth, 50):await())
    end)

    it("can be awaited by several", function()
        local t = fcvm.spawn(function()
            fcvm.sleep(0.01)
            return "x"
        end)
        local got = fcvm.parallel({ 1, 2, 3 }, function() return t:await() end)
        assert.same({ n = 3, "x", "x", "x" }, got)
    end)

    it("cannot await itself, nor what awaits it", function()
        local me
        me = fcvm.spawn(function()
            fcvm.sleep(0)
            me:await()
        end)
        assert.has_error(function() me:await() end)
        local a, b
        a = fcvm.spawn(function()
            fcvm.sleep(0)
            b:await()
        end)
        b = fcvm.spawn(function()
            fcvm.sleep(0)
            a:await()
        end)
        local ok, err = pcall(a.await, a)
        assert.is_false(ok)
        assert.matches("deadlock", err)
        a:cancel()
        pcall(a.await, a)
        pcall(b.await, b)
    end)

    it("may yield by itself to let others run", function()
        local seen = {}
        local function count(name)
            for i = 1, 3 do
                seen[#seen + 1] = name .. i
                coroutine.yield()
            end
        end
        local a, b = fcvm.spawn(count, "a"), fcvm.spawn(count, "b")
        a:await()
        b:await()
        assert.same({ "a1", "b1", "a2", "b2", "a3", "b3" }, seen)
    end)

    it("blocks where it cannot yield", function()
        fcvm.spawn(function()
            table.sort({ 3, 1, 2 }, function(x, y)
                fcvm.sleep(0)
                return x < y
            end)
            local co = coroutine.wrap(function()
                fcvm.sleep(0.001)
                coroutine.yield(1)
            end)
            assert.equal(1, co())
        end):await()
    end)
end)

describe("cancelling", function()
    it("raises fcvm.cancelled out of the call, and closes what is to be closed", function()
        local closed, caught
        local t = fcvm.spawn(function()
            local _ <close> = setmetatable({}, {
                __close = function(_, err)
                    closed = err
                    -- and may itself wait
                    fcvm.sleep(0.01)
                end,
            })
            local ok, err = pcall(fcvm.sleep, 100)
            caught = not ok and err
            error(err, 0)
        end)
        local took = elapsed(function()
            t:cancel()
            assert.is_false(pcall(t.await, t))
        end)
        assert.equal(fcvm.cancelled, caught)
        assert.equal(fcvm.cancelled, closed)
        assert.equal("cancelled", tostring(fcvm.cancelled))
        assert.is_true(took < 1 and took >= 0.01)
    end)

    it("ends calls on workers", function()
        local a, b = pair()
        local t = fcvm.spawn(function() return a:read() end)
        local took = elapsed(function()
            t:cancel()
            local ok, err = pcall(t.await, t)
            assert.is_false(ok)
            assert.equal(fcvm.cancelled, err)
        end)
        assert.is_true(took < 1)
        a:close()
        b:close()
    end)

    it("hits a task that waits for another", function()
        local inner = fcvm.spawn(function()
            fcvm.sleep(0.02)
            return "inner"
        end)
        local outer = fcvm.spawn(function() return inner:await() end)
        outer:cancel()
        assert.is_false(pcall(outer.await, outer))
        assert.equal("inner", inner:await())
    end)

    it("hits a task that has not begun, or is about to go on", function()
        local ran = false
        fcvm.spawn(function()
            local t = fcvm.spawn(function() ran = true end)
            t:cancel()
            assert.is_false(pcall(t.await, t))
        end):await()
        assert.is_false(ran)
        local t = fcvm.spawn(function()
            fcvm.sleep(0)
            ran = true
        end)
        core.sleep(0.01)
        t:cancel()
        assert.is_false(pcall(t.await, t))
        assert.is_false(ran)
    end)

    it("hits a task that only yields by itself", function()
        local closed = false
        local t = fcvm.spawn(function()
            local _ <close> = setmetatable({}, { __close = function() closed = true end })
            while true do coroutine.yield() end
        end)
        t:cancel()
        local ok, err = pcall(t.await, t)
        assert.is_false(ok)
        assert.equal(fcvm.cancelled, err)
        assert.is_true(closed)
    end)

    it("can be survived", function()
        local t = fcvm.spawn(function()
            pcall(fcvm.sleep, 100)
            fcvm.sleep(0.001)
            return "alive"
        end)
        t:cancel()
        assert.equal("alive", t:await())
    end)

    it("does not keep it from closing what it has begun to close", function()
        local a, b = pair()
        local seen = {}
        local t = fcvm.spawn(function()
            a:close()
            seen[#seen + 1] = "one"
            b:close()
            seen[#seen + 1] = "both"
            fcvm.sleep(60)
            seen[#seen + 1] = "slept"
        end)
        t:cancel()
        local ok, err = pcall(t.await, t)
        assert.is_false(ok)
        assert.is_true(rawequal(err, fcvm.cancelled))
        assert.same({ "one", "both" }, seen)
    end)

    it("of oneself takes effect at the next wait", function()
        local t
        local reached = false
        t = fcvm.spawn(function()
            fcvm.sleep(0)
            t:cancel()
            reached = true
            fcvm.sleep(0)
            reached = "too far"
        end)
        assert.is_false(pcall(t.await, t))
        assert.is_true(reached)
    end)

    it("leaves a task alone that has ended", function()
        local t = fcvm.spawn(function() return 1 end)
        t:cancel()
        assert.equal(1, t:await())
    end)
end)

describe("a task in a <close> variable", function()
    it("is cancelled and waited for", function()
        local ended = false
        do
            local _ <close> = fcvm.spawn(function()
                local _ <close> = setmetatable({}, { __close = function()
                    fcvm.sleep(0.01)
                    ended = true
                end })
                fcvm.sleep(100)
            end)
        end
        assert.is_true(ended)
    end)

    it("does not lose its error", function()
        local ok, err = pcall(function()
            local _ <close> = fcvm.spawn(function() error "lost?" end)
        end)
        assert.is_false(ok)
        assert.matches("lost%?", err)
    end)
end)

describe("fcvm.parallel", function()
    it("gives the results in order", function()
        local results = fcvm.parallel({ 3, 1, 2 }, function(x, i)
            fcvm.sleep(x * 0.01)
            return x * 10 + i
        end)
        assert.same({ n = 3, 31, 12, 23 }, results)
        assert.same({ n = 0 }, fcvm.parallel({}, print))
    end)

    it("keeps to its limit", function()
        local now, most = 0, 0
        local list = {}
        for i = 1, 20 do list[i] = i end
        local results = fcvm.parallel(list, function(x)
            now = now + 1
            most = math.max(most, now)
            fcvm.sleep(0.001 * (x % 3))
            now = now - 1
            return x
        end, { limit = 4 })
        assert.equal(4, most)
        for i = 1, 20 do assert.equal(i, results[i]) end
    end)

    it("keeps errors that are returned", function()
        local results = fcvm.parallel({ 1, 2, 3 }, function(x)
            if x == 2 then return nil, "no" end
            return x
        end)
        assert.same({ n = 3, [1] = 1, [3] = 3, errors = { [2] = "no" } }, results)
    end)

    it("cancels the others on the first error, waits for them, and raises it", function()
        local cancelled, cleaned = 0, 0
        local took = elapsed(function()
            local ok, err = pcall(fcvm.parallel, { 1, 2, 3, 4 }, function(x)
                local _ <close> = setmetatable({}, { __close = function()
                    fcvm.sleep(0.005)
                    cleaned = cleaned + 1
                end })
                if x == 3 then
                    fcvm.sleep(0.01)
                    error("number " .. x)
                end
                local ok, err = pcall(fcvm.sleep, 100)
                if not ok and err == fcvm.cancelled then cancelled = cancelled + 1 end
                error(err, 0)
            end)
            assert.is_false(ok)
            assert.matches("task_spec.lua:%d+: number 3", err)
            assert.matches("stack traceback", err)
        end)
        assert.equal(3, cancelled)
        assert.equal(4, cleaned)
        assert.is_true(took < 2)
    end)

    it("does not begin what comes after an error", function()
        local begun = 0
        assert.has_error(function()
            fcvm.parallel({ 1, 2, 3, 4, 5, 6 }, function()
                begun = begun + 1
                fcvm.sleep(0.001)
                error "stop"
            end, { limit = 2 })
        end)
        assert.equal(2, begun)
    end)

    it("works within tasks, and within itself", function()
        local sums = fcvm.parallel({ 1, 2, 3 }, function(x)
            local inner = fcvm.parallel({ 1, 2, 3 }, function(y)
                fcvm.sleep(0.001 * y)
                return x * y
            end)
            return inner[1] + inner[2] + inner[3]
        end)
        assert.same({ n = 3, 6, 12, 18 }, sums)
        -- an error deep within ends all
        local took = elapsed(function()
            assert.has_error(function()
                fcvm.parallel({ 1, 2 }, function(x)
                    fcvm.parallel({ 1, 2 }, function(y)
                        if x == 2 and y == 2 then error "deep" end
                        fcvm.sleep(100)
                    end)
                end)
            end)
        end)
        assert.is_true(took < 2)
    end)

    it("checks what it is given", function()
        local ok, err = pcall(function() local _ = fcvm.parallel({}, print, { limt = 1 }) end)
        assert.is_false(ok)
        assert.matches("task_spec.lua:%d+: fcvm.parallel: unknown option \"limt\"; did you mean \"limit\"", err)
        assert.has_error(function() fcvm.parallel(nil, print) end)
        assert.has_error(function() fcvm.parallel({}, nil) end)
        assert.has_error(function() fcvm.parallel({}, print, { limit = 0 }) end)
    end)
end)

describe("fcvm.each", function()
    it("gives results as they come", function()
        local seen = {}
        for item, result, err in fcvm.each({ 3, 1, 2 }, function(x)
            fcvm.sleep(x * 0.01)
            if x == 2 then return nil, "two" end
            return x * 10
        end) do
            seen[#seen + 1] = { item, result or err }
        end
        assert.same({ { 1, 10 }, { 2, "two" }, { 3, 30 } }, seen)
    end)

    it("is fcvm.parallel with ordered = false", function()
        local seen = {}
        for item in fcvm.parallel({ 2, 1 }, function(x) fcvm.sleep(x * 0.01) end, { ordered = false }) do
            seen[#seen + 1] = item
        end
        assert.same({ 1, 2 }, seen)
    end)

    it("cancels what still runs when the loop is left", function()
        local cleaned = 0
        local took = elapsed(function()
            for item in fcvm.each({ 1, 2, 3 }, function(x) -- luacheck: ignore 512
                local _ <close> = setmetatable({}, { __close = function() cleaned = cleaned + 1 end })
                if x > 1 then fcvm.sleep(100) end
            end) do
                assert.equal(1, item)
                break
            end
        end)
        assert.equal(3, cleaned)
        assert.is_true(took < 2)
    end)

    it("raises the first error", function()
        assert.has_error(function()
            for _ in fcvm.each({ 1, 2 }, function(x)
                if x == 2 then error "two" end
                fcvm.sleep(100)
            end) do end -- luacheck: ignore 542
        end)
    end)
end)

describe("closing a handle", function()
    it("fails the calls that run on it, and does not raise in their tasks", function()
        local a, b = pair()
        local t = fcvm.spawn(function() return a:read() end)
        core.sleep(0.01)
        a:close()
        local data, err = t:await()
        assert.is_nil(data)
        assert.equal("ECANCELED", err.code)
        assert.matches("the stream was closed while the call ran", err.msg)
        b:close()
    end)

    it("works from within a task as well", function()
        local a, b = pair()
        local reader = fcvm.spawn(function() return a:read() end)
        fcvm.spawn(function() a:close() end):await()
        local data, err = reader:await()
        assert.is_nil(data)
        assert.equal("ECANCELED", err.code)
        b:close()
    end)

    it("works when every worker is busy with calls on it", function()
        local a, b = pair()
        local readers = {}
        for i = 1, 300 do
            readers[i] = fcvm.spawn(function() return a:read() end)
        end
        fcvm.spawn(function() a:close() end):await()
        for i = 1, 300 do
            local _, err = readers[i]:await()
            assert.equal("ECANCELED", err.code)
        end
        b:close()
    end)

    it("twice is harmless, using it afterwards raises", function()
        local a, b = pair()
        a:close()
        a:close()
        assert.equal("stream (closed)", tostring(a))
        local ok, err = pcall(function() local _ = a:read() end)
        assert.is_false(ok)
        assert.matches("task_spec.lua:%d+: stream:read%(%): the stream is closed", err)
        assert.equal("", b:read "a")
        b:close()
    end)

    it("is done by the garbage collector in the end", function()
        local a, b = pair()
        a:write "x"
        assert.equal("x", b:read())
        a = nil -- luacheck: ignore 311
        collectgarbage()
        collectgarbage()
        assert.is_nil((b:read()))
        b:close()
    end)
end)

describe("a stream", function()
    it("reads lines, pieces and all", function()
        local a, b = pair()
        local both <close> = closing(a, b) -- luacheck: ignore 211
        assert(a:write "one\ntwo\r\nthree\nrest")
        assert(a:shutdown())
        assert.equal("one", b:read "l")
        assert.equal("two\r\n", b:read "L")
        assert.equal("th", b:read(2))
        local lines = {}
        for line in b:lines() do lines[#lines + 1] = line end
        assert.same({ "ree", "rest" }, lines)
        assert.is_nil((b:read()))
    end)

    it("keeps to its timeout", function()
        local a, b = pair()
        local both <close> = closing(a, b) -- luacheck: ignore 211
        a:write "half a line"
        local took = elapsed(function()
            local data, err = b:read("l", { timeout = 0.02 })
            assert.is_nil(data)
            assert.equal("ETIMEDOUT", err.code)
        end)
        assert.is_true(took >= 0.02 and took < 1)
        a:write "\n"
        assert.equal("half a line", b:read "l")
    end)

    it("keeps what it has read ahead of a line, whatever is read next", function()
        local a, b = pair()
        local both <close> = closing(a, b) -- luacheck: ignore 211
        local soon = { timeout = 0.01 }
        for _, text in ipairs { "one ", "two ", "three" } do
            a:write(text)
            assert.is_nil((b:read("l", soon)))
        end
        assert.equal("one t", b:read(5))
        assert.is_nil((b:read("l", soon)))
        a:write " four\nfive "
        assert.equal("wo three four\n", b:read "L")
        assert.is_nil((b:read("a", soon)))
        a:write "six"
        a:shutdown()
        assert.equal("five six", b:read "a")
    end)

    it("carries more than fits", function()
        local a, b = pair()
        local both <close> = closing(a, b) -- luacheck: ignore 211
        local data = ("0123456789abcdef"):rep(1 << 16)
        local writer = fcvm.spawn(function()
            assert(a:write(data))
            a:shutdown()
        end)
        assert.is_true(data == fcvm.spawn(function() return b:read "a" end):await())
        writer:await()
    end)
end)

describe("the loop", function()
    it("has one fd, readable when there is something to do", function()
        local loop = fcvm.loop()
        assert.equal(loop, fcvm.loop())
        assert.is_true(loop:fd() >= 0)
        local done = false
        fcvm.spawn(function()
            fcvm.sleep(0.01)
            done = true
        end)
        assert.equal(1, loop:step(0))
        assert.is_false(done)
        -- core.wait polls the very fd
        assert.is_true(core.wait(1))
        assert.equal(0, loop:step(0))
        assert.is_true(done)
        assert.equal(0, loop:step())
        assert.is_false(core.wait(0))
    end)

    it("is not stepped from within", function()
        fcvm.spawn(function() assert.has_error(function() fcvm.loop():step() end) end):await()
    end)

    it("is run to its end by fcvm.run, which raises what nobody has seen", function()
        local n = 0
        for _ = 1, 3 do
            fcvm.spawn(function()
                fcvm.sleep(0.005)
                n = n + 1
            end)
        end
        fcvm.run()
        assert.equal(3, n)
        fcvm.spawn(function()
            fcvm.sleep(0)
            error "unseen"
        end)
        local ok, err = pcall(fcvm.run)
        assert.is_false(ok)
        assert.matches("unseen", err)
        fcvm.run()
    end)
end)

describe("fcvm.sleep", function()
    it("blocks outside of tasks", function()
        local took = elapsed(fcvm.sleep, 0.02)
        assert.is_true(took >= 0.02 and took < 1)
    end)

    it("takes seconds", function()
        for _, bad in ipairs { -1, "x", 0 / 0, {} } do
            assert.has_error(function() fcvm.sleep(bad) end)
        end
    end)
end)
