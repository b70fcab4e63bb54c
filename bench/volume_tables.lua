-- SPDX-License-Identifier: MIT
-- The figures of volume.lua as tables: each { title=, note=, columns = {...}, rows = { {...}, ... } }, all cells texts.
local guide = require "guide"
local report = require "report"

local M = {}

local number = report.number

local function times(n)
    return n and number(n) .. "x" or ""
end

local function range(spread)
    return spread and number(spread.min) .. " - " .. number(spread.max) or ""
end

-- A figure and its ratio to a base, each with its spread.
local function with_ratio(subject, base, key)
    local f, r = subject.figures[key], subject["to_" .. base] and subject["to_" .. base][key]
    return number(f.median), range(f), r and times(r.median) or "", range(r)
end

-- ---- both halves on this host ----

local function reads(results)
    local t = {
        title = "Parallel reads: 256 threads, 1,024 files of 4 KiB, the first time this mount sees them, and again (ms)",
        columns = {
            "", "first", "min - max", "vs host", "min - max", "again", "vs host", "vs 1 reader", "guide's", "guide vs host",
        },
        rows = {},
    }
    for i, s in ipairs(results) do
        local ms, ms_range, ratio, ratio_range = with_ratio(s, "host", "read")
        local one = s.readers and results.readers_1
        t.rows[i] = {
            s.label, ms, ms_range, ratio, ratio_range, number(s.figures.again.median), times(s.to_host.again.median),
            one and times(one.figures.read.median / s.figures.read.median) or "",
            number(guide.read[s.readers or s.name]), times(guide.read_ratio[s.readers]),
        }
    end
    return t
end

local function writes(results)
    local t = {
        title = "Parallel writes with fsync: 256 threads, 1,024 files of 4 KiB (ms)",
        columns = { "", "ms", "min - max", "vs host", "min - max", "guide's", "guide vs host" }, rows = {},
    }
    for i, s in ipairs(results) do
        local ms, ms_range, ratio, ratio_range = with_ratio(s, "host", "write_fsync")
        t.rows[i] = {
            s.label, ms, ms_range, ratio, ratio_range, number(guide.write[s.readers or s.name]),
            times(guide.write_ratio[s.readers]),
        }
    end
    return t
end

local OPERATIONS = {
    { "getattr", "getattr" }, { "lookup", "lookup" }, { "lookup_missing", "lookup of a missing name" },
    { "read_4k", "read 4 KiB" }, { "write_4k", "write 4 KiB" }, { "open_close", "open+close" }, { "readdir", "readdir of ten" },
    { "create_unlink", "create+unlink" },
}

local function operations(results, title, with_guide)
    local host, libfuse, one, many = results.host, results.libfuse, results.readers_1, results.readers_256
    local own_locks = results.local_locks
    local t = {
        title = title,
        columns = {
            "", "host", "libfuse", "1 reader", "256 readers", "locks=guest", "vs host", "min - max", "vs libfuse", "min - max",
            with_guide and "guide's" or nil, with_guide and "guide vs host" or nil,
        },
        rows = {},
    }
    for i, op in ipairs(OPERATIONS) do
        local key, theirs = op[1], with_guide and guide.operations[op[1]]
        t.rows[i] = {
            op[2], number(host.figures[key].median), number(libfuse.figures[key].median), number(one.figures[key].median),
            number(many.figures[key].median), number(own_locks.figures[key].median), times(one.to_host[key].median),
            range(one.to_host[key]),
            times(one.to_libfuse[key].median), range(one.to_libfuse[key]),
            with_guide and (theirs and number(theirs[2]) or "") or nil,
            with_guide and (theirs and times(theirs[2] / theirs[1]) or "") or nil,
        }
    end
    return t
end

-- ---- the protocol ----

local function rate(spread, bytes)
    return ("%.2f GiB/s"):format(bytes / spread.median * 1e9 / 2 ^ 30)
end

local function protocol(p)
    local theirs = guide.protocol
    local function row(what, f, theirs_ns, bytes)
        return {
            what, f and number(f.median) or "0", f and range(f) or "", f and bytes and rate(f, bytes) or "", number(theirs_ns),
            f and theirs_ns and times(theirs_ns / f.median) or "",
        }
    end
    return {
        title = "Protocol: what a message costs in user space (ns)",
        note = "The wire is the kernel's own format: the guest makes nothing, the host checks; a read's payload is in place.",
        columns = { "", "ns", "min - max", "", "guide's", "guide's to ours" },
        rows = {
            row("lookup request: made by the guest", nil, theirs.lookup_made),
            row("lookup request: framed and checked", p.lookup, theirs.lookup_taken),
            row("requests as a build sends them: the same", p.mix, theirs.trip_request),
            row("attr reply: made", p.reply.attr, theirs.attr),
            row("read reply of 4 KiB: made", p.reply.read_4k, theirs.read_4k),
            row("read reply of 64 KiB: made", p.reply.read_64k, theirs.read_64k),
            row("read reply of 128 KiB: made", p.reply.read_128k, theirs.read_128k),
            row("attr reply: through a socket as well", p.socket.attr),
            row("read reply of 4 KiB: through a socket as well", p.socket.read_4k, theirs.trip_4k, 4096),
            row("read reply of 64 KiB: through a socket as well", p.socket.read_64k, nil, 65536),
            row("read reply of 128 KiB: through a socket as well", p.socket.read_128k, nil, 131072),
        },
    }
end

local function opcodes(p)
    local names, t = {}, { title = "Validator, each opcode (ns)", columns = { "", "ns", "min - max" }, rows = {} }
    for name in pairs(p.opcodes) do names[#names + 1] = name end
    table.sort(names)
    for i, name in ipairs(names) do
        t.rows[i] = { name, number(p.opcodes[name].median), range(p.opcodes[name]) }
    end
    return t
end

-- ---- memory ----

local function memory(list)
    local t = {
        title = "Memory of an idle volume (MiB)",
        note = "PSS on mounting, and after the parallel reads and writes; the guide says only the virtual size of its threads.",
        columns = {
            "", "server", "after use", "guest half", "after use", "server, virtual", "guest half, virtual", "guide's, virtual",
        },
        rows = {},
    }
    for i, m in ipairs(list) do
        t.rows[i] = {
            m.readers == 1 and "1 reader" or m.readers .. " readers", number(m.mounted.server_mb), number(m.used.server_mb),
            number(m.mounted.guest_mb), number(m.used.guest_mb), number(m.used.server_virtual_mb),
            number(m.used.guest_virtual_mb), number(m.readers * guide.reader_mb),
        }
    end
    return t
end

-- ---- in a guest ----

local GUEST = {
    { "throughput", "read", "256 threads read, first", "ms" }, { "throughput", "again", "256 threads read, again", "ms" },
    { "throughput", "write_fsync", "256 threads write+fsync", "ms" },
}
for _, work in ipairs { "forced", "cached" } do
    for _, op in ipairs(OPERATIONS) do
        GUEST[#GUEST + 1] = { work, op[1], op[2] .. (work == "forced" and ", forced" or ", as programs call it"), "us" }
    end
end
for _, op in ipairs {
    { "read", "read of 10 MiB" }, { "write", "write of 10 MiB" }, { "write_sync", "the same, fsync each MiB" },
    { "stat", "100 stats" }, { "small_read", "100 small reads" },
} do
    GUEST[#GUEST + 1] = { "large", op[1], op[2], "ms" }
end

local function guest(g)
    local t = {
        title = ("In a guest (%s/%s, %d vCPUs, kernel %s): medians, and ours as a ratio to the others"):format(g.driver,
            g.accel, g.vcpus, g.kernel),
        note = g.note, columns = { "", "unit" }, rows = {},
    }
    for _, s in ipairs(g.throughput) do t.columns[#t.columns + 1] = s.label end
    for _, label in ipairs { "ours vs 9p", "min - max", "vs virtiofsd", "min - max" } do t.columns[#t.columns + 1] = label end
    for i, row in ipairs(GUEST) do
        local results, key = g[row[1]], row[2]
        local cells = { row[3], row[4] }
        for _, s in ipairs(results) do cells[#cells + 1] = number(s.figures[key].median) end
        for _, rival in ipairs { "virtio_9p", "virtiofsd" } do
            local ratio = results.ours["to_" .. rival][key]
            cells[#cells + 1] = times(ratio.median)
            cells[#cells + 1] = range(ratio)
        end
        t.rows[i] = cells
    end
    return t
end

local NESTED = {
    { "local_write", "write of 10 MiB to tmpfs" }, { "local_read", "read of 10 MiB from tmpfs" },
    { "write_sync", "write of 10 MiB, fsync each MiB" }, { "write", "write of 10 MiB" }, { "read", "read of 10 MiB" },
    { "stat", "100 stats" }, { "small_read", "100 small reads" },
}

local function nested(n)
    local t = {
        title = "Nested: a volume in a VM (L1), and in a VM within it (L2), served by this host (ms)",
        note = n.note,
        columns = { "", "L1", "min - max", "L2", "min - max", "L2/L1", "guide's L1", "guide's L2", "guide's L2/L1" }, rows = {},
    }
    for i, row in ipairs(NESTED) do
        local one, two, theirs = n.L1.figures[row[1]], n.L2.figures[row[1]], guide.nested[row[1]]
        t.rows[i] = {
            row[2], number(one.median), range(one), number(two.median), range(two), times(n.L2.to_L1[row[1]].median),
            number(theirs[1]), number(theirs[2]), times(theirs[2] / theirs[1]),
        }
    end
    return t
end

--- All tables of what was measured.
function M.of(result)
    local list = {}
    local function add(t) list[#list + 1] = t end
    if result.throughput then
        add(reads(result.throughput))
        add(writes(result.throughput))
    end
    if result.operations then
        add(operations(result.operations.forced,
            "Single operations, each a round trip: time-outs of 0, other names and pages (us)"))
        add(operations(result.operations.cached, "Single operations as programs call them (us)", true))
    end
    if result.protocol then
        add(protocol(result.protocol))
        add(opcodes(result.protocol))
    end
    if result.memory then add(memory(result.memory)) end
    if result.guest then add(guest(result.guest)) end
    if result.nested then add(nested(result.nested)) end
    return list
end

function M.print(list)
    for _, t in ipairs(list) do
        print("\n" .. t.title)
        if t.note then print(t.note) end
        report.print_table(table.move(t.rows, 1, #t.rows, 2, { t.columns }))
    end
end

--- As Markdown, for a README.
function M.write(list, path)
    local file <close> = assert(io.open(path, "w"))
    for _, t in ipairs(list) do
        file:write("**", t.title, "**\n\n", t.note and t.note .. "\n\n" or "")
        file:write("| ", table.concat(t.columns, " | "), " |\n|---|", ("--:|"):rep(#t.columns - 1), "\n")
        for _, row in ipairs(t.rows) do file:write("| ", table.concat(row, " | "), " |\n") end
        file:write "\n"
    end
    assert(file:close())
end

return M
