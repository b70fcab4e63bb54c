-- SPDX-License-Identifier: MIT
-- The part of volume.lua that has VMs: started by volume_guest.lua with the environment that its VMs need. Prints a result as
-- JSON.
--
--   fcvm script bench/volume_in_guest.lua guest|nested PROGRAMS SOURCE ROUNDS MODULES
local fcvm = require "fcvm"

local here = arg[0]:match "^(.*)/" or "."
package.path = here .. "/?.lua;" .. package.path
local sample = require "volume_sample"

local WHAT, PROGRAMS, SOURCE, ROUNDS, MODULES = arg[1], arg[2], arg[3], math.tointeger(tonumber(arg[4])), arg[5]
local COUNT = 200     -- single operations: a round trip takes a while in an emulated guest
local PROGRAM = "/run/fuse-volume"
local TOP = "/run/bench"
-- In the order in which they need each other; what the image has is there already.
local RIVALS_MODULES = {
    "fs/netfs/netfs", "fs/fscache/fscache", "net/9p/9pnet", "net/9p/9pnet_virtio", "fs/9p/9p", "fs/fuse/fuse", "fs/fuse/virtiofs",
}

local function read_file(path)
    local file <close> = assert(io.open(path, "rb"))
    return file:read "a"
end

local function run(vm, argv)
    local out = assert(vm:exec { timeout = 300, table.unpack(argv) })
    if out.status ~= 0 then
        error(("%s: %s: status %d: %s%s"):format(vm.name, table.concat(argv, " "), out.status, out.stderr, out.stdout), 0)
    end
    return out.stdout
end

local function shell(vm, line)
    return run(vm, { "sh", "-c", line })
end

local function prepare(vm)
    assert(vm:write_file(PROGRAM, read_file(PROGRAMS .. "/fuse-volume"), { mode = tonumber("755", 8) }))
    shell(vm, ("mkdir -p %s/tmpfs && mount -t tmpfs bench %s/tmpfs && %s fill %s/tmpfs"):format(TOP, TOP, PROGRAM, TOP))
end

local function load_modules(vm)
    for _, name in ipairs(RIVALS_MODULES) do
        assert(vm:write_file("/run/module.ko", read_file(("%s/kernel/%s.ko"):format(MODULES, name))))
        shell(vm, ("grep -q '^%s ' /proc/modules || insmod /run/module.ko"):format(name:match "[^/]+$"))
    end
end

-- Runs fuse-volume on the folder, between mounting and unmounting.
local function between(vm, folder, mount, unmount)
    return function(work, timeout, count)
        mount(timeout)
        local ok, text = pcall(run, vm, { PROGRAM, work, folder, count and tostring(count) })
        unmount()
        return ok and text or error(text, 0)
    end
end

local function nothing() end

local function tmpfs(vm)
    return { name = "tmpfs", label = "tmpfs", run = between(vm, TOP .. "/tmpfs", nothing, nothing) }
end

local function ours(vm, name, label, options)
    local folder = TOP .. "/" .. name
    return {
        name = name, label = label,
        run = between(vm, folder, function()
            assert(vm:mount { host = SOURCE, guest = folder, readers = options.readers, locks = options.locks })
        end, function() assert(vm:unmount(folder)) end),
    }
end

local function rival(vm, name, label, mount)
    local folder = TOP .. "/" .. name
    shell(vm, "mkdir -p " .. folder)
    return {
        name = name, label = label,
        run = between(vm, folder, function(timeout) shell(vm, mount(timeout) .. " " .. folder) end,
            function() shell(vm, "umount " .. folder) end),
    }
end

local function virtio_9p(timeout)
    -- its way to have round trips where they are asked for: names and attributes it keeps for ever
    return ("mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=%s bench-9p"):format(
        timeout == 0 and "none" or "loose")
end

local function virtiofs()
    return "mount -t virtiofs bench-virtiofs"
end

local function of_guest()
    local vm <close> = assert(fcvm.vm { memory = "512M", vcpus = 2, cold = true, driver = "qemu" }:start(300))
    prepare(vm)
    load_modules(vm)
    local who = {
        tmpfs(vm), ours(vm, "ours", "ours", {}), ours(vm, "ours_local", "ours, locks=guest", { locks = "guest" }),
        ours(vm, "ours_256", "ours, 256 readers", { readers = 256 }),
        rival(vm, "virtiofsd", "virtiofsd", virtiofs), rival(vm, "virtio_9p", "virtio-9p", virtio_9p),
    }
    local against = { "tmpfs", "virtio_9p", "virtiofsd" }
    return {
        driver = vm.driver, accel = vm.accel, vcpus = 2, kernel = shell(vm, "uname -r"):match "%S+",
        note = "Defaults: virtiofsd has cache=auto and locks of the guest's own; virtio-9p cache=loose, forced: none.",
        throughput = sample.collect(who, ROUNDS, "throughput", 1, against),
        forced = sample.collect(who, ROUNDS, "operations", 0, against, COUNT),
        cached = sample.collect(who, ROUNDS, "cached", 1, against, COUNT),
        large = sample.collect(who, ROUNDS, "large", 1, against),
    }
end

-- Of a level: its volume and its tmpfs, as one subject.
local function level(vm, name)
    prepare(vm)
    local volume, memory = ours(vm, name, name, {}), tmpfs(vm)
    return {
        name = name, label = name,
        run = function(work, timeout)
            local all, plain = fcvm.json.decode(volume.run(work, timeout)), fcvm.json.decode(memory.run(work, timeout))
            all.local_read, all.local_write = plain.read, plain.write
            return fcvm.json.encode(all)
        end,
    }
end

local function of_nested()
    local lab = require "fcvm.lab"
    local l1 <close> = assert(lab.start { memory = "2G" })
    local l2 <close> = assert(fcvm.vm { node = l1, memory = "256M", cold = true }:start(300))
    local results = sample.collect({ level(l1, "L1"), level(l2, "L2") }, ROUNDS, "large", 1, { "L1" })
    return {
        note = ("L1 by %s/%s, L2 by %s/%s."):format(l1.driver, l1.accel, l2.driver, l2.accel),
        L1 = results.L1, L2 = results.L2,
    }
end

print(fcvm.json.encode(sample.plain((WHAT == "nested" and of_nested or of_guest)())))
