-- SPDX-License-Identifier: MIT
-- What the handles (VMs, programs, snapshots, listeners, streams) have in common: methods, fields, and good errors
-- for a forgotten colon, a misspelt name and a handle that is closed. For the inner modules only.

local core = require "fcvm.core"
local options = require "fcvm.options"

local M = {}

-- Makes a kind of handle out of its methods and fields (functions of the handle). describe: its text while open.
function M.define(kind, methods, fields, describe)
    local meta = core.meta[kind]
    local known = {}
    for name in pairs(methods) do known[name] = true end
    for name in pairs(fields) do known[name] = true end

    function meta.__index(self, key)
        local method = methods[key]
        if method then return method end
        local field = fields[key]
        if not field then
            local hint = type(key) == "string" and "; " .. options.suggest(key, known) or ""
            error(("a %s has no field %s%s"):format(kind, tostring(key), hint), 2)
        end
        if not core.is_open(self) then
            error(("%s: the %s is closed"):format(tostring(key), kind), 2)
        end
        return field(self)
    end

    function meta.__newindex(_, key)
        error(("the fields of a %s are read only: %s"):format(kind, tostring(key)), 2)
    end

    function meta.__tostring(self)
        return core.is_open(self) and describe(self) or kind .. " (closed)"
    end

    -- for help() and the prompt's completion
    meta.__methods, meta.__fields = methods, fields
    meta.__metatable = nil
end

-- Checks the receiver of kind:name(). level 3 is the line of who called the method.
function M.check(self, kind, name)
    if core.kind(self) ~= kind then
        error(("%s:%s(): called on %s; methods are called with a colon"):format(kind, name,
            core.kind(self) and "a " .. core.kind(self) or "a " .. type(self)), 3)
    end
    if not core.is_open(self) then
        error(("%s:%s(): the %s is closed"):format(kind, name, kind), 3)
    end
end

-- An error table like those of the core.
function M.failure(op, code, msg, detail)
    return setmetatable({ op = op, code = code, msg = msg, detail = detail or "" }, core.error)
end

return M
