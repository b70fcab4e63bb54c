-- SPDX-License-Identifier: MIT
-- What the conformance suite runs on, and what it looks at from outside. From the environment:
--
--   FCVM_TEST_DRIVER  qemu or firecracker (default: what fcvm would choose)
--   FCVM_TEST_ACCEL   tcg or kvm (default: likewise)
--   FCVM_TEST_NODE    "lab": the VMs are placed on a lab (lua/fcvm/lab.lua), of which this process is the outside
--   FCVM_TEST_LAB     set where the suite itself runs in a lab whose KVM is emulated: everything takes longer there
local fcvm = require "fcvm"

local M = {
    driver = os.getenv "FCVM_TEST_DRIVER",
    accel = os.getenv "FCVM_TEST_ACCEL",
    on_lab = os.getenv "FCVM_TEST_NODE" == "lab",
}

-- An emulated processor that emulates SVM: a boot takes 10 to 30 s, an exec up to one.
M.emulated = M.on_lab or os.getenv "FCVM_TEST_LAB" ~= nil
local SLOWER <const> = 4

-- How many clones are "many".
M.many = M.emulated and 4 or 8

M.label = ("driver %s/%s%s"):format(M.driver or "default", M.accel or "default",
    M.on_lab and " on a node" or M.emulated and " in the lab" or "")

-- luassert's assert formats what it is given; this one is Lua's.
function M.check(value, err, ...)
    if not value then error(tostring(err), 2) end
    return value, err, ...
end
local check = M.check

-- A call that must fail: its error.
function M.refused(value, err)
    if value then error("it was not refused", 2) end
    return err
end

-- Seconds that a boot, a snapshot and a clone may take anywhere.
M.BOOT, M.SNAPSHOT, M.CLONE = 100, 60, 40

-- A time-out of so many seconds on hardware that is what it says. Every call that waits for a guest has one: a silent
-- guest costs seconds, not the whole run.
function M.s(seconds)
    return M.emulated and seconds * SLOWER or seconds
end

-- Waits until the function says true. Fails after so many seconds.
function M.await(what, seconds, fn)
    local deadline = fcvm.now() + M.s(seconds)
    while not fn() do
        if fcvm.now() > deadline then error(what .. ": not within " .. M.s(seconds) .. " s", 2) end
        fcvm.sleep(0.05)
    end
end

-- ---- the place where the VMs are ----

local l1

function M.start_node()
    if M.on_lab then l1 = check(require "fcvm.lab".start {}) end
end

function M.stop_node()
    if l1 then l1:close() end
    l1 = nil
end

-- What a shell there prints; nil if it did not end with status 0.
function M.there(script)
    if l1 then
        local out = check(l1:exec { "sh", "-c", script, timeout = 60 })
        return out.status == 0 and out.stdout or nil
    end
    local pipe = assert(io.popen(script))
    local text = pipe:read "a"
    return pipe:close() and text or nil
end

-- Whether the process is there, and not just waits to be collected.
function M.lives(pid)
    return M.there(("grep -q '^State:[[:space:]]*[^ZX[:space:]]' /proc/%d/status 2>/dev/null"):format(pid)) ~= nil
end

-- The VMMs: on a node of our own all of them, here those that this process has started.
function M.vmms()
    local ours = l1 and "cat" or [=[xargs -r grep -l "^PPid:[[:space:]]*$PPID$"]=]
    local text = M.there([[grep -lE '^(qemu|firecracker|jailer)' /proc/[0-9]*/comm 2>/dev/null | sed 's/comm$/status/' | ]]
        .. ours .. " || :")
    local list = {}
    for line in text:gmatch "[^\n]+" do list[#list + 1] = line end
    return list
end

-- The folders of VMs and snapshots by their ids, here and on the node. (What was copied to a node for its VMs, such
-- as kernels, is kept there for the next ones.)
function M.folders()
    local list = {}
    local function add(text)
        for path in text:gmatch "[^\n]+" do
            local id = path:match "%f[^/\0]%x%x%x%x%x%x%x%x$"
            if id then list[id] = true end
        end
    end
    -- Not those of VMs of others who run here meanwhile, such as a lab.
    local here <close> = assert(io.popen [=[
        for f in "${FCVM_RUN:-/dev/shm/fcvm-$(id -u)}"/*; do
            owner=$(sed -n 's/.*"owner": *\([0-9]*\).*/\1/p' "$f/vm.json" 2>/dev/null)
            [ "${owner:-$PPID}" != "$PPID" ] || echo "$f"
        done]=])
    add(here:read "a")
    if l1 then add(M.there "ls -d /dev/shm/fcvm-*/* 2>/dev/null || :") end
    return list
end

-- ---- folders of this host ----

function M.new_folder()
    local pipe = assert(io.popen "mktemp -d")
    local path = pipe:read "l"
    assert(pipe:close())
    return path
end

function M.remove_folder(path)
    assert(os.execute(("rm -rf -- '%s'"):format(path)))
end

function M.write(path, text)
    local file <close> = assert(io.open(path, "wb"))
    assert(file:write(text))
end

function M.read(path)
    local file <close> = assert(io.open(path, "rb"))
    return file:read "a"
end

-- ---- VMs ----

-- A VM as the suite is asked to make it; options are added.
function M.vm(options)
    local all = { memory = "128M", driver = M.driver, accel = M.accel, node = l1 }
    for name, value in pairs(options or {}) do all[name] = value end
    return fcvm.vm(all)
end

-- Emulated labs lost VMs, 1 in 5 of those booted beside another, to a race in QEMU that is mended now
-- (csrc/vmm/preload/ignne.c): none of 21. A QEMU with other names for things would have it still, so those that are lost
-- are counted, and made anew. Whatever else goes wrong is a failure.
M.made, M.stillborn = 0, {}
-- How many were made anew at their boot.
M.booted_anew = 0
local BOOTS <const> = 3

-- Those that are open.
local known = setmetatable({}, { __mode = "k" })

local function has_died(text)
    return text:find("its VMM", 1, true) or text:find("has powered off", 1, true) or text:find("it ended", 1, true)
end

local function answers(vm)
    local out, err = vm:exec { "hostname", timeout = M.s(10) }
    if out and out.stdout ~= vm.name .. "\n" then error(("%s calls itself %s"):format(vm.name, out.stdout), 0) end
    return out, err
end

-- Raises the error unless the lab may have lost the VM.
local function make_anew(vm, err, another)
    if vm then vm:close() end
    local text = tostring(err)
    local silent = err.code == "ETIMEDOUT"
    if not M.emulated or not (has_died(text) or silent) or not another then error(text, 0) end
    io.stdout:write("# made anew: ", text:gsub("\n", "\n# "), "\n")
    return text
end

local function stillborn(vm, err)
    M.stillborn[#M.stillborn + 1] = make_anew(vm, err, #M.stillborn <= 3)
end

-- One that was booted and has run a program.
function M.boot(options)
    for try = 1, BOOTS do
        local vm = M.vm(options)
        known[vm] = true
        local ok, err = vm:start(M.BOOT)
        if ok then ok, err = answers(vm) end
        if ok then return vm end
        make_anew(vm, err, try < BOOTS)
        M.booted_anew = M.booted_anew + 1
    end
end

-- A clone that has run a program.
function M.clone(snap, options)
    while true do
        M.made = M.made + 1
        local vm, err = snap:clone { name = options and options.name, timeout = M.CLONE }
        if vm then
            known[vm] = true
            local ok
            ok, err = answers(vm)
            if ok then return vm end
        end
        stillborn(vm, err)
    end
end

-- Several, made by one call. Leaving the scope ends all of them.
function M.clones(snap, n)
    local list = check(snap:clone(n, { timeout = M.CLONE, partial = M.emulated }))
    M.made = M.made + n
    for _, vm in ipairs(list) do known[vm] = true end
    for _, err in pairs(list.errors or {}) do
        stillborn(nil, err)
        list[#list + 1] = M.clone(snap)
    end
    local outcome = fcvm.parallel(list, function(vm) return { answers(vm) } end)
    for i, vm in ipairs(list) do
        if not outcome[i][1] then
            stillborn(vm, outcome[i][2])
            list[i] = M.clone(snap)
        end
    end
    return list
end

-- ---- tests ----

-- Why the rest of the tests makes no sense: a VM was lost that had run a program before. tests/run/drivers knows these
-- words, and does all of it once more.
local LOST <const> = "lost to the emulated lab: "
local lost

-- The handler of an error, which may be that a VM is lost: its message.
local function look_round(err)
    local text = tostring(err)
    if has_died(text) then lost = LOST .. text end
    for vm in pairs(known) do
        local open, state = pcall(function() return vm.state end)
        if open and state == "running" then
            local _, why = vm:ping(M.s(2))
            if why then lost = ("%s%s (%s)"):format(LOST, tostring(why), text) end
        end
    end
    return lost or err
end

-- busted's it(), for tests that may lose a VM.
function M.test(it)
    if not M.emulated then return it end
    return function(name, fn)
        it(name, function()
            if lost then error(lost, 0) end
            local ok, err = xpcall(fn, look_round)
            if not ok then error(err, 0) end
        end)
    end
end

-- ---- guests ----

-- What a program prints that must succeed.
function M.out(vm, command)
    local out, err = vm:exec { "sh", "-c", command, timeout = M.s(15) }
    if not out then error(("%s: %s"):format(command, err), 2) end
    if out.status ~= 0 then error(("%s: status %d: %s"):format(command, out.status, out.stderr), 2) end
    return (out.stdout:gsub("\n$", ""))
end

-- Fails unless the guest's clock says what ours does, give or take.
function M.clock_is_right(vm)
    local from = os.time()
    local there = tonumber(M.out(vm, "date +%s"))
    local to = os.time()
    if there < from - 2 or there > to + 2 then
        error(("%s: its clock is off: %d s, of a moment between %d and %d"):format(vm.name, there, from, to), 2)
    end
end

-- Bytes that no program has seen before.
function M.random(size)
    local file <close> = assert(io.open("/dev/urandom", "rb"))
    return file:read(size)
end

return M
