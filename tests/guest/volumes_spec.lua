-- SPDX-License-Identifier: MIT
-- Volumes of real guests, by the public interface.
package.path = (debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or ".") .. "/?.lua;" .. package.path
local fcvm = require "fcvm"
local T = require "support"

local check, host, guest = T.check, T.host, T.guest

-- For what only root may do here.
local as_root = T.root and it or function(name) pending(name .. " (as root only)") end

teardown(T.clean)

describe("a volume", function()
    local vm, src

    setup(function()
        src = T.folder()
        T.write(src .. "/from-before", "host\n")
        vm = T.vm { name = "volumes", volumes = { { host = src, guest = "/work" } } }
    end)
    teardown(function() if vm then vm:close() end end)

    it("is there when the VM has started", function()
        assert.equal("host\n", guest(vm, "cat /work/from-before"))
        assert.matches("^[^\n]* /work fuse[^\n]*$", (guest(vm, "grep ' /work ' /proc/mounts")):sub(1, -2))
    end)

    it("shows either side what the other writes", function()
        guest(vm, "echo guest >/work/of-guest; mkdir -p /work/a/b; ln -s from-before /work/link")
        assert.equal("guest\n", T.read(src .. "/of-guest"))
        assert.equal("host\n", T.read(src .. "/link"))
        T.write(src .. "/a/b/later", "later\n")
        assert.equal("later\n", guest(vm, "cat /work/a/b/later"))
        T.write(src .. "/of-guest", "changed by the host\n")
        T.await("a change is seen", 3, function() return guest(vm, "cat /work/of-guest") == "changed by the host\n" end)
        host("rm -r " .. src .. "/a")
        T.await("a removal is seen", 3, function() return select(2, guest(vm, "ls /work/a")) ~= 0 end)
    end)

    it("carries much, unharmed", function()
        host(("head -c 20000001 /dev/urandom >%s/big"):format(src))
        local sum = host(("md5sum <%s/big"):format(src)):match "%x+"
        assert.equal(sum, (guest(vm, "md5sum </work/big", 60)):match "%x+")
        guest(vm, "cp /work/big /work/copy", 60)
        assert.equal(sum, host(("md5sum <%s/copy"):format(src)):match "%x+")
    end)

    it("has counters", function()
        local before = T.volume(vm, "/work")
        assert.equal(src, before.host)
        assert.is_false(before.readonly)
        assert.equal("host", before.locks)
        assert.equal("running", before.state)
        assert.equal(1, before.readers)
        T.write(src .. "/counted", ("x"):rep(100000))
        guest(vm, "cat /work/counted >/dev/null; head -c 50000 /dev/zero >/work/written; cat /work/none")
        local after = T.volume(vm, "/work")
        assert.is_true(after.bytes_read >= before.bytes_read + 100000)
        assert.is_true(after.bytes_written >= before.bytes_written + 50000)
        assert.is_true(after.ops.read.count > (before.ops.read or { count = 0 }).count)
        assert.is_true(after.ops.lookup.errors > (before.ops.lookup or { errors = 0 }).errors)
        local op = after.ops.read
        assert.is_true(op.p50_us <= op.p99_us and op.max_us > 0)
        local sum = 0
        for _, n in ipairs(op.histogram_ns) do sum = sum + n end
        assert.equal(op.count, sum)
    end)

    it("is seen by other processes", function()
        local other <close> = check(fcvm.attach(vm.id))
        assert.equal(src, T.volume(other, "/work").host)
    end)

    it("comes and goes while the VM runs, and there may be several", function()
        local second, third = T.folder(), T.folder()
        T.write(second .. "/name", "second\n")
        T.write(third .. "/name", "third\n")
        assert.equal(vm, check(vm:mount { host = second, guest = "/mnt/second", readonly = true, readers = 4 }))
        check(vm:mount(third .. ":/mnt/third:locks=guest"))
        assert.equal("second\nthird\n", guest(vm, "cat /mnt/*/name"))
        assert.equal(3, #check(vm:volumes()))
        assert.equal(4, T.volume(vm, "/mnt/second").readers)
        assert.equal("guest", T.volume(vm, "/mnt/third").locks)
        assert.equal(1, T.volume(vm, "/mnt/third").timeout)
        assert.equal("", check(vm:traces "//mnt/third/"))
        assert.matches("Read%-only", (guest(vm, "touch /mnt/second/x")))
        assert.matches("Read%-only", (guest(vm, "rm /mnt/second/name")))
        assert.equal("second\n", T.read(second .. "/name"))
        assert.equal(3, #T.servers())
        assert.equal(vm, check(vm:unmount "/mnt/second"))
        check(vm:unmount "/mnt/third")
        assert.equal("", (guest(vm, "cat /proc/mounts | grep /mnt/")))
        assert.equal(1, #check(vm:volumes()))
        T.await("the servers end", 5, function() return #T.servers() == 1 end)
        check(vm:mount(second .. ":/mnt/second"))
        guest(vm, "touch /mnt/second/x")
        assert.equal("", host("cat " .. second .. "/x"))
        check(vm:unmount "/mnt/second")
    end)

    it("may be named from where the program stands", function()
        local parent, name = src:match "^(.*)/([^/]*)$"
        T.write(T.top .. "/relative.lua", ([[
            local vm <close> = assert(require "fcvm".vm { memory = "128M", volumes = { %q } }:start())
            assert(vm:mount { host = %q, guest = "/later" })
            io.write(assert(vm:exec "cat /work/from-before /later/from-before").stdout)]]):format(name .. ":/work:ro",
            "./" .. name))
        assert.equal("host\nhost\n", host(([[fcvm=$(realpath %q)
            cd %s && $fcvm script %s/relative.lua 2>&1 | grep -v ^fcvm:]]):format(os.getenv "FCVM" or "build/fcvm", parent,
            T.top)))
    end)

    it("does not go while a program uses it, unless it is told to", function()
        local folder = T.folder()
        check(vm:mount(folder .. ":/busy"))
        local p <close> = check(vm:spawn { "sh", "-c", "exec 3>/busy/open; echo ready; read x; echo $x >&3; echo $?" })
        assert.equal("ready", check(p:read("l", { timeout = 10 })))
        local ok, err = vm:unmount "/busy"
        assert.is_nil(ok)
        assert.equal("EBUSY", err.code)
        assert.matches("volumes", err.msg)
        assert.matches("/busy", err.msg)
        assert.equal("", (guest(vm, "cat /busy/open")))
        check(vm:unmount("/busy", { force = true }))
        assert.is_nil(T.volume(vm, "/busy"))
        local _, status = guest(vm, "cat /busy/open")
        assert.is_true(status ~= 0)
        check(p:write "late\n")
        assert.is_true(tonumber(check(p:read("l", { timeout = 10 }))) ~= 0)
        assert.equal("", T.read(folder .. "/open"))
        check(vm:mount(folder .. ":/busy"))
        assert.equal("", (guest(vm, "cat /busy/open")))
        check(vm:unmount "/busy")
    end)

    it("does not go while another is mounted in it", function()
        local folder = T.folder()
        check(vm:mount(folder .. ":/work/within"))
        local ok, err = vm:unmount "/work"
        assert.is_nil(ok)
        assert.equal("EBUSY", err.code)
        assert.matches("/work/within is mounted in it", err.msg)
        check(vm:unmount "/work/within")
        host("rmdir " .. src .. "/within")
    end)

    it("that is given up leaves nothing behind", function()
        local folder = T.folder()
        for i = 1, 24 do
            local _, err = vm:mount { host = folder, guest = "/given-up", wait = i * 0.004 }
            if err then assert.equal("ETIMEDOUT", err.code) else check(vm:unmount "/given-up") end
        end
        check(vm:mount(folder .. ":/given-up"))
        guest(vm, "echo text >/given-up/file")
        assert.equal("text\n", T.read(folder .. "/file"))
        check(vm:unmount "/given-up")
        assert.equal("", (guest(vm, "grep given-up /proc/mounts")))
        assert.equal(1, #check(vm:volumes()))
        T.await("the servers end", 5, function() return #T.servers() == 1 end)
    end)

    it("is mounted beside others at the same time", function()
        local list = {}
        for i = 1, 4 do list[i] = T.folder() end
        fcvm.parallel(list, function(folder) check(vm:mount(folder .. ":/beside" .. folder)) end)
        assert.equal(5, #check(vm:volumes()))
        fcvm.parallel(list, function(folder) check(vm:unmount("/beside" .. folder)) end)
    end)

    it("is there also where that cannot be told to others", function()
        local json, folder = vm.dir .. "/vm.json", T.folder()
        os.rename(json, json .. ".before")
        host("mkdir " .. json)
        local mounted, why = vm:mount(folder .. ":/untold")
        local gone, why_not = vm:unmount "/untold"
        host("rmdir " .. json)
        os.rename(json .. ".before", json)
        check(mounted, why)
        check(gone, why_not)
    end)

    it("is refused where it cannot be, with a reason", function()
        local function refused(code, text, opts)
            local ok, err = vm:mount(opts)
            assert.is_nil(ok)
            assert.equal(code, err.code)
            assert.is_truthy(err.msg:find(text, 1, true), err.msg)
        end
        refused("ENOENT", "/no/such/folder", "/no/such/folder:/x")
        refused("ENOTDIR", src .. "/from-before", src .. "/from-before:/x")
        refused("EEXIST", "/work", { host = src, guest = "/work" })
        local _, err = vm:unmount "/nowhere"
        assert.equal("ENOENT", err.code)
        assert.matches("/nowhere", err.msg)
        _, err = vm:traces "/nowhere"
        assert.equal("ENOENT", err.code)
        assert.equal(1, #check(vm:volumes()))
        assert.equal(1, #T.servers())
    end)

    it("has POSIX locks and flock that exclude this host's programs", function()
        for _, kind in ipairs { "lock", "flock" } do
            guest(vm, "rm -f /tmp/let-go")
            local p <close> = check(vm:spawn { "/work/prober", kind, "/work/locked", "/tmp/let-go" })
            assert.equal("locked", check(p:read("l", { timeout = 10 })))
            assert.equal("busy\n", host(("%s %s %s/locked /"):format(T.prober, kind, src)))
            guest(vm, "touch /tmp/let-go")
            check(p:wait(10))
            assert.equal("locked\n", host(("%s %s %s/locked /"):format(T.prober, kind, src)))
        end
    end)

    it("has flock and whole files by as many readers as there may be", function()
        local folder = T.folder()
        check(vm:mount { host = folder, guest = "/many", readers = 256 })
        assert.equal(256, T.volume(vm, "/many").readers)
        host(("head -c 1000000 /dev/urandom >%s/big"):format(folder))
        local sum = host(("md5sum <%s/big"):format(folder)):match "%x+"
        guest(vm, "rm -f /tmp/let-go")
        local p <close> = check(vm:spawn { "/many/prober", "flock", "/many/locked", "/tmp/let-go" })
        assert.equal("locked", check(p:read("l", { timeout = 10 })))
        assert.equal("busy\n", host(("%s flock %s/locked /"):format(T.prober, folder)))
        -- One by one they would be served by one reader.
        local sums = guest(vm, [[for i in $(seq 16); do cp /many/big /many/$i & done; wait
            for i in $(seq 16); do md5sum </many/$i; done | sort | uniq -c]], 60)
        assert.matches("^ +16 " .. sum .. "  %-\n$", sums)
        guest(vm, "touch /tmp/let-go")
        check(p:wait(10))
        assert.equal("locked\n", (guest(vm, "/many/prober flock /many/locked /")))
        check(vm:unmount "/many")
    end)

    it("has locks that wait for this host's programs", function()
        os.remove(src .. "/let-go")
        local holder = assert(io.popen(("%s lock %s/awaited %s/let-go"):format(T.prober, src, src)))
        assert.equal("locked", holder:read "l")
        local p <close> = check(vm:spawn { "/work/prober", "wait", "/work/awaited" })
        local got, err = p:read("l", { timeout = 0.5 })
        assert.is_nil(got)
        assert.equal("ETIMEDOUT", err.code)
        T.write(src .. "/let-go", "")
        assert.equal("had it", check(p:read("l", { timeout = 10 })))
        holder:close()
    end)

    it("has locks that stay within the guest, if that is wanted", function()
        local folder = T.folder()
        check(vm:mount(folder .. ":/local:locks=guest"))
        guest(vm, "rm -f /tmp/let-go")
        local p <close> = check(vm:spawn { "/local/prober", "lock", "/local/locked", "/tmp/let-go" })
        assert.equal("locked", check(p:read("l", { timeout = 10 })))
        assert.equal("busy\n", (guest(vm, "/local/prober lock /local/locked /")))
        assert.equal("locked\n", host(("%s lock %s/locked /"):format(T.prober, folder)))
        guest(vm, "touch /tmp/let-go")
        check(p:wait(10))
        check(vm:unmount "/local")
    end)

    as_root("maps ids", function()
        local folder = T.folder()
        host(("cd %s && touch mapped other && chown 1000:2000 mapped && chown 77:77 other && chmod 777 ."):format(folder))
        check(vm:mount {
            host = folder, guest = "/ids",
            uid_map = { { guest = 0, host = 1000 }, { guest = 5, host = 500, count = 10 } },
            gid_map = { { guest = 0, host = 2000, count = 10 } },
        })
        assert.equal("0:0\n65534:65534\n", (guest(vm, "stat -c %u:%g /ids/mapped /ids/other")))
        assert.same({ { guest = 0, host = 1000, count = 1 }, { guest = 5, host = 500, count = 10 } },
            T.volume(vm, "/ids").uid_map)
        guest(vm, "touch /ids/new; chown 7:3 /ids/new")
        assert.equal("502:2003\n", host("stat -c %u:%g " .. folder .. "/new"))
        assert.is_true(select(2, guest(vm, "chown 70 /ids/new")) ~= 0)
        check(vm:unmount "/ids")
    end)

    as_root("tells the guest that this host's disk is full, and goes on when it is not", function()
        local folder = T.folder()
        host("mkdir " .. folder .. "/disk")
        local disk = folder .. "/disk"
        local _, status = host(("mount -t tmpfs -o size=2M fcvm-test %s"):format(disk))
        if status ~= 0 then return pending "no file system can be mounted here" end
        local unmount <close> = setmetatable({}, { __close = function() host("umount -l " .. disk) end })
        check(vm:mount(disk .. ":/disk"))
        guest(vm, "echo small >/disk/small")
        assert.equal("ENOSPC\n", (guest(vm, "/work/prober fill /disk/large")))
        assert.equal("small\n", (guest(vm, "cat /disk/small")))
        assert.matches("No space left", (guest(vm, "echo more >/disk/more")))
        guest(vm, "rm /disk/large; echo again >/disk/again")
        assert.equal("again\n", T.read(disk .. "/again"))
        check(vm:unmount "/disk")
    end)

    it("whose server is killed gives errors soon, goes, and can be had again", function()
        local folder = T.folder()
        local others = {}
        for _, pid in ipairs(T.servers()) do others[pid] = true end
        check(vm:mount(folder .. ":/dying"))
        guest(vm, "echo text >/dying/file")
        local p <close> = check(vm:spawn { "sh", "-c", "exec 3</dying/file; echo ready; read x; cat <&3 2>&1; echo $?" })
        assert.equal("ready", check(p:read("l", { timeout = 10 })))
        for _, pid in ipairs(T.servers()) do
            if not others[pid] then host("kill -KILL " .. pid) end
        end
        local from = fcvm.now()
        local _, status = guest(vm, "cat /dying/file")
        assert.is_true(status ~= 0)
        check(p:write "\n")
        assert.matches("not connected", check(p:read("l", { timeout = 10 })))
        assert.equal("1", check(p:read("l", { timeout = 10 })))
        assert.is_true(fcvm.now() - from < 5)
        assert.equal("ended", T.volume(vm, "/dying").state)
        check(vm:unmount("/dying", { force = true }))
        check(vm:mount(folder .. ":/dying"))
        assert.equal("text\n", (guest(vm, "cat /dying/file")))
        check(vm:unmount "/dying")
        assert.equal("host\n", (guest(vm, "cat /work/from-before")))
    end)
end)

describe("standing still", function()
    -- A VM with a volume, and its server.
    local function with_server(name)
        local src, before = T.folder(), {}
        for _, pid in ipairs(T.servers()) do before[pid] = true end
        local vm = T.vm { name = name, volumes = { src .. ":/work" } }
        for _, pid in ipairs(T.servers()) do
            if not before[pid] then return vm, src, pid end
        end
    end

    it("is refused to a snapshot where a volume did not come to rest, which goes on all the same", function()
        local vm, src, pid = with_server "restless"
        local closing <close> = vm
        host("kill -STOP " .. pid)
        check(vm:pause())
        local snap, err = vm:snapshot()
        host("kill -CONT " .. pid)
        assert.is_nil(snap)
        assert.equal("EBUSY", err.code)
        assert.matches("resume it first", err.msg)
        check(vm:resume())
        guest(vm, "echo after >/work/after")
        assert.equal("after\n", T.read(src .. "/after"))
        check(vm:snapshot()):close()
    end)

    it("is refused at once to a snapshot where a volume has ended", function()
        local vm <close> = with_server "ended"
        local more = T.folder()
        check(vm:mount(more .. ":/more"))
        host("kill -KILL " .. math.tointeger(T.volume(vm, "/more").pid))
        T.await("it ends", 5, function() return T.volume(vm, "/more").state == "ended" end)
        local from = fcvm.now()
        local snap, err = vm:snapshot()
        assert.is_nil(snap)
        assert.matches("/more", err.msg)
        assert.matches("unmount it", err.msg)
        assert.is_true(fcvm.now() - from < 0.4)
        check(vm:unmount("/more/", { force = true, timeout = 10 }))
        check(vm:snapshot()):close()
    end)

    it("leaves nobody waiting whose server dies meanwhile", function()
        local vm, src, pid = with_server "dies"
        local closing <close> = vm
        T.write(src .. "/file", "text\n")
        check(vm:pause())
        host("kill -KILL " .. pid)
        local ok, err = vm:resume()
        assert.is_nil(ok)
        assert.matches("/work", err.msg)
        assert.equal("running", vm.state)
        assert.matches("not connected", (guest(vm, "cat /work/file", 5)))
        check(vm:unmount "/work")
        check(vm:mount(src .. ":/work"))
        assert.equal("text\n", (guest(vm, "cat /work/file")))
    end)
end)

describe("snapshots and clones", function()
    it("of a VM that goes on leave its files open and its locks held", function()
        local src = T.folder()
        local vm <close> = T.vm { name = "goes-on", volumes = { src .. ":/work" } }
        local p <close> = check(vm:spawn { "sh", "-c", [[echo one >/work/log; exec 3</work/log 4>>/work/log
            echo ready; read x; echo two >&4; cat <&3]] })
        local holder <close> = check(vm:spawn { "/work/prober", "lock", "/work/locked", "/work/let-go" })
        assert.equal("ready", check(p:read("l", { timeout = 10 })))
        assert.equal("locked", check(holder:read("l", { timeout = 10 })))
        for _ = 1, 2 do
            local snap <close> = check(vm:snapshot())
            assert.equal("busy\n", host(("%s lock %s/locked /"):format(T.prober, src)))
        end
        check(p:write "\n")
        assert.equal("one", check(p:read("l", { timeout = 10 })))
        assert.equal("two", check(p:read("l", { timeout = 10 })))
        assert.equal("one\ntwo\n", T.read(src .. "/log"))
        assert.equal("busy\n", host(("%s lock %s/locked /"):format(T.prober, src)))
        T.write(src .. "/let-go", "")
        check(holder:wait(10))
        assert.equal("running", T.volume(vm, "/work").state)
    end)

    describe("of one that has stopped", function()
        local src, snap

        -- What a program that had its file open before the snapshot gets of it once it is told to look.
        local LOOKS = [[exec 3</work/%s; touch /tmp/%s.ready; until [ -e /tmp/look ]; do sleep 0.1; done
            cat <&3 >/tmp/%s.got 2>&1]]

        setup(function()
            src = T.folder()
            T.write(src .. "/kept", "first\n")
            T.write(src .. "/removed", "gone\n")
            local vm <close> = T.vm { name = "stopped", volumes = { src .. ":/work" } }
            for _, name in ipairs { "kept", "removed" } do
                T.write(src .. "/" .. name .. ".sh", LOOKS:format(name, name, name))
                guest(vm, ("setsid sh /work/%s.sh >/dev/null 2>&1 </dev/null &"):format(name))
            end
            guest(vm, "setsid /work/prober lock /work/locked /tmp/let-go >/tmp/lock 2>&1 </dev/null &")
            T.await("the programs are ready", 10, function()
                return guest(vm, "ls /tmp/*.ready | wc -l; cat /tmp/lock") == "2\nlocked\n"
            end)
            snap = check(vm:snapshot { stop = true })
        end)
        teardown(function() if snap then snap:close() end end)

        it("take open files and locks along", function()
            local clone <close> = check(snap:clone())
            assert.equal("busy\n", host(("%s lock %s/locked /"):format(T.prober, src)))
            T.write(src .. "/kept", "first\nsecond\n")
            -- For a second of its own time the guest may take the file's size for granted.
            guest(clone, "sleep 1.5; touch /tmp/look")
            T.await("the program has looked", 10, function()
                return guest(clone, "cat /tmp/kept.got") == "first\nsecond\n"
            end)
            guest(clone, "touch /tmp/let-go")
            T.await("the lock is let go", 10, function()
                return host(("%s lock %s/locked /"):format(T.prober, src)) == "locked\n"
            end)
        end)

        it("answer ESTALE to who has a file open that is gone", function()
            os.remove(src .. "/removed")
            local clone <close> = check(snap:clone())
            guest(clone, "touch /tmp/look")
            T.await("the program has looked", 10, function()
                return (guest(clone, "cat /tmp/removed.got")):find "Stale" ~= nil
            end)
            T.await("the other has, too", 10, function()
                return (guest(clone, "cat /tmp/kept.got")):find "first" ~= nil
            end)
        end)

        it("have a server each over the same folder", function()
            local clones <close> = check(snap:clone(3))
            fcvm.parallel(clones, function(clone)
                guest(clone, "for i in $(seq 50); do hostname >>/work/of-$(hostname); done; cat /work/kept")
            end)
            for _, clone in ipairs(clones) do
                assert.equal((clone.name .. "\n"):rep(50), T.read(src .. "/of-" .. clone.name))
                assert.equal(1, #check(clone:volumes()))
            end
            assert.equal(3, #T.servers())
            clones:close()
            T.await("the servers end", 5, function() return #T.servers() == 0 end)
        end)

        it("exclude each other by locks", function()
            local clones <close> = check(snap:clone(2))
            local a, b = clones[1], clones[2]
            guest(a, "rm -f /tmp/end")
            local p <close> = check(a:spawn { "/work/prober", "lock", "/work/between", "/tmp/end" })
            assert.equal("locked", check(p:read("l", { timeout = 10 })))
            assert.equal("busy\n", (guest(b, "/work/prober lock /work/between /")))
            guest(a, "touch /tmp/end")
            check(p:wait(10))
            assert.equal("locked\n", (guest(b, "/work/prober lock /work/between /")))
        end)

        it("are given volumes of their own besides", function()
            local more = T.folder()
            T.write(more .. "/name", "more\n")
            local clone <close> = check(snap:clone { volumes = { more .. ":/more:ro" } })
            assert.equal("more\n", (guest(clone, "cat /more/name")))
            assert.equal(2, #check(clone:volumes()))
            local clones <close> = check(snap:clone(2, { volumes = { { host = more, guest = "/more" } } }))
            for _, c in ipairs(clones) do assert.equal("more\n", (guest(c, "cat /more/name"))) end
            local pool <close> = snap:pool { size = 1, volumes = { more .. ":/more" } }
            local pooled = check(pool:get())
            assert.equal("more\n", (guest(pooled, "cat /more/name")))
            pool:give(pooled)
        end)

        it("are not there if one of those cannot be", function()
            local n = #check(fcvm.list())
            local clone, err = snap:clone { volumes = { "/no/such:/more" } }
            assert.is_nil(clone)
            assert.equal("ENOENT", err.code)
            assert.is_nil((snap:clone(2, { volumes = { "/no/such:/more" } })))
            assert.equal(n, #check(fcvm.list()))
        end)
    end)

    it("are ten copies of a template, each with open files and locks of its own", function()
        local src, own = T.folder(), T.folder()
        local vm <close> = T.vm { name = "ten", volumes = { src .. ":/work", own .. ":/own:locks=guest" } }
        guest(vm, [[setsid sh -c 'exec 3>>/work/log; touch /tmp/open; until [ -e /tmp/go ]; do sleep 0.1; done
            hostname >&3; touch /tmp/gone' >/dev/null 2>&1 </dev/null &
            setsid /own/prober lock /own/locked /tmp/let-go >/tmp/lock 2>&1 </dev/null &]])
        T.await("the programs are ready", 10, function()
            return guest(vm, "ls /tmp/open; cat /tmp/lock") == "/tmp/open\nlocked\n"
        end)
        local snap <close> = check(vm:snapshot { stop = true })
        check(snap:prepare(1))
        local clones <close> = check(snap:clone(10))
        local names = {}
        assert.equal(20, #T.servers())
        fcvm.parallel(clones, function(clone)
            assert.equal("busy\n", (guest(clone, "/own/prober lock /own/locked /")))
            guest(clone, "touch /tmp/go; until [ -e /tmp/gone ]; do sleep 0.1; done")
            names[#names + 1] = clone.name
        end)
        local log = {}
        for name in T.read(src .. "/log"):gmatch "[^\n]+" do log[#log + 1] = name end
        table.sort(names)
        table.sort(log)
        assert.same(names, log)
        -- One lets go: nobody else's is gone by that.
        guest(clones[3], "touch /tmp/let-go")
        T.await("the lock is let go", 10, function()
            return guest(clones[3], "/own/prober lock /own/locked /tmp/let-go") == "locked\n"
        end)
        assert.equal("busy\n", (guest(clones[4], "/own/prober lock /own/locked /")))
        clones:close()
        T.await("the servers end", 5, function() return #T.servers() == 0 end)
    end)

    it("by name go with their volumes", function()
        local src = T.folder()
        local name = "volumes-spec-" .. os.time()
        do
            local vm <close> = T.vm { volumes = { src .. ":/work:ro" } }
            local snap <close> = check(vm:snapshot { name = name })
        end
        local remove <close> = setmetatable({}, { __close = function() fcvm.remove_snapshot(name) end })
        T.write(src .. "/later", "later\n")
        local snap <close> = check(fcvm.snapshot(name))
        local clone <close> = check(snap:clone())
        assert.equal("later\n", (guest(clone, "cat /work/later")))
        assert.is_true(T.volume(clone, "/work").readonly)
    end)
end)

describe("a VM that is stopped", function()
    -- Seconds that it took, while a program runs that answers SIGTERM by these commands.
    local function stop(src, commands, readers)
        local vm <close> = T.vm { volumes = { { host = src, guest = "/work", readers = readers } } }
        local p <close> = check(vm:spawn { "sh", "-c", ("trap '%s' TERM; exec 3>/work/open; echo ready; "):format(commands)
            .. "while :; do echo more >&3; sleep 0.05; done" })
        assert.equal("ready", check(p:read("l", { timeout = 10 })))
        local from = fcvm.now()
        check(vm:stop { timeout = 20 })
        return fcvm.now() - from
    end

    it("is not kept by its volume, and has written what its programs wrote when they were told", function()
        local src = T.folder()
        local plain = T.vm {}
        local from = fcvm.now()
        check(plain:stop { timeout = 20 })
        local alone = fcvm.now() - from
        -- With several readers some of it is carried by the agent, which ends last.
        for readers = 1, 3 do
            local took = stop(src, "sleep 0.3; head -c 300000 /dev/zero >/work/last" .. readers .. "; exit", readers)
            assert.equal(300000, #T.read(src .. "/last" .. readers))
            assert.is_true(took < alone + 1.8, ("%.2f s, without a volume %.2f s"):format(took, alone))
        end
    end)

    it("ends a program that does not end, and has what that wrote", function()
        local src = T.folder()
        stop(src, "echo no >>/work/told")
        assert.equal("no\n", T.read(src .. "/told"))
        assert.matches("^more\n", T.read(src .. "/open"))
    end)
end)

describe("a VM that is killed while it writes", function()
    it("has left what it had synced", function()
        local src = T.folder()
        local vm <close> = T.vm { volumes = { src .. ":/work" } }
        local p <close> = check(vm:spawn { "/work/prober", "append", "/work/records" })
        for _ = 1, 20 do check(p:read("l", { timeout = 10 })) end
        -- A record is told of once it is synced: that has reached this host, and was no failure.
        local fsync = T.volume(vm, "/work").ops.fsync
        assert.is_true(fsync.count >= 20)
        assert.equal(0, fsync.errors)
        check(vm:kill())
        local last = 20
        for line in p:lines() do last = tonumber(line) or last end
        local text = T.read(src .. "/records")
        assert.is_true(#text >= last * 64)
        for i = 1, last do assert.equal(i, tonumber(text:sub(64 * i - 63, 64 * i))) end
        vm:close()
        T.await("the server ends", 5, function() return #T.servers() == 0 end)
    end)
end)

describe("a volume's port", function()
    local function ports(vm)
        return (guest(vm, "cat /sys/class/virtio-ports/*/name | grep volume | sort | tr '\\n' ' '"))
    end

    it("comes with the volume and goes with it, and the ninth volume needs none", function()
        local src = T.folder()
        local vm <close> = T.vm { name = "ports", driver = "qemu" }
        assert.equal("", ports(vm))
        for round = 1, 3 do
            check(vm:mount { host = src, guest = "/v" .. round })
            assert.equal("fcvm.volume.0 ", ports(vm))
            assert.equal(0, select(2, guest(vm, "test -x /v" .. round .. "/prober")))
            check(vm:unmount("/v" .. round))
            assert.equal("", ports(vm))
        end
        for i = 0, 8 do check(vm:mount { host = src, guest = "/n" .. i }) end
        assert.equal(8, select(2, ports(vm):gsub("volume", "")))
        guest(vm, "echo ninth >/n8/ninth")
        assert.equal("ninth\n", T.read(src .. "/ninth"))
        check(vm:unmount "/n3")
        check(vm:mount { host = src, guest = "/again" })
        assert.equal("ninth\n", guest(vm, "cat /again/ninth"))
    end)

    it("is a clone's as well, restored or copied, and a clone's clone's", function()
        local src = T.folder()
        local vm <close> = T.vm { name = "ports", driver = "qemu", volumes = { { host = src, guest = "/v" } } }
        guest(vm, "echo first >/v/first")
        local snap <close> = check(vm:snapshot())
        guest(vm, "echo goes on >/v/on")
        assert.equal("goes on\n", T.read(src .. "/on"))
        local function works(clone, name)
            assert.equal("fcvm.volume.0 ", ports(clone))
            assert.equal("first\n", guest(clone, ("cat /v/first; echo x >/v/%s"):format(name)))
            assert.equal("x\n", T.read(src .. "/" .. name))
        end
        local one <close> = check(snap:clone())
        works(one, "restored")
        local two <close> = check(snap:clone(2)) -- of a template
        for i, clone in ipairs(two) do works(clone, "copied" .. i) end
        local second <close> = check(two[1]:snapshot())
        local three <close> = check(second:clone())
        works(three, "grandchild")
        check(three:unmount "/v")
        assert.equal("", ports(three))
        check(three:mount { host = src, guest = "/v" })
        works(three, "again")
    end)
end)
