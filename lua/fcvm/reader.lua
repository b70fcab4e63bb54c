-- SPDX-License-Identifier: MIT
-- Lines and pieces out of a stream of bytes. One reader at a time: what is read ahead is kept here. For the inner
-- modules only.

local core = require "fcvm.core"

local Reader = {}
Reader.__index = Reader

local CHUNK = 65536

-- receive(size, timeout): at most size bytes, "" at the end; nil and an error.
local function new(receive, strip_cr)
    return setmetatable({ receive = receive, buffer = "", strip_cr = strip_cr }, Reader)
end

-- A function that says how many seconds are left.
local function clock(timeout)
    if not timeout then return function() return nil end end
    local deadline = core.now() + timeout
    return function() return math.max(0, deadline - core.now()) end
end

-- Reads ahead once. true; false at the end; nil and an error.
function Reader:fill(timeout)
    local data, err = self.receive(CHUNK, timeout)
    if not data then return nil, err end
    if data == "" then return false end
    self.buffer = self.buffer .. data
    return true
end

-- At most n bytes, as soon as some are there; nil at the end.
function Reader:some(n, timeout)
    if self.buffer ~= "" then
        local data = self.buffer:sub(1, n)
        self.buffer = self.buffer:sub(n + 1)
        return data
    end
    local data, err = self.receive(n, timeout)
    if not data then return nil, err end
    if data == "" then return nil end
    return data
end

-- Everything to the end.
function Reader:all(timeout)
    local left = clock(timeout)
    local parts = { self.buffer }
    self.buffer = ""
    while true do
        local data, err = self.receive(CHUNK, left())
        if not data then
            self.buffer = table.concat(parts)
            return nil, err
        end
        if data == "" then return table.concat(parts) end
        parts[#parts + 1] = data
    end
end

-- One line, without its end unless keep; nil at the end.
function Reader:line(keep, timeout)
    local left = clock(timeout)
    local from = 1
    while true do
        local stop = self.buffer:find("\n", from, true)
        if stop then
            local line = self.buffer:sub(1, keep and stop or stop - 1)
            self.buffer = self.buffer:sub(stop + 1)
            return self.strip_cr and not keep and line:gsub("\r$", "") or line
        end
        from = #self.buffer + 1
        local more, err = self:fill(left())
        if more == nil then return nil, err end
        if not more then
            local line = self.buffer
            self.buffer = ""
            if line == "" then return nil end
            return line
        end
    end
end

-- As io.read: what is "l", "L", "a", or how many bytes at most.
function Reader:read(what, timeout)
    if what == "l" then return self:line(false, timeout) end
    if what == "L" then return self:line(true, timeout) end
    if what == "a" then return self:all(timeout) end
    return self:some(what, timeout)
end

-- An iterator over lines; failures are raised, as io.lines does.
function Reader:lines(keep, timeout)
    return function()
        local line, err = self:line(keep, timeout)
        if line == nil and err then error(err, 0) end
        return line
    end
end

-- Kind of the argument `what` for options.argument.
local function what(v)
    if v == nil then return CHUNK end
    if v == "l" or v == "L" or v == "a" then return v end
    local n = type(v) == "number" and math.tointeger(v)
    if n and n >= 1 and n <= 1 << 24 then return n end
    return nil, [["l", "L", "a", or how many bytes from 1 to 16 MiB]]
end

return { new = new, what = what }
