-- SPDX-License-Identifier: MIT
--- Checks of what users pass in. Every mistake raises, in the user's line, with words that help.
-- @module fcvm.options

local core = require "fcvm.core"
local size = require "fcvm.size"

local M = {}

-- ---- spelling ----

-- How many letters to change, add, drop or swap with their neighbour to get from a to b.
local function distance(a, b)
    local before, last = nil, {}
    for j = 0, #b do last[j] = j end
    for i = 1, #a do
        local row = { [0] = i }
        for j = 1, #b do
            local same = a:byte(i) == b:byte(j)
            local d = math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (same and 0 or 1))
            if before and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
                d = math.min(d, before[j - 2] + 1)
            end
            row[j] = d
        end
        before, last = last, row
    end
    return last[#b]
end

--- The known name nearest to one that is not known.
-- @tparam string name
-- @tparam table known a set: names are its string keys
-- @treturn ?string nil if none is near
function M.nearest(name, known)
    local best, least
    for candidate in pairs(known) do
        if type(candidate) == "string" then
            local d = distance(name:lower(), candidate:lower())
            if not least or d < least or (d == least and candidate < best) then best, least = candidate, d end
        end
    end
    if least and least <= math.max(1, (#name + 1) // 3) then return best end
    return nil
end

local function names_of(known)
    local names = {}
    for name in pairs(known) do
        if type(name) == "string" then names[#names + 1] = name end
    end
    table.sort(names)
    return table.concat(names, ", ")
end

--- What to say of an unknown name.
-- @tparam string name
-- @tparam table known a set
-- @treturn string `did you mean "memory"?`, or the list of all
function M.suggest(name, known)
    local near = M.nearest(name, known)
    if near then return ("did you mean %q?"):format(near) end
    if next(known) == nil then return "there are none" end
    return "there are: " .. names_of(known)
end

-- A value as an error message shows it.
local function show(value)
    local kind = type(value)
    if kind == "string" then
        if #value > 40 then value = value:sub(1, 37) .. "..." end
        return ("the string %q"):format(value):gsub("\n", "n")
    elseif kind == "number" or kind == "boolean" then
        return tostring(value)
    end
    return "a " .. kind
end

-- ---- kinds of values: each returns the value as the core wants it, or nil and what is expected (or nil, nil and what is
-- wrong) ----

function M.string(v)
    if type(v) == "string" and not v:find "\0" then return v end
    return nil, "a string"
end

-- Any bytes.
function M.data(v)
    if type(v) == "string" then return v end
    return nil, "a string"
end

function M.boolean(v)
    if type(v) == "boolean" then return v end
    return nil, "true or false"
end

-- A VM's handle.
function M.vm(v)
    if core.kind(v) == "vm" then return v end
    return nil, "a VM"
end

function M.func(v)
    if type(v) == "function" then return v end
    return nil, "a function"
end

function M.size(v)
    local bytes = size.parse(v)
    if bytes then return bytes end
    return nil, [[bytes or a size such as "512M"]]
end

function M.seconds(v)
    if type(v) == "number" and v >= 0 then return v end
    return nil, "a number of seconds, not negative"
end

-- A whole number between the two.
function M.count(least, most)
    return function(v)
        local n = type(v) == "number" and math.tointeger(v)
        if n and n >= least and n <= most then return n end
        return nil, ("a whole number from %d to %d"):format(least, most)
    end
end

-- A list without holes of strings without NULs.
function M.strings(v)
    if type(v) ~= "table" then return nil, "a list of strings" end
    local list = {}
    for i, s in ipairs(v) do
        if type(s) ~= "string" or s:find "\0" then return nil, "a list of strings" end
        list[i] = s
    end
    for key in pairs(v) do
        if not list[key] then return nil, "a list of strings" end
    end
    return list
end

-- { NAME = value } or { "NAME=value" }, also both.
function M.env(v)
    local expected = [[a table { NAME = "value" } or a list { "NAME=value" }]]
    if type(v) ~= "table" then return nil, expected end
    local list = {}
    for i, s in ipairs(v) do
        if type(s) ~= "string" or not s:find "^[^=]+=" or s:find "\0" then return nil, expected end
        list[i] = s
    end
    local n = #list
    for name, value in pairs(v) do
        if math.type(name) ~= "integer" or name < 1 or name > n then
            local text = type(value) == "number" and tostring(value) or value
            if type(name) ~= "string" or name == "" or name:find "[=\0]" then return nil, expected end
            if type(text) ~= "string" or text:find "\0" then return nil, expected end
            list[#list + 1] = name .. "=" .. text
        end
    end
    return list
end

function M.list(v)
    if type(v) == "table" then return v end
    return nil, "a list"
end

-- A terminal: { rows =, cols = }, or true.
function M.tty(v)
    if v == true then return { rows = 24, cols = 80 } end
    if v == false then return false end
    local expected = "true or a table { rows =, cols = }"
    if type(v) ~= "table" then return nil, expected end
    local whole = M.count(1, 65535)
    local rows, cols = whole(v.rows or 24), whole(v.cols or 80)
    for key in pairs(v) do
        if key ~= "rows" and key ~= "cols" then return nil, expected end
    end
    if rows and cols then return { rows = rows, cols = cols } end
    return nil, expected
end

-- ---- checks ----

-- error() counts the frames between the user's line and here: level 1 is who called the check.
local function fail(level, fmt, ...)
    error(fmt:format(...), level + 2)
end

--- Checks one argument.
-- @tparam string what the function, for the message: `"vm:read_file"`
-- @tparam string name of the argument
-- @tparam function kind one of this module's kinds
-- @param value
-- @tparam[opt=2] integer level whose fault it is: 2 is the caller of who calls this
-- @return the value as the core wants it
function M.argument(what, name, kind, value, level)
    local checked, expected, wrong = kind(value)
    if checked == nil then
        fail(level or 2, "%s: %s: %s", what, name, wrong or ("expected %s, got %s"):format(expected, show(value)))
    end
    return checked
end

--- Looks at an options table, or a table within one, and raises nothing.
-- @tparam table spec option names to kinds. A kind returns the value, or nil and what is expected, or nil, nil and what
-- is wrong.
-- @tparam table given
-- @treturn[1] table a new table of the checked values
-- @treturn[2] nil
-- @treturn[2] string what is wrong
function M.examine(spec, given)
    local checked = {}
    for key, value in pairs(given) do
        local kind = type(key) == "string" and spec[key]
        if not kind then
            if type(key) ~= "string" then return nil, "options have names, and the table has the key " .. show(key) end
            return nil, ("unknown option %q; %s"):format(key, M.suggest(key, spec))
        end
        local good, expected, wrong = kind(value)
        if good == nil then
            return nil, ("option %q: %s"):format(key, wrong or ("expected %s, got %s"):format(expected, show(value)))
        end
        checked[key] = good
    end
    return checked
end

--- Checks an options table. A positional part is refused.
-- @tparam string what the function, for messages
-- @tparam table spec option names to kinds
-- @tparam ?table given nil is the empty table
-- @tparam[opt=2] integer level whose fault it is: 2 is the caller of who calls this
-- @treturn table a new table of the checked values
function M.check(what, spec, given, level)
    level = level or 2
    if given == nil then return {} end
    if type(given) ~= "table" or getmetatable(given) then
        fail(level, "%s: expected a table of options, got %s", what, show(given))
    end
    local checked, wrong = M.examine(spec, given)
    if not checked then fail(level, "%s: %s", what, wrong) end
    return checked
end

--- Checks a command with options: `{ "ls", "/", timeout = 5 }`. A string is a command line for `sh -c`.
-- @tparam string what the function, for messages
-- @tparam table spec option names to kinds
-- @tparam table|string given
-- @treturn {string,...} the arguments
-- @treturn table the checked options
function M.command(what, spec, given)
    if type(given) == "string" then given = { "sh", "-c", given } end
    if type(given) ~= "table" then
        fail(2, [[%s: expected a table such as { "ls", "/" }, got %s]], what, show(given))
    end
    local argv, named = {}, {}
    for i, word in ipairs(given) do
        if type(word) == "number" then word = tostring(word) end
        if type(word) ~= "string" or word:find "\0" then
            fail(2, "%s: argument %d: expected a string, got %s", what, i, show(word))
        end
        argv[i] = word
    end
    if #argv == 0 then fail(2, [[%s: no command is given: %s { "ls", "/" }]], what, what) end
    for key, value in pairs(given) do
        if not (math.type(key) == "integer" and argv[key]) then named[key] = value end
    end
    return argv, M.check(what, spec, named, 3)
end

--- Checks the one option of functions that have nothing but a timeout: a number of seconds or `{ timeout = 5 }`.
-- @tparam string what the function, for messages
-- @tparam ?number|table given
-- @treturn ?number seconds; nil: the function's default
function M.timeout(what, given)
    if type(given) == "number" then return M.argument(what, "timeout", M.seconds, given, 3) end
    return M.check(what, { timeout = M.seconds }, given, 3).timeout
end

return M
