-- SPDX-License-Identifier: MIT
-- What every driver must do, by the public interface alone (support.lua says on what it runs). A boot and a snapshot
-- are expensive where KVM is emulated: one VM is booted, and one snapshot of it taken, for most of the tests.
local fcvm = require "fcvm"
local T = require "tests.drivers.support"

local check, refused, out = T.check, T.refused, T.out
local it = T.test(it)

-- Bytes in the guest's memory that clones must have.
local BLOB <const> = 5 << 20

-- Reads a file of a volume by lines: one at once, the next when it is told to.
local HOLDER <const> = [[
exec </vol/held
read -r line; echo "$line" >/tmp/held
until [ -e /tmp/go ]; do sleep 0.1; done
read -r line; echo "$line" >>/tmp/held]]

-- Counts up in a file, ten times a second, as long as its processors run.
local COUNTER <const> = [[
n=0
while :; do n=$((n+1)); echo $n >/tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.1; done]]

local function count(vm) return tonumber(out(vm, "cat /tmp/count")) end

local function goes_on(vm)
    local from = count(vm)
    T.await(vm.name .. ": a program in it goes on", 10, function() return count(vm) > from end)
end

describe(T.label, function()
    -- the VM of most tests; its snapshot; their hash; the program that counts; when the snapshot was taken
    local base, snap, blob_hash, counter, taken
    -- the folder of this host that is its /vol
    local folder
    -- the folders that were there before
    local others

    local function gone(pid, id)
        T.await(("the VMM %d is gone"):format(pid), 5, function() return not T.lives(pid) end)
        assert.is_nil(T.folders()[id])
    end

    setup(function()
        T.start_node()
        others = T.folders()
        folder = T.new_folder()
        base = T.boot { name = "conform", cold = true }
        assert(T.folders()[base.id])
    end)
    -- so that a log tells where the time goes
    local began
    before_each(function() began = fcvm.now() end)
    after_each(function() print(("# %.1f s, %d clones so far"):format(fcvm.now() - began, T.made)) end)

    teardown(function()
        if snap then snap:close() end
        if base then base:close() end
        T.stop_node()
        T.remove_folder(folder)
    end)

    describe("boots a VM that", function()
        it("is what was asked for", function()
            assert.equal("running", base.state)
            assert.is_false(base.warm)
            if T.driver then assert.equal(T.driver, base.driver) end
            if T.accel then assert.equal(T.accel, base.accel) end
            assert.is_true(T.lives(base.pid))
            assert.equal("1", out(base, "nproc"))
            local kib = tonumber(out(base, "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"))
            assert.is_true(kib > 64 << 10 and kib <= 128 << 10, kib .. " KiB")
            assert.equal("conform", out(base, "hostname"))
            T.clock_is_right(base)
        end)

        it("has its kernel's lines on the console", function()
            local release = out(base, "uname -r")
            assert.is_truthy(check(fcvm.log(base.id)):find("Linux version " .. release, 1, true))
            out(base, "echo $((40 + 2)) programs >/dev/console")
            T.await("a program's line is on the console", 5, function()
                return base:console():find("42 programs", 1, true)
            end)
        end)

        it("runs programs", function()
            local got = check(base:exec { "sh", "-c", "echo out; echo err >&2; exit 3", timeout = T.s(20) })
            assert.same({ status = 3, stdout = "out\n", stderr = "err\n" }, got)
            got = check(base:exec { "sh", "-c", "kill -9 $$", timeout = T.s(20) })
            assert.same({ 137, 9 }, { got.status, got.signal })
            local megabyte = T.random(1 << 20)
            assert.is_true(check(base:exec { "cat", input = megabyte, timeout = T.s(20) }).stdout == megabyte)
            assert.equal("ENOENT", refused(base:exec { "no-such-program", timeout = T.s(10) }).code)
            local from = fcvm.now()
            assert.equal("ETIMEDOUT", refused(base:exec { "sleep", "1000", timeout = 0.3 }).code)
            assert.is_true(fcvm.now() - from < T.s(5))
        end)

        it("runs many programs at once", function()
            local list = {}
            for i = 1, 8 do list[i] = i end
            local got = fcvm.parallel(list, function(i) return out(base, "echo " .. i * i) end)
            for i = 1, 8 do assert.equal(tostring(i * i), got[i]) end
        end)

        it("has programs that are talked to", function()
            local talk <close> = check(base:spawn { "sh", "-c", [[
                while read -r a; do echo "got $a"; echo "heard $a" >&2; done; exec sleep 1000]] })
            for i = 1, 3 do
                check(talk:write("line " .. i .. "\n", { timeout = T.s(10) }))
                assert.equal("got line " .. i, (talk:read("l", { timeout = T.s(10) })))
                assert.equal("heard line " .. i, (talk:read("l", { timeout = T.s(10), from = "stderr" })))
            end
            talk:close_stdin()
            check(talk:signal "TERM")
            assert.same({ status = 143, signal = 15 }, check(talk:wait(T.s(10))))
        end)

        it("has programs at a terminal", function()
            local shell <close> = check(base:spawn { "sh", "-c", "tty; stty size; read x; stty size",
                tty = { rows = 33, cols = 101 } })
            local function line() return (check(shell:read("l", { timeout = T.s(10) })):gsub("\r$", "")) end
            assert.matches("^/dev/pts/%d+$", line())
            assert.equal("33 101", line())
            check(shell:resize(44, 55))
            check(shell:write("x\n", { timeout = T.s(10) }))
            assert.equal("x", line())
            assert.equal("44 55", line())
            assert.equal(0, check(shell:wait(T.s(10))).status)
        end)

        it("takes and gives files", function()
            local data = T.random(BLOB)
            check(base:write_file("/tmp/blob", data, { mode = tonumber("640", 8), timeout = T.s(15) }))
            assert.equal("640", out(base, "stat -c %a /tmp/blob"))
            blob_hash = out(base, "sha256sum </tmp/blob"):match "%x+"
            local here = os.tmpname()
            local guard <close> = setmetatable({}, { __close = function() os.remove(here) end })
            check(base:copy_out("/tmp/blob", here, { timeout = T.s(15) }))
            local file <close> = assert(io.open(here, "rb"))
            assert.is_true(file:read "a" == data)
            local sum <close> = assert(io.popen(("sha256sum <'%s'"):format(here)))
            assert.equal(blob_hash, sum:read "a":match "%x+")
            check(base:copy_in(here, "/tmp/again", { timeout = T.s(15) }))
            assert.is_true(check(base:read_file("/tmp/again", { timeout = T.s(15) })) == data)
            out(base, "rm /tmp/again")
            assert.equal("ENOENT", refused(base:read_file("/tmp/again", { timeout = T.s(15) })).code)
        end)

        it("has sockets", function()
            for _, address in ipairs { "unix:/tmp/sock", "tcp:127.0.0.1:7070" } do
                local listener <close> = check(base:listen(address))
                local accepted = fcvm.spawn(function() return check(listener:accept(T.s(10))) end)
                local a <close> = check(base:connect(address, { timeout = T.s(10) }))
                local b <close> = accepted:await()
                check(a:write("there\n", { timeout = T.s(10) }))
                assert.equal("there", (b:read("l", { timeout = T.s(10) })))
                check(b:write("back\n", { timeout = T.s(10) }))
                assert.equal("back", (a:read("l", { timeout = T.s(10) })))
            end
            -- a server that is a program of the guest
            local server <close> = check(base:spawn { "nc", "-l", "-p", "7071", "-e", "cat" })
            T.await("the guest's server listens", 10, function()
                return out(base, "netstat -ltn"):find(":7071 ", 1, true)
            end)
            local stream <close> = check(base:connect("tcp:127.0.0.1:7071", { timeout = T.s(10) }))
            local data = T.random(100000)
            check(stream:write(data, { timeout = T.s(20) }))
            check(stream:shutdown())
            assert.is_true(stream:read("a", { timeout = T.s(20) }) == data)
            assert.equal("ECONNREFUSED", refused(base:connect("tcp:127.0.0.1:7072", { timeout = T.s(10) })).code)
        end)
    end)

    describe("mounts a folder of this host", function()
        it("in a VM that runs", function()
            T.write(folder .. "/from-the-host", "host\n")
            T.write(folder .. "/held", "first\nsecond\n")
            check(base:mount { host = folder, guest = "/vol", readers = 2, wait = T.s(10) })
            assert.equal("host", out(base, "cat /vol/from-the-host"))
            out(base, "echo guest >/vol/from-the-guest; cp /tmp/blob /vol/blob; sync /vol/blob")
            assert.equal("guest\n", T.read(folder .. "/from-the-guest"))
            assert.equal(BLOB, #T.read(folder .. "/blob"))
            assert.equal(blob_hash, out(base, "sha256sum </vol/blob"):match "%x+")
            check(base:spawn { "sh", "-c", HOLDER, null_stdin = true, detach = true }):close()
            T.await("a program has read a line", 10, function() return out(base, "cat /tmp/held || :") == "first" end)
            local volume = check(base:volumes())[1]
            assert.same({ "/vol", "running" }, { volume.guest, volume.state })
            assert.is_true(volume.bytes_written >= BLOB)
        end)
    end)

    describe("stops a VM for a while", function()
        it("and lets it go on", function()
            counter = check(base:spawn { "sh", "-c", COUNTER, null_stdin = true, detach = true })
            T.await("the counter runs", 10, function() return out(base, "cat /tmp/count || :") ~= "" end)
            check(base:pause())
            assert.equal("paused", base.state)
            assert.matches("paused", tostring(refused(base:exec { "true", timeout = T.s(10) })))
            assert.matches("paused", tostring(refused(base:pause())))
            fcvm.sleep(3)
            check(base:resume())
            assert.equal("running", base.state)
            -- it has not counted meanwhile, which would be 30
            local before = count(base)
            T.clock_is_right(base)
            assert.matches("running", tostring(refused(base:resume())))
            goes_on(base)
            check(base:pause())
            check(base:resume())
            assert.is_true(before < count(base))
        end)
    end)

    describe("takes a snapshot of a VM", function()
        it("that goes on, with its programs", function()
            -- Streams to the guest live on, but for drivers whose snapshot resets them (Firecracker's vsock): their
            -- programs' ends of file are the sign, and who waits is told within seconds.
            local cuts <const> = base.driver == "firecracker"
            local cat <close> = check(base:spawn { "cat" })
            check(cat:write("before\n", { timeout = T.s(10) }))
            assert.equal("before", (cat:read("l", { timeout = T.s(10) })))
            local waiting = fcvm.spawn(function()
                return { base:exec { "sh", "-c", "sleep 2; echo slept", timeout = T.s(15) } }
            end)
            fcvm.sleep(0.2)

            local from = fcvm.now()
            snap = check(base:snapshot { timeout = T.SNAPSHOT })
            taken = fcvm.now()
            assert.equal("running", base.state)
            assert.equal("", snap.name)
            assert.equal(128 << 20, snap.memory)
            assert.is_true(snap.pause_ms > 0 and snap.downtime_ms > 0)
            assert.is_true(snap.downtime_ms <= (taken - from) * 1000)

            check(base:ping(T.s(5)))
            assert.is_truthy(out(base, "cat /proc/" .. counter.pid .. "/cmdline"):find("count.new", 1, true))
            goes_on(base)
            assert.equal("host", out(base, "cat /vol/from-the-host"))
            T.clock_is_right(base)
            local slept = waiting:await()
            if cuts then
                assert.is_nil((cat:read("l", { timeout = T.s(5) })))
                if not slept[1] then assert.equal("ECONNRESET", slept[2].code) end
            else
                check(cat:write("after\n", { timeout = T.s(10) }))
                assert.equal("after", (cat:read("l", { timeout = T.s(10) })))
                assert.equal("slept\n", check(table.unpack(slept)).stdout)
            end
            assert.is_true(fcvm.now() - taken < T.s(10))
        end)

        it("a second time, and neither changes the other", function()
            out(base, "echo later >/tmp/later")
            local second <close> = check(base:snapshot { timeout = T.SNAPSHOT })
            assert.not_equal(snap.id, second.id)
            out(base, "echo changed >/tmp/later")
            local a <close> = T.clone(snap)
            local b <close> = T.clone(second)
            assert.equal("ENOENT", refused(a:read_file("/tmp/later", { timeout = T.s(15) })).code)
            assert.equal("later", out(b, "cat /tmp/later"))
            assert.equal("changed", out(base, "cat /tmp/later"))
            for _, vm in ipairs { a, b, base } do
                assert.equal(blob_hash, out(vm, "sha256sum </tmp/blob"):match "%x+")
            end
        end)

        it("that is paused, and stays so", function()
            check(base:pause())
            do
                local still <close> = check(base:snapshot { timeout = T.SNAPSHOT })
                assert.equal("paused", base.state)
                local clone <close> = T.clone(still)
                assert.equal("changed", out(clone, "cat /tmp/later"))
                goes_on(clone)
            end
            check(base:resume())
            goes_on(base)
        end)
    end)

    describe("makes clones", function()
        it("one by one", function()
            -- so that a clock that is the snapshot's shows
            fcvm.sleep(math.max(0, taken + 5 - fcvm.now()))
            local clone <close> = T.clone(snap, { name = "conform-one" })
            assert.equal("conform-one", clone.name)
            assert.is_true(clone.warm)
            assert.is_true(clone.start_ms > 0)
            assert.same({ base.driver, base.accel, base.node }, { clone.driver, clone.accel, clone.node })
            assert.is_true(T.lives(clone.pid) and clone.pid ~= base.pid)
            T.clock_is_right(clone)
            assert.equal(blob_hash, out(clone, "sha256sum </tmp/blob"):match "%x+")
            -- the program that ran in the source runs in the clone
            assert.is_truthy(out(clone, "cat /proc/" .. counter.pid .. "/cmdline"):find("count.new", 1, true))
            goes_on(clone)
            out(clone, "dmesg >/dev/console; echo $((20 + 3)) clones >/dev/console")
            T.await("the clone has a console of its own", 5, function()
                return clone:console():find("23 clones", 1, true)
            end)
            assert.is_nil(base:console():find("23 clones", 1, true))
        end)

        it("many at a time, each with an identity of its own", function()
            local clones <close> = T.clones(snap, T.many)
            assert.equal(T.many, #clones)
            local seen = {}
            local told = fcvm.parallel(clones, function(vm)
                T.clock_is_right(vm)
                return out(vm, "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | xxd -p; " ..
                    "head -c 16 /dev/random | xxd -p; sha256sum </tmp/blob")
            end)
            for i, text in ipairs(told) do
                local name, machine, urandom, random, hash =
                    text:match "^(%S+)\n(%x+)\n(%x+)\n(%x+)\n(%x+) *%-$"
                assert.equal(clones[i].name, name)
                assert.equal(32, #machine)
                assert.equal(blob_hash, hash)
                assert.is_true(clones[i].generation > 0)
                for _, word in ipairs { name, machine, urandom, random, clones[i].id, clones[i].dir, clones[i].pid } do
                    assert.is_nil(seen[word], word)
                    seen[word] = true
                end
            end
            local ours = out(base, "cat /etc/machine-id")
            assert.equal(32, #ours)
            assert.is_nil(seen[ours])
        end)

        it("that go ways of their own", function()
            local clones <close> = T.clones(snap, 2)
            -- megabytes, so that what the guest writes at once goes to pages that all of them have
            for i, vm in ipairs(clones) do
                out(vm, ("yes 'clone %d' | head -c 5242880 >/tmp/blob; sync; hostname >/tmp/own"):format(i))
            end
            for i, vm in ipairs(clones) do
                assert.equal(("clone %d"):format(i), out(vm, "uniq /tmp/blob"))
                assert.equal(vm.name, out(vm, "cat /tmp/own"))
            end
            assert.equal(blob_hash, out(base, "sha256sum </tmp/blob"):match "%x+")
            assert.equal("ENOENT", refused(base:read_file("/tmp/own", { timeout = T.s(15) })).code)
            local another <close> = T.clone(snap)
            assert.equal(blob_hash, out(another, "sha256sum </tmp/blob"):match "%x+")
            assert.equal("ENOENT", refused(another:read_file("/tmp/own", { timeout = T.s(15) })).code)
        end)

        it("with the volumes of their source, and the files that were open in them", function()
            local clones <close> = T.clones(snap, 2)
            fcvm.parallel(clones, function(vm)
                out(vm, ("touch /tmp/go; cat /vol/from-the-host; echo %s >/vol/%s"):format(vm.id, vm.id))
                T.await("the program has read the next line", 10, function()
                    return out(vm, "cat /tmp/held") == "first\nsecond"
                end)
                assert.equal(vm.id .. "\n", T.read(folder .. "/" .. vm.id))
                assert.equal("running", check(vm:volumes())[1].state)
            end)
            assert.equal("first", out(base, "cat /tmp/held"))
        end)

        it("of clones, of a VM that ends with its snapshot", function()
            local clone <close> = T.clone(snap)
            local pid, id, generation, machine = clone.pid, clone.id, clone.generation, out(clone, "cat /etc/machine-id")
            out(clone, "echo child >/tmp/child")
            local second <close> = check(clone:snapshot { stop = true, timeout = T.SNAPSHOT })
            assert.equal("ended", clone.state)
            assert.equal(0, second.downtime_ms)
            gone(pid, id)
            -- needs nothing of those that it comes from
            clone:close()
            local grandchild <close> = T.clone(second)
            assert.equal("child", out(grandchild, "cat /tmp/child"))
            assert.equal(blob_hash, out(grandchild, "sha256sum </tmp/blob"):match "%x+")
            assert.not_equal(machine, out(grandchild, "cat /etc/machine-id"))
            assert.is_true(grandchild.generation > generation)
            T.clock_is_right(grandchild)
            goes_on(grandchild)
        end)
    end)

    describe("keeps a snapshot by name", function()
        local name <const> = ("conform-%d-%d"):format(os.time(), math.random(1 << 20))

        it(T.on_lab and "on this host only, and says so" or "and opens it", function()
            if T.on_lab then
                local err = refused(base:snapshot { name = name, timeout = T.SNAPSHOT })
                assert.equal("EOPNOTSUPP", err.code)
                assert.matches("on this host only", err.msg)
                assert.equal("running", base.state)
                check(base:ping(T.s(5)))
                return
            end
            local guard <close> = setmetatable({}, { __close = function() fcvm.remove_snapshot(name) end })
            check(base:snapshot { name = name, timeout = T.SNAPSHOT }):close()
            assert.equal("EEXIST", refused(base:snapshot { name = name, timeout = T.SNAPSHOT }).code)
            local manifest = check(fcvm.inspect_snapshot(name))
            assert.equal(base.driver, manifest.driver)
            assert.equal(base.accel, manifest.accel)
            do
                local kept <close> = check(fcvm.snapshot(name))
                local clone <close> = T.clone(kept)
                assert.equal(blob_hash, out(clone, "sha256sum </tmp/blob"):match "%x+")
                assert.equal("EBUSY", refused(fcvm.remove_snapshot(name)).code)
                kept:close()
                check(fcvm.remove_snapshot(name))
                goes_on(clone)
            end
            assert.equal("ENOENT", refused(fcvm.snapshot(name)).code)
        end)
    end)

    it("unmounts a folder", function()
        local err = refused(base:unmount("/vol", { timeout = T.s(10) }))
        assert.equal("EBUSY", err.code)
        out(base, "touch /tmp/go")
        T.await("the program has ended", 10, function() return out(base, "cat /tmp/held") == "first\nsecond" end)
        T.await("the folder is unmounted", 10, function() return base:unmount("/vol", { timeout = T.s(10) }) end)
        assert.same({}, check(base:volumes()))
        assert.equal("", out(base, "ls /vol"))
    end)

    describe("ends a VM", function()
        it("that is killed", function()
            local clone <close> = T.clone(snap)
            local pid, id = clone.pid, clone.id
            local waiting = fcvm.spawn(function() return check(clone:wait(T.s(10))) end)
            check(clone:kill())
            assert.same({ status = 137, signal = 9 }, waiting:await())
            T.await("its VMM is gone", 5, function() return not T.lives(pid) end)
            assert.equal("ended", clone.state)
            clone:close()
            gone(pid, id)
        end)

        it("whose VMM dies under a program, and says how it died", function()
            local clone <close> = T.clone(snap)
            local call = fcvm.spawn(function() return { clone:exec { "sleep", "1000", timeout = T.s(15) } } end)
            local talk <close> = check(clone:spawn { "cat" })
            fcvm.sleep(0.5)
            local from = fcvm.now()
            check(T.there(("kill -9 %d && echo killed"):format(clone.pid)))
            local err = refused(table.unpack(call:await()))
            assert.is_true(fcvm.now() - from < T.s(3))
            assert.matches(clone.name, err.msg, 1, true)
            local how = ("VMM (%s, process %d) was ended by signal 9"):format(base.driver, clone.pid)
            assert.is_truthy(err.msg:find(how, 1, true), err.msg)
            assert.is_nil((talk:read("l", { timeout = T.s(5) })))
            assert.matches("signal 9", tostring(refused(clone:exec { "true", timeout = T.s(10) })))
            assert.equal(9, check(clone:wait(T.s(5))).signal)
        end)

        it("whose guest powers off", function()
            local clone <close> = T.clone(snap)
            local pid = clone.pid
            check(clone:spawn { "kill", "-TERM", "1", null_stdin = true, detach = true }):close()
            assert.same({ status = 0 }, check(clone:wait(T.s(15))))
            assert.is_false(T.lives(pid))
            assert.matches("the guest has powered off", tostring(refused(clone:exec { "true", timeout = T.s(10) })))
        end)

        it("that is stopped", function()
            local clone <close> = T.clone(snap)
            local pid, id = clone.pid, clone.id
            local waiting = fcvm.spawn(function() return check(clone:wait(T.s(15))) end)
            check(clone:stop(T.s(10)))
            assert.same({ status = 0 }, waiting:await())
            gone(pid, id)
        end)

        it("that is paused", function()
            local clone <close> = T.clone(snap)
            local pid, id = clone.pid, clone.id
            check(clone:pause())
            clone:close()
            gone(pid, id)
        end)
    end)

    describe("refuses", function()
        it("what its state does not allow", function()
            local vm <close> = T.vm()
            assert.matches("new", tostring(refused(vm:snapshot())))
            assert.matches("new", tostring(refused(vm:exec { "true", timeout = T.s(10) })))
            assert.matches("new", tostring(refused(vm:pause())))
            assert.matches("running", tostring(refused(base:start())))
        end)

        it("too little memory, and more than there is", function()
            local ok, err = pcall(T.vm, { memory = "16M" })
            assert.is_false(ok)
            assert.matches("from 96 MiB", tostring(err))
        end)

        it("a driver and an accelerator that are not known", function()
            local vm <close> = T.vm { driver = "no-such-driver" }
            assert.matches("no%-such%-driver.*qemu", tostring(refused(vm:start())))
            local other <close> = T.vm { accel = "no-such-accel" }
            assert.matches("no%-such%-accel", tostring(refused(other:start())))
        end)

        it("a name that another has", function()
            local err = refused(snap:clone { name = base.name })
            assert.equal("EEXIST", err.code)
            assert.matches(base.name, err.msg, 1, true)
            assert.equal("conform", out(base, "hostname"))
        end)
    end)

    describe("has what not every driver has:", function()
        local function mem_available(vm)
            return tonumber(out(vm, "sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) / 1024
        end

        it("a balloon", function()
            if base.driver ~= "firecracker" then
                local vm <close> = T.vm { balloon = true }
                assert.matches("driver " .. base.driver .. " has no balloon", tostring(refused(vm:start())))
                return
            end
            assert.matches("balloon = true", tostring(refused(base:balloon "32M")))
            local vm <close> = T.boot { balloon = true }
            local before = mem_available(vm)
            check(vm:balloon("32M", T.s(10)))
            T.await("the guest has 32 MiB less", 20, function() return mem_available(vm) < before - 24 end)
            check(vm:balloon(0, T.s(10)))
            T.await("it has them back", 20, function() return mem_available(vm) > before - 8 end)
        end)

        it("metrics", function()
            if base.driver ~= "firecracker" then
                local err = refused(base:metrics())
                assert.equal("EOPNOTSUPP", err.code)
                assert.matches("driver " .. base.driver .. " has no metrics", err.msg)
                return
            end
            local first = check(base:metrics(T.s(10)))
            assert.is_true(first.utc_timestamp_ms > 0)
            local second = check(base:metrics(T.s(10)))
            assert.is_true(second.utc_timestamp_ms > first.utc_timestamp_ms)
        end)
    end)

    it("restores VMs that live", function()
        -- of what the emulated lab itself does to VMs (support.lua), one in twenty at most
        assert.is_true(#T.stillborn <= math.max(1, T.made // 20), table.concat(T.stillborn, "\n"))
        assert.is_true(T.emulated or #T.stillborn == 0)
        print(("# %d clones, %d of them stillborn; %d booted anew"):format(T.made, #T.stillborn, T.booted_anew))
        if #T.stillborn + T.booted_anew > 0 then
            print(("# note: %s: of %d clones %d were made anew, of 1 or 2 boots %d"):format(T.label, T.made, #T.stillborn,
                T.booted_anew))
        end
    end)

    it("leaves nothing behind", function()
        counter:close()
        snap:close()
        base:close()
        snap, base = nil, nil
        assert.same({}, T.vmms())
        for name in pairs(T.folders()) do assert.is_true(others[name], name .. " is left") end
    end)
end)
