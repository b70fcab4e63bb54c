-- SPDX-License-Identifier: MIT
--- Values as the prompt shows them.
-- @module fcvm.pretty

local M = {}

local MAX_STRING = 200 -- bytes of a string within a table
local MAX_LINES = 40 -- bytes of one of several lines, such as a program's output
local MAX_ITEMS = 100 -- of a table
local MAX_DEPTH = 6

-- These come first, in this order; other names follow by alphabet.
local ORDER = {}
for i, name in ipairs { "id", "name", "state", "code", "msg", "ok", "status", "signal", "stdout", "stderr" } do
    ORDER[name] = i
end

local RESERVED = {}
for word in ([[and break do else elseif end false for function goto if in local nil not or repeat return then
    true until while]]):gmatch "%a+" do
    RESERVED[word] = true
end

local ESCAPES = { ["\n"] = "\\n", ["\t"] = "\\t", ["\r"] = "\\r", ['"'] = '\\"', ["\\"] = "\\\\" }

-- In quotes, in one line, as Lua would read it.
local function quote(s)
    local cut = ""
    if #s > MAX_LINES and s:find "\n." then
        local stop = s:sub(1, MAX_LINES):match ".*()\n"
        if stop then s, cut = s:sub(1, stop), "..." end
    end
    if #s > MAX_STRING then
        local stop = MAX_STRING
        -- not in the middle of a character
        while stop > 0 and s:byte(stop + 1) & 0xc0 == 0x80 do stop = stop - 1 end
        s, cut = s:sub(1, stop), "..."
    end
    s = s:gsub('[%c"\\\127]', function(c)
        return ESCAPES[c] or ("\\x%02x"):format(c:byte())
    end)
    if not utf8.len(s) then
        s = s:gsub("[\128-\255]", function(c) return ("\\x%02x"):format(c:byte()) end)
    end
    return '"' .. s .. cut .. '"'
end

local function before(a, b)
    local ia, ib = ORDER[a], ORDER[b]
    if ia or ib then return (ia or math.huge) < (ib or math.huge) end
    local ta, tb = type(a), type(b)
    if ta ~= tb then return ta < tb end
    if ta == "number" or ta == "string" then return a < b end
    return tostring(a) < tostring(b)
end

local function key_text(key)
    if type(key) ~= "string" then return "[" .. tostring(key) .. "]" end
    if key:find "^[%a_][%w_]*$" and not RESERVED[key] then return key end
    return "[" .. quote(key) .. "]"
end

local show

-- The members as texts.
local function members(t, state, depth)
    local list, keys = {}, {}
    local n = #t
    for i = 1, math.min(n, MAX_ITEMS) do list[i] = show(t[i], state, depth) end
    for key in next, t do
        if not (math.type(key) == "integer" and key >= 1 and key <= n) then keys[#keys + 1] = key end
    end
    table.sort(keys, before)
    for _, key in ipairs(keys) do
        if #list >= MAX_ITEMS then break end
        list[#list + 1] = key_text(key) .. " = " .. show(rawget(t, key), state, depth)
    end
    if n + #keys > #list then list[#list + 1] = ("... %d more"):format(n + #keys - #list) end
    return list
end

local function show_table(t, state, depth)
    local meta = getmetatable(t)
    if type(meta) == "table" and rawget(meta, "__tostring") then return tostring(t) end
    if state.open[t] then return "{ its own table }" end
    if depth >= MAX_DEPTH then return "{ ... }" end
    state.open[t] = true
    local list = members(t, state, depth + 1)
    state.open[t] = nil
    if #list == 0 then return "{}" end
    local line = "{ " .. table.concat(list, ", ") .. " }"
    if #line + 4 * depth <= state.width and not line:find "\n" then return line end
    local pad = ("    "):rep(depth + 1)
    return "{\n" .. pad .. table.concat(list, ",\n" .. pad) .. ",\n" .. ("    "):rep(depth) .. "}"
end

function show(value, state, depth)
    if type(value) == "string" then return quote(value) end
    if type(value) == "table" then return show_table(value, state, depth) end
    return tostring(value)
end

--- A value's text: tables with their members, strings in quotes; a string of several lines as it is.
-- @param value
-- @tparam[opt=100] integer width columns
-- @treturn string
function M.format(value, width)
    if type(value) == "string" and value:find "\n" and utf8.len(value) and not value:find "[%z\1-\8\11-\31]" then
        return (value:gsub("\n$", ""))
    end
    return show(value, { open = {}, width = width or 100 }, 0)
end

return M
