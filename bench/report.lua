-- SPDX-License-Identifier: MIT
-- A bench's result as a table, as JSON, and as a picture: what they share, and all of clone.lua's.
local fcvm = require "fcvm"
local goals = require "goals"
local measure = require "fcvm.measure"

local M = {}

-- The median of each figure over the runs, beside its goal: in the order of the goals, and by key.
local function figures(runs)
    local list, named = {}, {}
    for i, goal in ipairs(goals) do
        local key, values = goal[1], {}
        for j, run in ipairs(runs) do values[j] = run[key] end
        local f = measure.spread(values)
        f.what, f.unit, f.goal, f.prototype = goal[2], goal[3], goal.goal, goal.prototype
        if f.goal then f.met = f.median <= f.goal end
        list[i], named[key] = f, f
    end
    return list, named
end

-- How many times as much the rival takes, a guest.
local function ratios(f, plain, count)
    local per = count / plain.count
    local source_s = f.boot_s.median + (f.save_ms.median + f.prepare_ms.median) / 1000
    return {
        ready = plain.ready_s * per / f.ready_s.median,
        ready_with_boot = plain.ready_s * per / (f.ready_s.median + source_s),
        pss = plain.pss_mb * per / f.pss_mb.median,
        available = plain.available_fall_mb * per / f.available_fall_mb.median,
    }
end

-- ---- text ----

--- As many digits as mean something; "" for nil.
function M.number(n)
    if not n then return "" end
    return (math.abs(n) >= 100 and "%.0f" or math.abs(n) >= 10 and "%.1f" or "%.2f"):format(n)
end
local number = M.number

--- Rows of texts, the first column to the left.
function M.print_table(rows)
    local widths = {}
    for _, row in ipairs(rows) do
        for i, cell in ipairs(row) do widths[i] = math.max(widths[i] or 0, utf8.len(cell)) end
    end
    for _, row in ipairs(rows) do
        local line = {}
        for i, cell in ipairs(row) do
            local fill = (" "):rep(widths[i] - utf8.len(cell))
            line[i] = i == 1 and cell .. fill or fill .. cell
        end
        print((table.concat(line, "  "):gsub("%s+$", "")))
    end
end
local print_table = M.print_table

local function print_figures(list)
    local rows = { { "", "unit", "median", "min", "max", "goal", "prototype", "" } }
    for _, f in ipairs(list) do
        rows[#rows + 1] = {
            f.what, f.unit, number(f.median), number(f.min), number(f.max), number(f.goal), number(f.prototype),
            f.met == false and "MISSED" or f.met and "met" or "",
        }
    end
    print_table(rows)
end

local function print_rival(result)
    local p, r = result.plain, result.ratios
    print(("\n%d cold boots with plain QEMU (%s, same kernel, initrd and memory) until init was started, against ours:")
        :format(p.count, p.machine))
    print_table {
        { "all up", number(p.ready_s), "s", ("%.1f times as long"):format(r.ready) },
        { "  with the boot of our clones' source", "", "", ("%.1f times as long"):format(r.ready_with_boot) },
        { "each, median", number(p.boot_s.median), "s",
          ("%s to %s"):format(number(p.boot_s.min), number(p.boot_s.max)) },
        { "PSS", number(p.pss_mb), "MiB", ("%.1f times as much"):format(r.pss) },
        { "fall of MemAvailable", number(p.available_fall_mb), "MiB", ("%.1f times as much"):format(r.available) },
    }
end

local function print_all(result, list)
    local loads = {}
    for i, run in ipairs(result.runs) do loads[i] = run.load end
    local load = measure.spread(loads)
    print(("%s/%s %s, %d processors, kernel %s, guests of %d MiB, %d clones; %d runs at a load of %.1f to %.1f\n")
        :format(result.driver, result.accel, result.version, result.processors, result.kernel, result.memory_mb,
            result.count, #result.runs, load.min, load.max))
    print_figures(list)
    if result.plain then print_rival(result) end
end

-- ---- the picture ----

--- Has gnuplot draw a script; without it there is no picture, and that is said.
function M.draw(path)
    if not os.execute(("gnuplot '%s'"):format(path)) then
        io.stderr:write "no picture: gnuplot is missing, or failed (apt-get install gnuplot-nox)\n"
    end
end

local function bars(file, name, rows)
    file:write("$", name, " << EOD\n")
    for i, row in ipairs(rows) do
        file:write(("%d %.6g %.6g %.6g %d \"%s\" \"%s\"\n"):format(i, row.value, row.min or row.value,
            row.max or row.value, row.colour, row[1], row.label))
    end
    file:write "EOD\n"
end

local OURS, GOAL, PLAIN, OVER = 0x2f6f9f, 0xb8c4ce, 0xc0603a, 0xd04040

local function bar(name, f, unit, colour)
    local label = number(f.median) .. " " .. unit
    return { name, value = f.median, min = f.min, max = f.max, label = label, colour = colour }
end

local function flat(name, value, unit, colour)
    return { name, value = value, label = number(value) .. " " .. unit, colour = colour }
end

local function rival_rows(result)
    local all, p = result.figures, result.plain
    local times = {
        bar("agents", all.agents_s, "s", OURS), bar("first exec", all.ready_s, "s", OURS),
        flat("goal", all.ready_s.goal, "s", GOAL),
    }
    local memory = {
        bar("PSS", all.pss_mb, "MiB", OURS), flat("goal", all.pss_mb.goal, "MiB", GOAL),
    }
    if p then
        local per = result.count / p.count
        times[#times + 1] = flat("plain QEMU", p.ready_s * per, "s", PLAIN)
        memory[#memory + 1] = flat("plain QEMU", p.pss_mb * per, "MiB", PLAIN)
    end
    return times, memory
end

-- Each figure that has a goal, as a share of it.
local function goal_rows(all)
    local rows = {}
    for i = #all, 1, -1 do
        local f = all[i]
        if f.goal then
            rows[#rows + 1] = {
                f.what, value = f.median / f.goal, min = f.min / f.goal, max = f.max / f.goal,
                label = ("%s of %s %s"):format(number(f.median), number(f.goal), f.unit),
                colour = f.met and OURS or OVER,
            }
        end
    end
    return rows
end

local PICTURE = [[
set encoding utf8
set style fill solid noborder
unset key
set border 3 lc rgb "#808080"
set tics nomirror textcolor rgb "#303030"
set multiplot
set label 1 "%s" at screen 0.5,0.965 center font ",15"
set label 2 "%s" at screen 0.5,0.925 center font ",10" textcolor rgb "#606060"

# left: the fifty
set logscale y
set grid y lc rgb "#e4e4e4"
set xtics rotate by 0 font ",10"
set boxwidth 0.62
set lmargin at screen 0.07
set rmargin at screen 0.40
set tmargin at screen 0.84
set bmargin at screen 0.54
set title "until %d guests are up (s, log)"
set xrange [0.4:4.6]
set yrange [%g:%g]
plot $times using 1:2:5:xtic(6) with boxes lc rgb variable, \
	$times using 1:3:(0):($4-$3) with vectors nohead lw 2 lc rgb "#202020", \
	$times using 1:4:7 with labels offset 0,0.7 font ",10"
unset label 1
unset label 2
set tmargin at screen 0.42
set bmargin at screen 0.10
set title "memory of %d guests (PSS in MiB, log)"
set xrange [0.4:%d.6]
set yrange [%g:%g]
plot $memory using 1:2:5:xtic(6) with boxes lc rgb variable, \
	$memory using 1:3:(0):($4-$3) with vectors nohead lw 2 lc rgb "#202020", \
	$memory using 1:4:7 with labels offset 0,0.7 font ",10"

# right: each goal
unset logscale y
unset xtics
unset ytics
set logscale x
set xtics nomirror ("1%%%%" 0.01, "3%%%%" 0.03, "10%%%%" 0.1, "30%%%%" 0.3, "goal" 1) font ",10" textcolor rgb "#303030"
set grid noy x lc rgb "#e4e4e4"
set border 1 lc rgb "#808080"
set lmargin at screen 0.68
set rmargin at screen 0.97
set tmargin at screen 0.84
set bmargin at screen 0.10
set title "each figure as a share of its goal (log)"
set xrange [0.01:15]
set yrange [0.4:%g]
set arrow 1 from 1,0.4 to 1,%g nohead back lc rgb "#404040" dt 2
set ytics nomirror scale 0 font ",10" textcolor rgb "#303030"
plot $goals using (0.01):1:(0.01):2:($1-0.32):($1+0.32):5:ytic(6) with boxxyerror lc rgb variable, \
	$goals using 3:1:($4-$3):(0) with vectors nohead lw 2 lc rgb "#202020", \
	$goals using ($4 > 1.8 ? $4*1.1 : 2):1:7 with labels left font ",9" textcolor rgb "#303030"
unset multiplot
]]

local function write_picture(result, list, dir)
    local path = dir .. "/clone.gnuplot"
    local file <close> = assert(io.open(path, "w"))
    local times, memory = rival_rows(result)
    local goal = goal_rows(list)
    bars(file, "times", times)
    bars(file, "memory", memory)
    bars(file, "goals", goal)
    local picture = PICTURE:format(
        ("%d clones of a running guest of %d MiB"):format(result.count, result.memory_mb),
        ("%s/%s %s, %d processors, medians (lines: min to max) of %d runs"):format(result.driver, result.accel,
            result.version, result.processors, #result.runs),
        result.count, times[1].value / 3, times[#times].value * 3,
        result.count, #memory, memory[1].value / 3, memory[#memory].value * 3,
        #goal + 0.7, #goal + 0.7)
    for _, kind in ipairs {
        "svg size 1200,640 dynamic background rgb 'white' font 'sans,12'",
        "pngcairo size 1200,640 font 'sans,10'",
    } do
        file:write("set terminal ", kind, "\nset output '", dir, "/clone.", kind:sub(1, 3), "'\nreset\n", picture,
            "unset output\n")
    end
    assert(file:close())
    M.draw(path)
end

--- Writes a result as JSON.
function M.write_json(result, path)
    local file <close> = assert(io.open(path, "w"))
    assert(file:write(fcvm.json.encode(result, 2), "\n"))
    assert(file:close())
end

--- Writes all of it: the table to stdout, the rest into the folder.
function M.write(result, dir)
    local list, named = figures(result.runs)
    result.figures = named
    if result.plain then result.ratios = ratios(named, result.plain, result.count) end
    print_all(result, list)
    M.write_json(result, dir .. "/clone.json")
    write_picture(result, list, dir)
end

return M
