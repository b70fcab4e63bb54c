-- Boots a VM, snapshots it, clones it fifty times, runs a program in each, and says what that took.
-- SPDX-License-Identifier: MIT
local fcvm = require "fcvm"
local measure = require "fcvm.measure"

local percentile, timed = measure.percentile, measure.timed

-- A clone, or an exec, that takes longer never ends.
local ONE_S <const> = 30

local usage = [[
usage: fcvm script clone50.lua [OPTION...]

  --count N      how many clones (50)
  --memory SIZE  RAM of each guest (512M)
  --json FILE    write the figures to FILE, "-" for standard output
  --driver NAME  the VMM (chosen: see fcvm doctor)
  --accel NAME   kvm or tcg (chosen)
  --lab          on a node, the KVM lab, where KVM works though this machine may have none
  --replace N    make up to N VMs anew that die or fall silent (0; on an emulated lab a tenth of the clones): emulated
                 KVM loses about one restored VM in 300
]]

local function options(argv)
    local known = { count = 50, memory = "512M", json = false, driver = false, accel = false, lab = false, replace = false }
    local flags = { lab = true }
    local i = 1
    while argv[i] do
        local name, value = argv[i]:match "^%-%-([a-z]+)=?(.*)$"
        if argv[i] == "--help" or argv[i] == "-h" then
            io.write(usage)
            os.exit(0, true)
        elseif not name or known[name] == nil then
            io.stderr:write("clone50: unknown option ", argv[i], "\n", usage)
            os.exit(2, true)
        end
        if flags[name] then
            value = true
        elseif value == "" then
            i = i + 1
            value = argv[i]
        end
        if not value then
            io.stderr:write("clone50: --", name, " wants a value\n")
            os.exit(2, true)
        end
        known[name] = value
        i = i + 1
    end
    known.count = math.tointeger(tonumber(known.count))
    if not known.count or known.count < 1 then
        io.stderr:write "clone50: --count wants a number from 1 on\n"
        os.exit(2, true)
    end
    if known.replace then
        known.replace = math.tointeger(tonumber(known.replace))
        if not known.replace or known.replace < 0 then
            io.stderr:write "clone50: --replace wants a number\n"
            os.exit(2, true)
        end
    end
    return known
end

-- Runs a program in it; nil, or the error.
local function hostname(vm)
    local out, err = vm:exec { "hostname", timeout = ONE_S }
    if out then assert(out.stdout == vm.name .. "\n", vm.name .. " calls itself " .. out.stdout) end
    return err
end

-- ---- VMs made anew ----

-- Takes one of the spare ones for one that has failed so; raises the error if there is none.
local function replace(spare, err)
    if spare.used == spare.limit then error(err, 0) end
    spare.used = spare.used + 1
    io.stderr:write("clone50: a VM is made anew: ", tostring(err), "\n")
end

-- A VM by make().
local function made(spare, make)
    while true do
        local vm, err = make()
        if vm then return vm end
        replace(spare, err)
    end
end

-- One that has run a program, and the milliseconds that this took.
local function ready(spare, make)
    while true do
        local vm = made(spare, make)
        local ms, err = measure.ms(hostname, vm)
        if not err then return vm, ms end
        vm:close()
        replace(spare, err)
    end
end

-- Has each run a program, as many at a time as there are processors. Those that cannot are replaced in the list. The
-- milliseconds of those that could, the shortest first.
local function each_ready(clones, spare, make)
    local ms, failed = {}, {}
    timed(clones, function(vm)
        local took, err = measure.ms(hostname, vm)
        if err then failed[vm] = err else ms[#ms + 1] = took end
    end)
    for i, vm in ipairs(clones) do
        if failed[vm] then
            vm:close()
            replace(spare, failed[vm])
            clones[i], ms[#ms + 1] = ready(spare, make)
        end
    end
    table.sort(ms)
    return ms
end

local function boot_and_save(config, figures)
    local from = fcvm.now()
    local base <close>, err = fcvm.vm(config):start()
    if not base then return nil, err end
    figures.boot_s = fcvm.now() - from
    figures.warm = base.warm
    figures.driver, figures.accel, figures.memory_mb = base.driver, base.accel, base.memory // (1 << 20)

    from = fcvm.now()
    local snap
    snap, err = base:snapshot { stop = true }
    if not snap then return nil, err end
    figures.snapshot_ms = (fcvm.now() - from) * 1000
    figures.snapshot_pause_ms = snap.pause_ms
    return snap
end

local function run(o, node)
    local figures = { count = o.count, node = node and node.name }
    local config = {
        image = "mini", memory = o.memory, vcpus = 1, driver = o.driver or nil, accel = o.accel or nil, node = node,
    }

    local spare = { used = 0, limit = o.replace or node and node.accel == "tcg" and o.count // 10 or 0 }
    local snap <close> = made(spare, function() return boot_and_save(config, figures) end)
    assert(snap:prepare(1))
    local function clone()
        return snap:clone { timeout = ONE_S }
    end
    do
        local one <close>, ms = ready(spare, clone)
        figures.first_clone_ms, figures.first_exec_ms = one.start_ms, ms
    end

    local before = measure.available_mb(node)
    local from = fcvm.now()
    local clones <close> = assert(snap:clone(o.count, { timeout = ONE_S, partial = spare.limit > 0 }))
    for _, err in pairs(clones.errors or {}) do
        replace(spare, err)
        clones[#clones + 1] = made(spare, clone)
    end
    figures.agents_s = fcvm.now() - from
    local first = each_ready(clones, spare, clone)
    figures.all_ready_s = fcvm.now() - from
    figures.ready = #clones
    local took = {}
    for i, vm in ipairs(clones) do
        took[i] = vm.start_ms
    end
    table.sort(took)
    figures.clone_p50_ms, figures.clone_p99_ms = percentile(took, 50), percentile(took, 99)
    figures.first_exec_p50_ms, figures.first_exec_p99_ms = percentile(first, 50), percentile(first, 99)
    local again = each_ready(clones, spare, clone)
    figures.exec_p50_ms, figures.exec_p99_ms = percentile(again, 50), percentile(again, 99)

    figures.pss_total_mb, figures.pss_guest_ram_mb = 0, 0
    for _, vm in ipairs(clones) do
        local all, ram = measure.pss_mb(vm.pid, node)
        figures.pss_total_mb = figures.pss_total_mb + all
        figures.pss_guest_ram_mb = figures.pss_guest_ram_mb + ram
    end
    figures.mem_available_fall_mb = before - measure.available_mb(node)

    from = fcvm.now()
    clones:close()
    figures.teardown_s = fcvm.now() - from
    figures.replaced = spare.used
    return figures
end

local function report(f)
    local separate = f.count * f.memory_mb
    local rows = {
        { "driver", ("%s/%s%s"):format(f.driver, f.accel, f.node and " on " .. f.node or "") },
        { f.warm and "start (from a kept snapshot)" or "boot", ("%.2f s"):format(f.boot_s) },
        { "snapshot, pause to published", ("%.1f ms"):format(f.snapshot_pause_ms) },
        { "first clone: agent / exec", ("%.0f / %.0f ms"):format(f.first_clone_ms, f.first_exec_ms) },
        { ("%d clones: each p50 / p99"):format(f.count), ("%.0f / %.0f ms"):format(f.clone_p50_ms, f.clone_p99_ms) },
        { "all agents answered", ("%.2f s"):format(f.agents_s) },
        { "all ready (have run a program)", ("%.2f s"):format(f.all_ready_s) },
        { "first exec p50 / p99", ("%.0f / %.0f ms"):format(f.first_exec_p50_ms, f.first_exec_p99_ms) },
        { "exec p50 / p99", ("%.1f / %.1f ms"):format(f.exec_p50_ms, f.exec_p99_ms) },
        { "memory: PSS of all", ("%.0f MiB, of which guest RAM %.0f"):format(f.pss_total_mb, f.pss_guest_ram_mb) },
        { "memory: fall of MemAvailable", ("%.0f MiB"):format(f.mem_available_fall_mb) },
        { ("%d separate VMs of %d MiB"):format(f.count, f.memory_mb),
          ("%d MiB of RAM: %.0f times as much"):format(separate, separate / math.max(1, f.pss_total_mb)) },
        { "teardown of all", ("%.2f s"):format(f.teardown_s) },
        f.replaced > 0 and { "died or fell silent, and were made anew", tostring(f.replaced) } or nil,
    }
    local width = 0
    for _, row in ipairs(rows) do
        width = math.max(width, #row[1])
    end
    for _, row in ipairs(rows) do
        io.stdout:write(row[1], (" "):rep(width - #row[1] + 2), row[2], "\n")
    end
end

local o = options(arg)
local lab <close> = o.lab and assert(require "fcvm.lab".start { memory = "8G" }) or nil
local figures = run(o, lab)
if o.json ~= "-" then
    report(figures)
end
if o.json then
    local text = fcvm.json.encode(figures) .. "\n"
    local file = o.json == "-" and io.stdout or assert(io.open(o.json, "w"))
    assert(file:write(text))
    if file ~= io.stdout then
        assert(file:close())
    end
end
