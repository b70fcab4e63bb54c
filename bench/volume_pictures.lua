-- SPDX-License-Identifier: MIT
-- The figures of volume.lua as pictures, by gnuplot: SVG, and PNG to look at.
local guide = require "guide"
local report = require "report"

local M = {}

local OURS, AGAIN, WRITES, RIVAL, GUIDE = "#2f6f9f", "#7fb0d0", "#4a9a5a", "#c0603a", "#909090"

local STYLE = [[
set encoding utf8
set border 3 lc rgb "#808080"
set tics nomirror textcolor rgb "#303030"
set grid y lc rgb "#e4e4e4"
set key font ",10" textcolor rgb "#303030"
]]

local function data(lines, name, rows)
    lines[#lines + 1] = "$" .. name .. " << EOD"
    for _, row in ipairs(rows) do lines[#lines + 1] = table.concat(row, " ") end
    lines[#lines + 1] = "EOD"
end

local function draw(dir, name, width, height, lines)
    local path = dir .. "/" .. name .. ".gnuplot"
    local file <close> = assert(io.open(path, "w"))
    local body = STYLE .. table.concat(lines, "\n") .. "\n"
    for _, kind in ipairs {
        ("svg size %d,%d dynamic background rgb 'white' font 'sans,12'"):format(width, height),
        ("pngcairo size %d,%d font 'sans,10'"):format(width, height),
    } do
        file:write("reset\nset terminal ", kind, "\nset output '", dir, "/", name, ".", kind:sub(1, 3), "'\n", body,
            "unset multiplot\nunset output\n")
    end
    assert(file:close())
    report.draw(path)
end

-- ---- throughput: ratio to the host by readers ----

local function by_readers(results, key)
    local rows = {}
    for _, s in ipairs(results) do
        local r = s.readers and s.to_host[key]
        if r then rows[#rows + 1] = { s.readers, r.median, r.min, r.max } end
    end
    return rows
end

local function theirs(ratios)
    local rows = {}
    for readers, ratio in pairs(ratios) do rows[#rows + 1] = { readers, ratio } end
    table.sort(rows, function(a, b) return a[1] < b[1] end)
    return rows
end

local function panel(lines, title, curves, flat)
    local plots = {}
    for _, c in ipairs(curves) do
        if c.spread then
            plots[#plots + 1] = ("$%s using 1:2:3:4 with yerrorlines lw 2 pt 7 ps 0.6 lc rgb '%s' title '%s'"):format(c.name,
                c.colour, c.title)
        else
            plots[#plots + 1] = ("$%s using 1:2 with linespoints lw 1.5 pt 6 ps 0.6 dt 2 lc rgb '%s' title '%s'"):format(c.name,
                c.colour, c.title)
        end
    end
    for _, f in ipairs(flat) do
        plots[#plots + 1] = ("%g with lines lw 1.5 lc rgb '%s' title '%s'"):format(f.value, f.colour, f.title)
    end
    lines[#lines + 1] = ("set title '%s'\nplot %s"):format(title, table.concat(plots, ", \\\n\t"))
end

local function throughput(results, dir)
    local lines, libfuse = {}, results.libfuse.to_host
    data(lines, "read", by_readers(results, "read"))
    data(lines, "again", by_readers(results, "again"))
    data(lines, "write", by_readers(results, "write_fsync"))
    data(lines, "gread", theirs(guide.read_ratio))
    data(lines, "gwrite", theirs(guide.write_ratio))
    lines[#lines + 1] = [[
set multiplot layout 1,2 title "256 threads, 1,024 files of 4 KiB: time as a multiple of the host's own (log)" font ",14"
set logscale x 2
set logscale y
set xrange [0.8:320]
set yrange [0.8:80]
set xlabel "readers"
set xtics (1, 2, 4, 8, 16, 32, 64, 128, 256)
set ytics (1, 2, 3, 5, 10, 20, 50)]]
    panel(lines, "reads", {
        { name = "read", colour = OURS, title = "ours, first", spread = true },
        { name = "again", colour = AGAIN, title = "ours, again", spread = true },
        { name = "gread", colour = GUIDE, title = "the guide (64 cores)" },
    }, { { value = libfuse.read.median, colour = RIVAL, title = "libfuse in process, first" } })
    panel(lines, "writes with fsync", {
        { name = "write", colour = WRITES, title = "ours", spread = true },
        { name = "gwrite", colour = GUIDE, title = "the guide (64 cores)" },
    }, { { value = libfuse.write_fsync.median, colour = RIVAL, title = "libfuse in process" } })
    draw(dir, "volume-throughput", 1100, 440, lines)
end

-- ---- bars: groups of operations, a bar for each subject ----

local LABELS = {
    { "getattr", "getattr" }, { "lookup", "lookup" }, { "lookup_missing", "missing" },
    { "read_4k", "read 4K" }, { "write_4k", "write 4K" }, { "open_close", "open+close" }, { "readdir", "readdir" },
    { "create_unlink", "create+unlink" },
}

local function value_of(subject, key)
    local f = subject.figures[key]
    return { f.median, f.min, f.max }
end

-- keys: { { key, label }, ... }; subjects: { { subject, colour, title }, ... }
local function bars(lines, name, title, keys, subjects, value)
    local plots, width, tics = {}, 0.8 / #subjects, {}
    for i, s in ipairs(subjects) do
        local rows = {}
        for j, key in ipairs(keys) do
            local v = value(s[1], key[1])
            rows[j] = { j - 0.4 + (i - 0.5) * width, v[1], v[2], v[3] }
        end
        data(lines, name .. i, rows)
        plots[#plots + 1] = ("$%s%d using 1:2 with boxes fs solid noborder lc rgb '%s' title '%s'"):format(name, i, s[2], s[3])
        plots[#plots + 1] = ("$%s%d using 1:3:(0):($4-$3) with vectors nohead lw 1.5 lc rgb '#202020' notitle"):format(name, i)
    end
    for j, key in ipairs(keys) do tics[j] = ("'%s' %d"):format(key[2], j) end
    lines[#lines + 1] = ("set boxwidth %g\nset xrange [0.4:%g]\nset xtics (%s)\nset title '%s'\nplot %s"):format(width * 0.92,
        #keys + 0.6, table.concat(tics, ", "), title, table.concat(plots, ", \\\n\t"))
end

local function operations(results, dir)
    local lines = { [[
set multiplot layout 2,1 title "single operations, us (log; lines: min to max of the rounds)" font ",14"
set logscale y
set key outside top right horizontal]] }
    for _, kind in ipairs { { "forced", "each a round trip" }, { "cached", "as programs call them" } } do
        local all = results[kind[1]]
        bars(lines, kind[1], kind[2], LABELS, {
            { all.host, GUIDE, "host" }, { all.libfuse, RIVAL, "libfuse in process" }, { all.readers_1, OURS, "ours, 1 reader" },
            { all.readers_256, AGAIN, "ours, 256 readers" },
        }, value_of)
    end
    draw(dir, "volume-operations", 1100, 760, lines)
end

local GUEST_COLOURS = { ours = OURS, ours_256 = AGAIN, virtiofsd = WRITES, virtio_9p = RIVAL }

local function guest(g, dir)
    local function ratio(subject, key)
        local r = subject.to_tmpfs[key]
        return { r.median, r.min, r.max }
    end
    local function subjects(list)
        local chosen = {}
        for _, s in ipairs(list) do
            if GUEST_COLOURS[s.name] then chosen[#chosen + 1] = { s, GUEST_COLOURS[s.name], s.label } end
        end
        return chosen
    end
    local lines = { [[
set multiplot layout 2,1 title "in a guest: time as a multiple of its own tmpfs (log)" font ",14"
set logscale y
set key outside top right horizontal]] }
    bars(lines, "t", "256 threads, 1,024 files of 4 KiB", {
        { "read", "read, first" }, { "again", "read, again" }, { "write_fsync", "write and fsync" },
    }, subjects(g.throughput), ratio)
    bars(lines, "f", "single operations, each a round trip", LABELS, subjects(g.forced), ratio)
    draw(dir, "volume-guest", 1100, 760, lines)
end

--- All pictures of what was measured.
function M.draw(result, dir)
    if result.throughput then throughput(result.throughput, dir) end
    if result.operations then operations(result.operations, dir) end
    if result.guest then guest(result.guest, dir) end
end

return M
