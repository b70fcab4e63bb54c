-- SPDX-License-Identifier: MIT
-- The rival: what a user has without us. The same QEMU binary, kernel, initrd and memory, booted one by one on the
-- machine q35 (microvm needs the TSC's frequency on the command line to boot reliably without KVM, which its user
-- would first have to find out). One counts as up when its kernel has started init: in favour of the rival, whose
-- guests have answered nothing yet.
local fcvm = require "fcvm"
local measure = require "fcvm.measure"

local M = {}

local UP = "Run /init as init process"
local DEADLINE = 120

local function quote(text)
    return "'" .. text:gsub("'", "'\\''") .. "'"
end

-- The libraries that an unpacked QEMU comes with, as fcvm hands them to it: "NAME=value" lines beside it.
local function environment(binary)
    local words = {}
    local file <close> = io.open(binary:match "^(.*)/bin/" .. "/env")
    for line in file and file:lines() or function() end do words[#words + 1] = quote(line) end
    return table.concat(words, " ")
end

local function command(about, image, memory_mb, console)
    local share = about.binary:match "^(.*)/bin/" .. "/share/qemu"
    local unpacked = environment(about.binary)
    local words = {
        about.binary, "-machine", "q35", "-accel", about.accel, "-cpu", about.accel == "kvm" and "host" or "max",
        "-m", tostring(memory_mb), "-kernel", image.dir .. "/kernel", "-initrd", image.dir .. "/initrd",
        "-append", "console=ttyS0 reboot=t panic=-1", "-nodefaults", "-no-reboot", "-display", "none",
        "-serial", "file:" .. console,
    }
    if unpacked ~= "" then table.move({ "-L", share }, 1, 2, #words + 1, words) end
    for i, word in ipairs(words) do words[i] = quote(word) end
    return ("echo $$; exec env %s setpriv --pdeathsig KILL %s </dev/null 2>&1"):format(unpacked,
        table.concat(words, " "))
end

local function is_up(console)
    local file <close> = io.open(console)
    return file and file:read "a":find(UP, 1, true) ~= nil
end

-- Starts one and waits until it is up: { pid =, pipe =, s = }, or nil and why.
local function boot(one, line)
    local from = fcvm.now()
    one.pipe = assert(io.popen(line))
    one.pid = assert(math.tointeger(tonumber(one.pipe:read "l")))
    while not is_up(one.console) do
        if fcvm.now() - from > DEADLINE then error("plain QEMU: not up after two minutes: " .. one.console) end
        fcvm.sleep(0.01)
    end
    one.s = fcvm.now() - from
end

local function end_all(guests)
    local pids = {}
    for _, one in ipairs(guests) do pids[#pids + 1] = one.pid end
    if #pids > 0 then os.execute("kill -9 " .. table.concat(pids, " ") .. " 2>/dev/null") end
    for _, one in ipairs(guests) do
        if one.pipe then one.pipe:close() end
        os.remove(one.console)
    end
end

--- Boots `count` of them, as many at a time as there are processors, and ends them.
function M.run(about, image, count, memory_mb, dir)
    local guests <close> = setmetatable({}, { __close = end_all })
    for i = 1, count do guests[i] = { console = ("%s/plain-%d.log"):format(dir, i) } end
    local before, from = measure.available_mb(), fcvm.now()
    fcvm.parallel(guests, function(one)
        os.remove(one.console)
        boot(one, command(about, image, memory_mb, one.console))
    end, { limit = fcvm.processors() })
    local figures = { count = count, ready_s = fcvm.now() - from, machine = "q35", up = UP }
    local each = {}
    figures.pss_mb = 0
    for i, one in ipairs(guests) do
        each[i] = one.s
        figures.pss_mb = figures.pss_mb + measure.pss_mb(one.pid)
    end
    figures.boot_s = measure.spread(each)
    figures.available_fall_mb = before - measure.available_mb()
    return figures
end

return M
