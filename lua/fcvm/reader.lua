-- SPDX-License-Identifier: MIT
-- Lines and pieces out of a stream of bytes. One reader at a time: what is read ahead is kept here. For the inner
-- modules only.

local core = require "fcvm.core"

local Reader = {}
Reader.__index = Reader

local CHUNK = 65536

-- receive(size, timeout): at most size bytes, "" at the end; nil and an error. What is read ahead are the texts in
-- `early`, none of which holds a line's end, and then `buffer`.
local function new(receive, strip_cr)
    return setmetatable({ receive = receive, early = {}, buffer = "", strip_cr = strip_cr }, Reader)
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
    self.early[#self.early + 1] = self.buffer
    self.buffer = data
    return true
end

-- Takes what is read ahead: of the buffer only `last`, so that `rest` stays.
function Reader:take(last, rest)
    local text = last
    if #self.early > 0 then
        self.early[#self.early + 1] = last
        text = table.concat(self.early)
        self.early = {}
    end
    self.buffer = rest
    return text
end

-- At most n bytes, as soon as some are there; nil at the end.
function Reader:some(n, timeout)
    local ahead = self:take(self.buffer, "")
    if ahead ~= "" then
        self.buffer = ahead:sub(n + 1)
        return ahead:sub(1, n)
    end
    local data, err = self.receive(n, timeout)
    if not data then return nil, err end
    if data == "" then return nil end
    return data
end

-- Everything to the end.
function Reader:all(timeout)
    local left = clock(timeout)
    local more, err
    repeat more, err = self:fill(left()) until not more
    if more == nil then return nil, err end
    return self:take(self.buffer, "")
end

-- One line, without its end unless keep; nil at the end.
function Reader:line(keep, timeout)
    local left = clock(timeout)
    while true do
        local stop = self.buffer:find("\n", 1, true)
        if stop then
            local line = self:take(self.buffer:sub(1, keep and stop or stop - 1), self.buffer:sub(stop + 1))
            return self.strip_cr and not keep and line:gsub("\r$", "") or line
        end
        local more, err = self:fill(left())
        if more == nil then return nil, err end
        if not more then
            local line = self:take(self.buffer, "")
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
