-- SPDX-License-Identifier: MIT
-- Who is measured, and how: each takes its turn in each round, so that what a machine does besides meets all alike, and
-- ratios are those of one round.
--
-- A subject: { name=, label=, run = function(work, timeout, count) -> text }: the output of fuse-volume WORK (of `count` single
-- operations) on its folder, freshly mounted where it is one that is mounted; timeout: seconds that names and attributes
-- may be taken for granted.
local fcvm = require "fcvm"
local measure = require "fcvm.measure"

local M = {}

--- Runs a shell's line: what it printed.
function M.sh(line)
    local pipe <close> = assert(io.popen(line .. " 2>&1"))
    local text = pipe:read "a"
    if not pipe:close() then error(("%s: %s"):format(line, text), 0) end
    return text
end

-- Per figure the spread of its values.
local function spreads(rounds)
    local all = {}
    for key in pairs(rounds[1]) do
        local values = {}
        for i, round in ipairs(rounds) do values[i] = round[key] end
        all[key] = measure.spread(values)
    end
    return all
end

local function ratios(rounds, base)
    local all = {}
    for i, round in ipairs(rounds) do
        all[i] = {}
        for key, value in pairs(round) do
            if base[i][key] and base[i][key] > 0 then all[i][key] = value / base[i][key] end
        end
    end
    return spreads(all)
end

--- The figures of all subjects, in their order: { name=, label=, figures = { read = {median,min,max}, ... }, and the same as
-- ratios to each of the subjects in `against`: { to_host = { read = ... } } }.
function M.collect(subjects, rounds, work, timeout, against, count)
    local samples, results = {}, {}
    for _, s in ipairs(subjects) do samples[s.name] = {} end
    for round = 1, rounds do
        for _, s in ipairs(subjects) do
            samples[s.name][round] = assert(fcvm.json.decode(s.run(work, timeout, count)))
        end
    end
    for i, s in ipairs(subjects) do
        local r = { name = s.name, label = s.label, readers = s.readers, figures = spreads(samples[s.name]) }
        for _, base in ipairs(against) do
            if samples[base] then r["to_" .. base] = ratios(samples[s.name], samples[base]) end
        end
        results[i], results[s.name] = r, r
    end
    return results
end

--- A result without the names that its lists are indexed by as well: JSON has no room for them.
function M.plain(value)
    if type(value) ~= "table" then return value end
    local copy = {}
    if value[1] ~= nil then
        for i, v in ipairs(value) do copy[i] = M.plain(v) end
    else
        for k, v in pairs(value) do copy[k] = M.plain(v) end
    end
    return copy
end

--- And with them again.
function M.index(list)
    for _, s in ipairs(list) do list[s.name] = s end
    return list
end

return M
