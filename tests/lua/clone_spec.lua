-- SPDX-License-Identifier: MIT
local core = require "fcvm.core"
local fcvm = require "fcvm"

local function check(value, err, ...)
    if not value then error(tostring(err), 2) end
    return value, err, ...
end

-- Run folders of this process's VMs.
local function running()
    local n = 0
    for _ in ipairs(check(fcvm.list())) do n = n + 1 end
    return n
end

describe("a snapshot", function()
    local vm, snap

    setup(function()
        vm = check(fcvm.vm { name = "clone-spec", memory = "128M" }:start())
        check(vm:write_file("/tmp/from-before", "kept"))
        snap = check(vm:snapshot { stop = true })
    end)
    teardown(function()
        snap:close()
        vm:close()
    end)

    it("has fields, and shows itself", function()
        assert.equal("", snap.name)
        assert.equal(128 << 20, snap.memory)
        assert.equal(1, snap.vcpus)
        assert.is_true(snap.pause_ms > 0)
        assert.equal(0, snap.downtime_ms)
        assert.matches("^snapshot %w+, 128 MiB, 1 vCPU$", tostring(snap))
        assert.equal("ended", vm.state)
    end)

    it("is cloned", function()
        local clone <close> = check(snap:clone())
        assert.equal("kept", check(clone:read_file "/tmp/from-before"))
        assert.is_true(clone.warm)
        assert.equal("running", clone.state)
        local other <close> = check(snap:clone { name = "clone-by-name" })
        assert.equal("clone-by-name", other.name)
        assert.equal("clone-by-name\n", check(other:exec { "hostname" }).stdout)
    end)

    it("is cloned many times, each with an identity of its own", function()
        local before = running()
        do
            local clones <close> = check(snap:clone(4))
            assert.equal(4, #clones)
            assert.equal("4 clones", tostring(clones))
            local seen = {}
            local results = fcvm.parallel(clones, function(clone)
                return check(clone:exec "hostname; cat /etc/machine-id; head -c 8 /dev/urandom | od -A n -t x1").stdout
            end)
            for i, text in ipairs(results) do
                assert.equal(clones[i].name, text:match "^[^\n]+")
                for line in text:gmatch "[^\n]+" do
                    assert.is_nil(seen[line])
                    seen[line] = true
                end
            end
            assert.equal(before + 4, running())
        end
        assert.equal(before, running())
    end)

    it("gives names", function()
        local clones <close> = check(snap:clone(2, { names = { "first-clone", "second-clone" }, limit = 1 }))
        assert.equal("first-clone", clones[1].name)
        assert.equal("second-clone", clones[2].name)
        assert.has_error(function() snap:clone(2, { names = { "one" } }) end)
    end)

    it("leaves nothing when one of many fails", function()
        local before = running()
        local clones, err = snap:clone(3, { names = { "fine-1", "not a name!", "fine-2" } })
        assert.is_nil(clones)
        assert.is_string(err.code)
        assert.matches("not a name!", tostring(err))
        assert.equal(before, running())
    end)

    it("leaves those out that failed, if that is wanted", function()
        local clones <close> = check(snap:clone(3, {
            names = { "fine-1", "not a name!", "fine-2" },
            partial = true,
        }))
        assert.equal(2, #clones)
        assert.equal("fine-1", clones[1].name)
        assert.equal("fine-2", clones[2].name)
        assert.matches("not a name!", tostring(clones.errors[2]))
    end)

    it("leaves nothing when the task that clones is cancelled", function()
        local before = running()
        local t = fcvm.spawn(function() return snap:clone(8) end)
        core.sleep(0.05)
        t:cancel()
        assert.is_false(pcall(t.await, t))
        assert.equal(before, running())
    end)

    it("has VMMs wait", function()
        check(snap:prepare(2))
        -- none, where clones are copies of one VMM
        assert.is_true(snap.waiting == 2 or snap.waiting == 0)
        local clone <close> = check(snap:clone())
        check(clone:ping())
    end)

    it("has a pool of fresh clones", function()
        local before = running()
        do
            local pool <close> = snap:pool { size = 2 }
            local most, now = 0, 0
            local seen = {}
            for test, out, err in pool:map({ "a", "b", "c", "d" }, function(clone, test, i)
                now = now + 1
                most = math.max(most, now)
                local dirty = check(clone:exec "ls /tmp/dirty; touch /tmp/dirty")
                now = now - 1
                if i == 3 then return nil, "third" end
                return test .. dirty.stdout
            end) do
                seen[test] = out or err
            end
            assert.same({ a = "a", b = "b", c = "third", d = "d" }, seen)
            assert.equal(2, most)
            local clone = check(pool:get())
            check(clone:ping())
            assert.matches("pool of 2, 1 in use", tostring(pool))
            pool:give(clone)
            assert.has_error(function() pool:give(clone) end)
            check(pool:get())
        end
        assert.equal(before, running())
    end)

    it("has a pool that tells who waits for a clone when it is closed", function()
        local before = running()
        local pool = snap:pool { size = 2 }
        check(pool:get())
        local tasks = {}
        -- one of them is cloning, the others wait
        for i = 1, 3 do tasks[i] = fcvm.spawn(function() return pool:get() end) end
        pool:close()
        for _, t in ipairs(tasks) do
            local clone, err = t:await()
            assert.is_nil(clone)
            assert.equal("ECANCELED", err.code)
        end
        assert.equal(before, running())
        assert.has_error(function() pool:get() end)
    end)
end)

describe("a snapshot with a name", function()
    it("is kept, listed, opened, inspected and removed", function()
        local name = "spec-" .. os.time()
        do
            local vm <close> = check(fcvm.vm { memory = "128M" }:start())
            local snap <close> = check(vm:snapshot { name = name })
            assert.equal(name, snap.name)
            assert.is_true(snap.downtime_ms > 0)
            -- the VM goes on
            check(vm:ping())
            assert.equal("running", vm.state)
        end
        local found = false
        for _, entry in ipairs(check(fcvm.snapshots())) do found = found or entry.name == name end
        assert.is_true(found)
        assert.equal("table", type(check(fcvm.inspect_snapshot(name))))
        do
            local snap <close> = check(fcvm.snapshot(name))
            local clone <close> = check(snap:clone())
            check(clone:ping())
        end
        check(fcvm.remove_snapshot(name))
        local _, err = fcvm.snapshot(name)
        assert.equal("ENOENT", err.code)
    end)
end)
