-- SPDX-License-Identifier: MIT
-- What users say of volumes, as the core wants it: kinds for fcvm.options. For the inner modules only.

local core = require "fcvm.core"
local options = require "fcvm.options"

local M = {}

--- A folder of this host: where it is, seen from anywhere.
function M.host(v)
    local path = type(v) == "string" and v ~= "" and not v:find "\0" and core.volume_host(v)
    if path then return path end
    return nil, "the path of a folder of this host"
end

local function guest(v)
    if type(v) == "string" and v:find "^/" and not v:find "\0" then return v end
    return nil, [[an absolute path in the guest, such as "/work"]]
end

local function locks(v)
    if v == "host" or v == "guest" then return v end
    return nil, [["host" or "guest"]]
end

local IDS = { guest = options.count(0, 0xffffffff), host = options.count(0, 0xffffffff),
    count = options.count(1, 0xffffffff) }

local function id_map(v)
    local expected = "a list of { guest =, host =, count = }"
    if type(v) ~= "table" then return nil, expected end
    local list = {}
    for i, entry in ipairs(v) do
        if type(entry) ~= "table" then return nil, expected end
        local ids, wrong = options.examine(IDS, entry)
        if not ids then return nil, nil, ("entry %d: %s"):format(i, wrong) end
        if not ids.guest or not ids.host then return nil, expected end
        list[i] = ids
    end
    for key in pairs(v) do
        if not list[key] then return nil, expected end
    end
    if #list > 340 then return nil, nil, "at most 340 entries" end
    return list
end

local VOLUME = {
    host = M.host,
    guest = guest,
    readonly = options.boolean,
    devices = options.boolean,
    locks = locks,
    readers = options.count(1, 256),
    timeout = options.seconds,
    uid_map = id_map,
    gid_map = id_map,
}

local MOUNT = { wait = options.seconds }
for name, kind in pairs(VOLUME) do MOUNT[name] = kind end

local function examine(spec, v)
    if type(v) == "string" then
        local parsed, wrong = core.volume_parse(v)
        return parsed, nil, wrong
    end
    if type(v) ~= "table" or getmetatable(v) then
        return nil, [[a table such as { host = "src", guest = "/work" }, or "src:/work"]]
    end
    local checked, wrong = options.examine(spec, v)
    if not checked then return nil, nil, wrong end
    if not checked.host then return nil, nil, "host is missing: the folder of this host" end
    if not checked.guest then return nil, nil, "guest is missing: where it is mounted" end
    return checked
end

--- What vm:mount takes: a volume and the options of the call.
function M.mount(v)
    return examine(MOUNT, v)
end

--- A list of volumes.
function M.list(v)
    local expected = [[a list of volumes, such as { { host = "src", guest = "/work" }, "data:/data:ro" }]]
    if type(v) ~= "table" then return nil, expected end
    local list = {}
    for i, one in ipairs(v) do
        local volume, wanted, wrong = examine(VOLUME, one)
        if not volume then return nil, nil, ("volume %d: %s"):format(i, wrong or "expected " .. wanted) end
        list[i] = volume
    end
    for key in pairs(v) do
        if not list[key] then return nil, expected end
    end
    if #list > 32 then return nil, nil, "at most 32 volumes" end
    return list
end

return M
