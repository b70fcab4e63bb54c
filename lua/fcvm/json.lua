-- SPDX-License-Identifier: MIT
--- JSON text to Lua values and back.
--
-- Objects and arrays are tables; `null` is `fcvm.json.null`, so that arrays keep their length. Decoded arrays
-- are marked, so that an empty one is encoded as `[]` again.
-- @module fcvm.json

local M = {}

local MAX_DEPTH = 64

-- Of decoded arrays, and of what fcvm.json.array() made.
local ARRAY = { __name = "fcvm.json.array" }

--- The value `null`.
M.null = setmetatable({}, { __tostring = function() return "null" end, __name = "fcvm.json.null" })

--- Marks a list as an array, which matters when it is empty.
-- @tparam[opt] table list
-- @treturn table the same
function M.array(list)
    return setmetatable(list or {}, ARRAY)
end

-- ---- encoding ----

local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }

local function quote(s)
    if not utf8.len(s) then error("JSON: a string is not UTF-8", 0) end
    return '"' .. s:gsub('[%c"\\\127]', function(c)
        return ESCAPES[c] or ("\\u%04x"):format(c:byte())
    end) .. '"'
end

local function number(n)
    if math.type(n) == "integer" then return ("%d"):format(n) end
    if n ~= n or n == math.huge or n == -math.huge then error("JSON: " .. n .. " is no JSON number", 0) end
    local whole = math.tointeger(n)
    if whole and whole > -2 ^ 53 and whole < 2 ^ 53 then return ("%d.0"):format(whole) end
    local short = ("%.15g"):format(n)
    return tonumber(short) == n and short or ("%.17g"):format(n)
end

local encode

-- The keys of an object in order, or nil for an array.
local function keys_of(t)
    local n = #t
    if getmetatable(t) == ARRAY or n > 0 then
        local count = 0
        for key in pairs(t) do
            count = count + 1
            if math.type(key) ~= "integer" or key < 1 or key > n then count = -1 break end
        end
        if count ~= n then error("JSON: a table has both places and names, or holes", 0) end
        return nil
    end
    local keys = {}
    for key in pairs(t) do
        if type(key) ~= "string" then error("JSON: a key is a " .. type(key), 0) end
        keys[#keys + 1] = key
    end
    table.sort(keys)
    return keys
end

local function encode_table(t, indent, depth)
    if depth > MAX_DEPTH then error("JSON: nested more than " .. MAX_DEPTH .. " deep", 0) end
    local keys = keys_of(t)
    local parts = {}
    if keys then
        for i, key in ipairs(keys) do
            parts[i] = quote(key) .. (indent and ": " or ":") .. encode(t[key], indent, depth)
        end
    else
        for i, value in ipairs(t) do parts[i] = encode(value, indent, depth) end
    end
    local open, close = keys and "{" or "[", keys and "}" or "]"
    if #parts == 0 then return open .. close end
    if not indent then return open .. table.concat(parts, ",") .. close end
    local pad = "\n" .. (" "):rep(indent * depth)
    return open .. pad .. table.concat(parts, "," .. pad) .. "\n" .. (" "):rep(indent * (depth - 1)) .. close
end

function encode(value, indent, depth)
    local kind = type(value)
    if value == nil or rawequal(value, M.null) then return "null" end
    if kind == "boolean" then return tostring(value) end
    if kind == "number" then return number(value) end
    if kind == "string" then return quote(value) end
    if kind == "table" then return encode_table(value, indent, depth + 1) end
    error("JSON: a " .. kind .. " has no JSON", 0)
end

--- JSON text of a value. Keys of objects are sorted.
-- @param value
-- @tparam[opt] integer indent spaces for each level; none: all in one line
-- @treturn string
-- @raise if it has no JSON: functions, userdata, tables with holes, strings that are not UTF-8
function M.encode(value, indent)
    local ok, text = pcall(encode, value, indent, 0)
    if not ok then error(text, 2) end
    return text
end

-- ---- decoding ----

local UNESCAPES = {
    ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t",
}

local function fail(text, at, what)
    local _, line = text:sub(1, at - 1):gsub("\n", "")
    error({ ("JSON: line %d: %s"):format(line + 1, what) }, 0)
end

local function skip(text, at)
    return text:find("[^ \t\r\n]", at) or #text + 1
end

-- \uXXXX with the digits at `at`; returns the character and what comes after.
local function unicode(text, at)
    local digits = text:match("^%x%x%x%x", at)
    if not digits then fail(text, at, "four digits are expected after \\u") end
    local code, after = tonumber(digits, 16), at + 4
    if code >= 0xdc00 and code <= 0xdfff then fail(text, at, "half a surrogate pair") end
    if code >= 0xd800 and code <= 0xdbff then
        local low = tonumber(text:match("^\\u(%x%x%x%x)", after) or "0", 16)
        if low < 0xdc00 or low > 0xdfff then fail(text, at, "half a surrogate pair") end
        code, after = 0x10000 + (code - 0xd800) * 0x400 + (low - 0xdc00), after + 6
    end
    return utf8.char(code), after
end

-- The string whose first character is at `at`; returns what comes after its end quote.
local function decode_string(text, at)
    local parts = {}
    while true do
        local stop = text:find('[%c"\\]', at)
        if not stop then fail(text, at, "a string does not end") end
        parts[#parts + 1] = text:sub(at, stop - 1)
        local c = text:sub(stop, stop)
        if c == '"' then return table.concat(parts), stop + 1 end
        if c == "\127" then
            parts[#parts + 1], at = c, stop + 1
        elseif c ~= "\\" then
            fail(text, stop, "a control character in a string")
        else
            c = text:sub(stop + 1, stop + 1)
            if c == "u" then
                parts[#parts + 1], at = unicode(text, stop + 2)
            elseif UNESCAPES[c] then
                parts[#parts + 1], at = UNESCAPES[c], stop + 2
            else
                fail(text, stop, "an unknown escape in a string")
            end
        end
    end
end

local function decode_number(text, at)
    local digits = text:match("^-?%d+%.?%d*[eE]?[+-]?%d*", at)
    local value = digits and not digits:find "^-?0%d" and not digits:find "%.[eE]" and not digits:find "%.$"
        and tonumber(digits)
    if not value then fail(text, at, "a value is expected") end
    return value, at + #digits
end

local decode

-- Members of an array or object from `at` on, each read by read(at), up to the closing character.
local function decode_members(text, at, close, read)
    at = skip(text, at)
    if text:sub(at, at) == close then return at + 1 end
    while true do
        at = skip(text, read(at))
        local c = text:sub(at, at)
        if c == close then return at + 1 end
        if c ~= "," then fail(text, at, 'expected "," or "' .. close .. '"') end
        at = skip(text, at + 1)
    end
end

local function decode_array(text, at, depth)
    local list, n = M.array(), 0
    at = decode_members(text, at, "]", function(from)
        local value, after = decode(text, from, depth)
        n = n + 1
        list[n] = value
        return after
    end)
    return list, at
end

local function decode_object(text, at, depth)
    local object = {}
    at = decode_members(text, at, "}", function(from)
        if text:sub(from, from) ~= '"' then fail(text, from, "a name in quotes is expected") end
        local key, after = decode_string(text, from + 1)
        if object[key] ~= nil then fail(text, from, ("the name %q comes twice"):format(key)) end
        after = skip(text, after)
        if text:sub(after, after) ~= ":" then fail(text, after, 'expected ":"') end
        object[key], after = decode(text, skip(text, after + 1), depth)
        return after
    end)
    return object, at
end

function decode(text, at, depth)
    if depth > MAX_DEPTH then fail(text, at, "nested more than " .. MAX_DEPTH .. " deep") end
    local c = text:sub(at, at)
    if c == "{" then return decode_object(text, at + 1, depth + 1) end
    if c == "[" then return decode_array(text, at + 1, depth + 1) end
    if c == '"' then return decode_string(text, at + 1) end
    if text:find("^true", at) then return true, at + 4 end
    if text:find("^false", at) then return false, at + 5 end
    if text:find("^null", at) then return M.null, at + 4 end
    return decode_number(text, at)
end

--- The value of a JSON text.
-- @tparam string text
-- @return[1] the value
-- @treturn[2] nil if it is no JSON
-- @treturn[2] string what is wrong, and in which line
function M.decode(text)
    if type(text) ~= "string" then
        error("fcvm.json.decode: expected a string, got a " .. type(text), 2)
    end
    local function whole()
        local value, at = decode(text, skip(text, 1), 0)
        at = skip(text, at)
        if at <= #text then fail(text, at, "something follows the value") end
        return value
    end
    local ok, value = pcall(whole)
    if ok then return value end
    if type(value) ~= "table" then error(value, 0) end
    return nil, value[1]
end

return M
