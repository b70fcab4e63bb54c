-- SPDX-License-Identifier: MIT
-- Volumes, by the workloads of the rival's guide: both halves on this host beside the folder itself and libfuse in process,
-- and in a guest beside virtio-9p and virtiofsd.
--
--   fcvm script bench/volume.lua [--all | --quick | --throughput | --operations | --protocol | --memory | --guest | --nested]...
--       [--rounds N] [--out DIR]
--
-- Tables to stdout; DIR/volume.json, volume.md and pictures. --quick: all that needs no guest, few rounds and few readers.
-- What a part measured is kept in DIR/volume.json when another part is measured later.
local fcvm = require "fcvm"

local here = arg[0]:match "^(.*)/" or "."
package.path = here .. "/?.lua;" .. package.path
local guest = require "volume_guest"
local host = require "volume_host"
local pictures = require "volume_pictures"
local report = require "report"
local sample = require "volume_sample"
local tables = require "volume_tables"

local PARTS = { "throughput", "operations", "protocol", "memory", "guest", "nested" }
local OF_HOST = { throughput = true, operations = true, protocol = true, memory = true }
local ROUNDS, QUICK_ROUNDS, QUICK_COUNT = 9, 3, 300
local READERS, QUICK_READERS = { 1, 2, 4, 8, 16, 32, 64, 128, 256 }, { 1, 16, 256 }

local function usage()
    error("usage: volume.lua [--all | --quick | --" .. table.concat(PARTS, " | --") .. "]... [--rounds N] [--out DIR]", 0)
end

local function parse(argv)
    local config, chosen, i = { dir = "build/bench", readers = READERS, rounds = ROUNDS }, {}, 1
    while argv[i] do
        local name = argv[i]:match "^%-%-(%a+)$" or usage()
        if name == "out" or name == "rounds" then
            i = i + 1
            config[name == "out" and "dir" or name] = argv[i] or usage()
        elseif name == "quick" then
            config.readers, config.rounds, config.count = QUICK_READERS, QUICK_ROUNDS, QUICK_COUNT
            for part in pairs(OF_HOST) do chosen[part] = true end
        elseif name == "all" then
            for _, part in ipairs(PARTS) do chosen[part] = true end
        else
            chosen[name] = true
        end
        i = i + 1
    end
    config.rounds = math.tointeger(tonumber(config.rounds)) or usage()
    config.chosen = chosen
    for part in pairs(chosen) do
        if not table.concat(PARTS, " "):find(part, 1, true) then usage() end
    end
    return config
end

local function first_line(path)
    local file <close> = assert(io.open(path))
    return file:read "l"
end

-- What it was measured on: a load from others makes all of it worth less.
local function machine()
    return {
        processors = fcvm.processors(), kernel = first_line "/proc/sys/kernel/osrelease",
        model = sample.sh "grep -m1 '^model name' /proc/cpuinfo":match ": ([^\n]*)",
        load = tonumber(first_line "/proc/loadavg":match "^%S+"),
        filesystem = sample.sh "findmnt -n -o FSTYPE -T .":match "%S+",
    }
end

local MEASURE = {
    throughput = host.throughput, operations = host.operations, protocol = host.protocol, memory = host.memory,
    guest = guest.guest, nested = guest.nested,
}

local function previous(path)
    local file <close> = io.open(path)
    return file and fcvm.json.decode(file:read "a") or {}
end

local function load_previous(path)
    local result = previous(path)
    if result.throughput then sample.index(result.throughput) end
    for _, part in ipairs { "operations", "guest" } do
        for _, list in pairs(result[part] or {}) do
            if type(list) == "table" and list[1] then sample.index(list) end
        end
    end
    return result
end

local config = parse(arg)
if not next(config.chosen) then usage() end
config.programs = here:gsub("bench$", "") .. "build/bench"
sample.sh("mkdir -p '" .. config.dir .. "'")
local path = config.dir .. "/volume.json"
local result = load_previous(path)
result.measured = result.measured or {}
for _, part in ipairs(PARTS) do
    if config.chosen[part] then
        local from, on = fcvm.now(), machine()
        result[part] = MEASURE[part](config)
        on.rounds, on.took_s = config.rounds, fcvm.now() - from
        result.measured[part] = on
        report.write_json(sample.plain(result), path)
    end
end

local shown = {}
for part in pairs(config.chosen) do shown[part] = result[part] end
for _, part in ipairs(PARTS) do
    local on = config.chosen[part] and result.measured[part]
    if on then
        print(("%s: %d rounds in %.0f s on %d cores (%s, kernel %s, %s), load before %.2f"):format(part, on.rounds, on.took_s,
            on.processors, on.model or "?", on.kernel, on.filesystem, on.load))
    end
end
tables.print(tables.of(shown))
tables.write(tables.of(result), config.dir .. "/volume.md")
pictures.draw(result, config.dir)
