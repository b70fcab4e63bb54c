-- Boots a VM, snapshots it, clones it fifty times, runs a program in each, and says what that took.
-- SPDX-License-Identifier: MIT
local fcvm = require "fcvm"
local measure = require "fcvm.measure"

local percentile, timed = measure.percentile, measure.timed

local usage = [[
usage: fcvm script clone50.lua [--count N] [--memory SIZE] [--json FILE]

  --count N      how many clones (50)
  --memory SIZE  RAM of each guest (512M)
  --json FILE    write the figures to FILE, "-" for standard output
  --driver NAME  the VMM (chosen: see fcvm doctor)
  --accel NAME   kvm or tcg (chosen)
]]

local function options(argv)
    local known = { count = 50, memory = "512M", json = false, driver = false, accel = false }
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
        if value == "" then
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
    return known
end

local function hostname(vm)
    local out = assert(vm:exec { "hostname" })
    assert(out.stdout == vm.name .. "\n", vm.name .. " calls itself " .. out.stdout)
end

local function run(o)
    local figures = { count = o.count }
    local config = { image = "mini", memory = o.memory, vcpus = 1, driver = o.driver or nil, accel = o.accel or nil }

    local from = fcvm.now()
    local base <close> = assert(fcvm.vm(config):start())
    figures.boot_s = fcvm.now() - from
    figures.warm = base.warm
    figures.driver, figures.accel, figures.memory_mb = base.driver, base.accel, base.memory // (1 << 20)

    from = fcvm.now()
    local snap <close> = assert(base:snapshot { stop = true })
    figures.snapshot_ms = (fcvm.now() - from) * 1000
    figures.snapshot_pause_ms = snap.pause_ms

    assert(snap:prepare(1))
    do
        from = fcvm.now()
        local one <close> = assert(snap:clone())
        figures.first_clone_ms = (fcvm.now() - from) * 1000
        from = fcvm.now()
        hostname(one)
        figures.first_exec_ms = (fcvm.now() - from) * 1000
    end

    local before = measure.available_mb()
    from = fcvm.now()
    local clones <close> = assert(snap:clone(o.count))
    figures.agents_s = fcvm.now() - from
    local first = timed(clones, hostname)
    figures.all_ready_s = fcvm.now() - from
    figures.ready = #clones
    local made = {}
    for i, vm in ipairs(clones) do
        made[i] = vm.start_ms
    end
    table.sort(made)
    figures.clone_p50_ms, figures.clone_p99_ms = percentile(made, 50), percentile(made, 99)
    figures.first_exec_p50_ms, figures.first_exec_p99_ms = percentile(first, 50), percentile(first, 99)
    local again = timed(clones, hostname)
    figures.exec_p50_ms, figures.exec_p99_ms = percentile(again, 50), percentile(again, 99)

    figures.pss_total_mb, figures.pss_guest_ram_mb = 0, 0
    for _, vm in ipairs(clones) do
        local all, ram = measure.pss_mb(vm.pid)
        figures.pss_total_mb = figures.pss_total_mb + all
        figures.pss_guest_ram_mb = figures.pss_guest_ram_mb + ram
    end
    figures.mem_available_fall_mb = before - measure.available_mb()

    from = fcvm.now()
    clones:close()
    figures.teardown_s = fcvm.now() - from
    return figures
end

local function report(f)
    local separate = f.count * f.memory_mb
    local rows = {
        { "driver", ("%s/%s"):format(f.driver, f.accel) },
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
local figures = run(o)
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
