-- SPDX-License-Identifier: MIT
-- What kill_owner and interrupt are about: does one thing over and over until it is killed. Prints "ready" before.
local fcvm = require "fcvm"

local phase = arg[1]
local small = { memory = "96M" }
local function config(more)
    local c = {}
    for k, v in pairs(small) do c[k] = v end
    for k, v in pairs(more or {}) do c[k] = v end
    return c
end
local function ready()
    io.stdout:write "ready\n"
    io.stdout:flush()
end
local function started()
    return assert(fcvm.vm(config()):start())
end

local phases = {}

function phases.cold()
    ready()
    while true do
        local vm <close> = assert(fcvm.vm(config { cold = true }):start())
    end
end

function phases.warm()
    ready()
    while true do
        local vm <close> = started()
    end
end

-- A VM whose warm-start snapshot is not there yet: booted, saved, published.
function phases.keep()
    ready()
    local n = 0
    while true do
        n = n + 1
        local vm <close> = assert(fcvm.vm(config { cmdline = ("fcvm.test=%d.%d"):format(os.time(), n) }):start())
    end
end

function phases.snapshot()
    local vm <close> = started()
    ready()
    while true do
        local snap <close> = assert(vm:snapshot())
    end
end

function phases.named()
    local vm <close> = started()
    ready()
    while true do
        local snap = assert(vm:snapshot { name = "killed" })
        snap:close()
        assert(fcvm.remove_snapshot "killed")
    end
end

local function snapshot()
    local vm <close> = started()
    return assert(vm:snapshot { stop = true })
end

function phases.prepare()
    ready()
    while true do
        local snap <close> = snapshot()
        assert(snap:prepare(2))
    end
end

function phases.clone()
    local snap <close> = snapshot()
    ready()
    while true do
        local clone <close> = assert(snap:clone())
    end
end

function phases.clones()
    local snap <close> = snapshot()
    assert(snap:prepare(1))
    ready()
    while true do
        local clones <close> = assert(snap:clone(6))
    end
end

function phases.exec()
    local snap <close> = snapshot()
    local clones <close> = assert(snap:clone(3))
    ready()
    while true do
        fcvm.parallel(clones, function(vm) return assert(vm:exec { "sh", "-c", "echo hello; cat /proc/meminfo" }) end)
    end
end

function phases.copies()
    local vm <close> = started()
    ready()
    while true do
        assert(vm:copy_in("/usr/bin/env", "/tmp/env"))
        assert(vm:copy_out("/bin/busybox", os.getenv "FCVM_DATA" .. "/busybox-copy"))
    end
end

local function folder()
    local path = os.getenv "FCVM_DATA" .. "/volume"
    os.execute("mkdir -p " .. path)
    return path
end

function phases.mounts()
    local vm <close> = started()
    local volume = { host = folder(), guest = "/volume", readers = 2 }
    ready()
    while true do
        assert(vm:mount(volume))
        assert(vm:exec { "sh", "-c", "echo x >/volume/file; cat /volume/file" })
        assert(vm:unmount "/volume")
    end
end

-- A VM and clones that write to their volumes meanwhile.
function phases.volumes()
    local vm <close> = started()
    assert(vm:mount { host = folder(), guest = "/volume" })
    assert(vm:mount { host = folder(), guest = "/other", locks = "guest", readers = 4 })
    local p <close> = assert(vm:spawn { "sh", "-c", "while :; do echo x >/volume/$(hostname); cat /other/*; done" })
    ready()
    while true do
        local snap <close> = assert(vm:snapshot())
        local clones <close> = assert(snap:clone(2))
    end
end

function phases.teardown()
    ready()
    while true do
        local snap <close> = snapshot()
        local clones <close> = assert(snap:clone(4))
        clones:close()
    end
end

function phases.image()
    ready()
    while true do
        for _, image in ipairs(assert(fcvm.images())) do
            assert(fcvm.remove_image(image.name))
        end
        assert(fcvm.build_image "mini")
    end
end

local f = phases[phase]
if not f then
    io.stderr:write("no phase ", tostring(phase), "\n")
    os.exit(2)
end
f()
