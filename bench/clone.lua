-- SPDX-License-Identifier: MIT
-- The figures of goals.lua, each the median of several runs, and fifty cold boots with plain QEMU beside them.
--
--   fcvm script bench/clone.lua [--out DIR]
--
-- Writes DIR/clone.json, clone.svg and clone.png, and a table to stdout. From the environment: FCVM_BENCH_RUNS (5),
-- FCVM_BENCH_COUNT (50 clones), FCVM_BENCH_PLAIN (as many plain QEMUs; 0: none), FCVM_BENCH_MEMORY (512M).
local fcvm = require "fcvm"
local measure = require "fcvm.measure"

local here = arg[0]:match "^(.*)/" or "."
package.path = here .. "/?.lua;" .. package.path
local plain_qemu = require "plain_qemu"
local report = require "report"
local setting = require "setting"

local RUNS = setting("RUNS", 5)
local COUNT = setting("COUNT", 50)
local PLAIN = setting("PLAIN", COUNT)
local MEMORY = os.getenv "FCVM_BENCH_MEMORY" or "512M"
local EXECS, SINGLES, SCRIPTS = 100, 5, 20
local SETTLE_S, IDLE_S = 2, 5

-- Ourselves, to be run by others.
local function own_path()
    local pipe <close> = assert(io.popen "readlink /proc/$PPID/exe")
    return pipe:read "l"
end

local function out_folder(argv, default)
    if argv[1] == nil then return default end
    if argv[1] ~= "--out" or not argv[2] then error("usage: clone.lua [--out DIR]", 0) end
    return argv[2]
end

local function sh(line)
    assert(os.execute(line), line)
end

local function load_average()
    local file <close> = assert(io.open "/proc/loadavg")
    return tonumber(file:read "a":match "^%S+")
end

local function median(values)
    return measure.spread(values).median
end

-- ---- pieces of a run ----

local function hostname(vm)
    local out = assert(vm:exec { "hostname" })
    assert(out.stdout == vm.name .. "\n", vm.name .. " calls itself " .. out.stdout)
end

-- One after the other, the first few not counted.
local function exec_p50(vm, argv, expected)
    local ms = {}
    for i = -9, EXECS do
        local took, out = measure.ms(function() return assert(vm:exec(argv)) end)
        assert(out.stdout == expected, argv[1] .. " said " .. out.stdout)
        if i > 0 then ms[i] = took end
    end
    return median(ms)
end

local function cold_boot(f)
    local vm <close> = fcvm.vm { memory = MEMORY, cold = true }
    f.boot_s = measure.ms(function() return assert(vm:start()) end) / 1000
    local snap <close> = assert(vm:snapshot())
    f.booted_downtime_ms = snap.downtime_ms
    hostname(vm)
end

-- From the call until its ping was answered, and until its first exec was.
local function single_clones(f, snap)
    local ping, exec = {}, {}
    for i = 1, SINGLES do
        local from = fcvm.now()
        local vm <close> = assert(snap:clone())
        assert(vm:ping())
        ping[i] = (fcvm.now() - from) * 1000
        hostname(vm)
        exec[i] = (fcvm.now() - from) * 1000
    end
    f.ping_ms, f.first_exec_ms = median(ping), median(exec)
end

-- The processes we are the parent of: the clones' VMMs and the template that they are copies of.
local function children()
    local pids = {}
    local pipe <close> = assert(io.popen "cat /proc/$PPID/task/*/children")
    for pid in pipe:read "a":gmatch "%d+" do pids[#pids + 1] = tonumber(pid) end
    return pids
end

local function vmm_memory(f)
    f.pss_mb, f.pss_ram_mb = 0, 0
    for _, pid in ipairs(children()) do
        -- the one that told us has ended
        local there, all, ram = pcall(measure.pss_mb, pid)
        if there then f.pss_mb, f.pss_ram_mb = f.pss_mb + all, f.pss_ram_mb + ram end
    end
end

local function cpu_s(vms)
    local all = 0
    for _, vm in ipairs(vms) do all = all + measure.cpu_s(vm.pid) end
    return all
end

local function idle(f, clones)
    fcvm.sleep(SETTLE_S)
    local from, used = fcvm.now(), cpu_s(clones)
    fcvm.sleep(IDLE_S)
    used = cpu_s(clones) - used
    f.idle_percent = 100 * used / (fcvm.now() - from)
end

local function many_clones(f, snap, before)
    local from = fcvm.now()
    local clones <close> = assert(snap:clone(COUNT))
    f.agents_s = fcvm.now() - from
    local first = measure.timed(clones, hostname)
    f.ready_s = fcvm.now() - from
    local made = {}
    for i, vm in ipairs(clones) do made[i] = vm.start_ms end
    f.clone_p50_ms, f.first_exec_p50_ms = median(made), median(first)
    f.exec_p50_ms = median(measure.timed(clones, hostname))
    vmm_memory(f)
    f.available_fall_mb = before - measure.available_mb()
    idle(f, clones)
    f.teardown_ms = measure.ms(clones.close, clones)
end

local function warm_guest(f, tiny)
    local base <close> = fcvm.vm { memory = MEMORY }
    f.warm_start_ms = measure.ms(function() return assert(base:start()) end)
    assert(base:copy_in(tiny, "/run/tiny"))
    f.tiny_exec_p50_ms = exec_p50(base, { "/run/tiny" }, "tiny\n")
    f.busybox_exec_p50_ms = exec_p50(base, { "hostname" }, base.name .. "\n")
    do
        local going_on <close> = assert(base:snapshot())
        f.downtime_ms = going_on.downtime_ms
        hostname(base)
    end
    local snap <close> = assert(base:snapshot { stop = true })
    f.save_ms = snap.pause_ms
    local before = measure.available_mb()
    f.prepare_ms = measure.ms(function() return assert(snap:prepare(1)) end)
    single_clones(f, snap)
    many_clones(f, snap, before)
end

local function programs(f, fcvm_path, empty)
    f.run_ms = measure.ms(sh, ("'%s' run -- true </dev/null 2>&1"):format(fcvm_path))
    f.script_ms = measure.ms(sh, ("for i in $(seq %d); do '%s' script '%s' || exit 1; done"):format(SCRIPTS,
        fcvm_path, empty)) / SCRIPTS
end

-- ---- all runs ----

-- A program as small as can be; the guest's busybox has 2 MB.
local function make_tiny(dir)
    local source <close> = assert(io.open(dir .. "/tiny.c", "w"))
    assert(source:write '#include <unistd.h>\nint main(void) { return write(1, "tiny\\n", 5) != 5; }\n')
    assert(source:close())
    sh(("musl-gcc -static -Os -s -o '%s/tiny' '%s/tiny.c'"):format(dir, dir))
    return dir .. "/tiny"
end

local function one_run(i, tools)
    local f = { load = load_average() }
    io.stderr:write(("run %d of %d, load %.1f\n"):format(i, RUNS, f.load))
    programs(f, tools.fcvm, tools.empty)
    cold_boot(f)
    warm_guest(f, tools.tiny)
    return f
end

local function kernel_of(image)
    for _, one in ipairs(assert(fcvm.images())) do
        if one.dir == image.dir then return one.kernel end
    end
    return "unknown"
end

local function main()
    local tools = { fcvm = own_path() }
    local dir = out_folder(arg, tools.fcvm:match "^(.*)/" .. "/bench")
    sh(("mkdir -p '%s' && : >'%s/empty.lua'"):format(dir, dir))
    tools.tiny, tools.empty = make_tiny(dir), dir .. "/empty.lua"

    local about, image = assert(fcvm.doctor()), assert(fcvm.build_image())
    -- a first start of each kind, whose snapshot the others find
    sh(("'%s' run -- true </dev/null 2>&1"):format(tools.fcvm))
    local result = {
        driver = about.driver, accel = about.accel, version = about.version, processors = fcvm.processors(),
        kernel = kernel_of(image), count = COUNT, runs = {},
    }
    do
        local vm <close> = assert(fcvm.vm { memory = MEMORY }:start())
        result.memory_mb = vm.memory >> 20
    end
    for i = 1, RUNS do result.runs[i] = one_run(i, tools) end
    if PLAIN > 0 then
        io.stderr:write(("%d cold boots with plain QEMU, load %.1f\n"):format(PLAIN, load_average()))
        result.plain = plain_qemu.run(about, image, PLAIN, result.memory_mb, dir)
    end
    report.write(result, dir)
end

main()
