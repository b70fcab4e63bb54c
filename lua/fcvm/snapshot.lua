-- SPDX-License-Identifier: MIT
--- Snapshots, as `vm:snapshot` and `fcvm.snapshot` return them, and clones of them.
--
-- Leaving the scope of a `<close>` variable, or `snapshot:close()`, lets go of a snapshot; one without a name goes
-- with its last handle and clone.
--
-- Fields: `id`, `name` ("" if it has none), `dir`, `memory` (bytes of the guest's RAM), `vcpus`, `pause_ms` (from the
-- VM's pause to the snapshot's publication), `downtime_ms` (from the pause until the VM went on; 0 if it was
-- stopped), `waiting` (VMMs that wait for a clone).
-- @classmod snapshot

local core = require "fcvm.core"
local handle = require "fcvm.handle"
local options = require "fcvm.options"
local size = require "fcvm.size"
local task = require "fcvm.task"
local volume = require "fcvm.volume"

local Snapshot = {}
local check = handle.check

-- ---- lists of clones ----

--- A list of clones, as `snapshot:clone(n)` returns it: `clones[i]`, `#clones`, `ipairs(clones)`. Leaving the scope
-- of a `<close>` variable ends all of them.
-- @type clones
local Clones = { __name = "fcvm.clones" }
Clones.__index = Clones

--- Ends all of them: kills all first, then waits for all. Closing twice is harmless.
function Clones:close()
    for _, vm in ipairs(self) do
        if core.is_open(vm) and not core.vm_info(vm).attached then core.vm_kill(vm) end
    end
    for _, vm in ipairs(self) do core.close(vm) end
end

function Clones:__close()
    Clones.close(self)
end

function Clones:__tostring()
    local closed = 0
    for _, vm in ipairs(self) do
        if not core.is_open(vm) then closed = closed + 1 end
    end
    return ("%d clones%s"):format(#self, closed > 0 and (" (%d closed)"):format(closed) or "")
end

-- ---- cloning ----

local ONE = { name = options.string, timeout = options.seconds, volumes = volume.list }
local MANY = {
    names = options.strings,
    limit = options.count(1, 1000000),
    partial = options.boolean,
    timeout = options.seconds,
    volumes = volume.list,
}

-- One clone, with these volumes besides those that it has of the snapshot; or none, whatever happens on the way.
local function clone_one(snap, name, timeout, volumes)
    local vm, err = core.snapshot_clone(snap, name, timeout)
    if not vm or not volumes then return vm, err end
    local guard <close> = setmetatable({}, {
        __close = function(self)
            if not self.kept then core.close(vm) end
        end,
    })
    for _, v in ipairs(volumes) do
        local ok, why = core.vm_mount(vm, v, nil)
        if not ok then return nil, why end
    end
    guard.kept = true
    return vm
end

-- Clones into the table `made` by index. Returns the first error, and all by index.
local function clone_into(made, snap, n, opts)
    local first
    local errors = {}
    local group <close> = task.group()
    task.spread(group, n, opts.limit, function(i)
        if first and not opts.partial then return end
        local vm, err = clone_one(snap, opts.names and opts.names[i], opts.timeout, opts.volumes)
        made[i] = vm
        errors[i] = err
        if err and not first then
            first = err
            -- the others are for nothing now
            if not opts.partial then group:cancel() end
        end
    end)
    group:wait()
    return first, errors
end

local function clone_many(snap, n, opts)
    -- where VMMs can be copied, all of them are copies of one that this makes
    if n > 1 then
        local ok, err = core.snapshot_prepare(snap, 1, opts.timeout)
        -- with `partial` each clone is tried all the same
        if not ok and not opts.partial then return nil, err end
    end
    local made = {}
    local function all()
        local list = {}
        for i = 1, n do list[#list + 1] = made[i] end
        return setmetatable(list, Clones)
    end
    -- whatever goes wrong, those that are there already end
    local guard <close> = setmetatable({}, {
        __close = function(self)
            if not self.kept then all():close() end
        end,
    })
    local first, errors = clone_into(made, snap, n, opts)
    if first and not opts.partial then return nil, first end
    guard.kept = true
    local list = all()
    list.errors = first and errors or nil
    return list
end

--- Makes running clones, each with an identity of its own (host name, machine-id, random seed, clock).
--
--     local vm <close> = assert(snap:clone())
--     local clones <close> = assert(snap:clone(50))
-- @tparam ?integer n how many; none: one clone, not a list
-- @tparam ?table opts for one: `name`; for many: `names` (a list), `limit` (how many at a time; default: as many as
-- the processors carry), `partial` (those that could not be made are left out, their errors are in `errors` of
-- the list; default: one failure ends all). Both: `timeout` in seconds for each (default: 60), `volumes`: mounted in each
-- besides those that it has of the snapshot, as in `fcvm.vm`
-- @treturn[1] vm|clones
-- @treturn[2] nil
-- @treturn[2] error of the first that failed; nothing is left
function Snapshot:clone(n, opts)
    check(self, "snapshot", "clone")
    if n == nil or type(n) == "table" then
        if n ~= nil and opts ~= nil then
            options.argument("snapshot:clone", "n", options.count(0, 100000), n)
        end
        opts = options.check("snapshot:clone", ONE, n or opts)
        return clone_one(self, opts.name, opts.timeout, opts.volumes)
    end
    n = options.argument("snapshot:clone", "n", options.count(0, 100000), n)
    opts = options.check("snapshot:clone", MANY, opts)
    if opts.names and #opts.names ~= n then
        error(("snapshot:clone: %d names for %d clones"):format(#opts.names, n), 2)
    end
    return clone_many(self, n, opts)
end

--- Has VMMs started and waiting, so that as many clones take no start-up time.
-- @tparam integer n
-- @tparam ?table opts `timeout` in seconds (default: 60)
-- @treturn[1] snapshot itself
-- @treturn[2] nil
-- @treturn[2] error
function Snapshot:prepare(n, opts)
    check(self, "snapshot", "prepare")
    n = options.argument("snapshot:prepare", "n", options.count(0, 100000), n)
    opts = options.check("snapshot:prepare", { timeout = options.seconds }, opts)
    local ok, err = core.snapshot_prepare(self, n, opts.timeout)
    if not ok then return nil, err end
    return self
end

--- Lets go of it, and ends the VMMs that wait. Clones live on. Closing twice is harmless.
function Snapshot:close()
    if core.kind(self) ~= "snapshot" then check(self, "snapshot", "close") end
    core.close(self)
end

-- ---- pools ----

--- Clones on demand, at most `size` at a time, as `snapshot:pool` returns it.
-- @type pool
local Pool = { __name = "fcvm.pool" }
Pool.__index = Pool

--- Clones on demand: each `get` is a fresh clone, and at most `size` are there at a time.
-- @tparam table opts `size`: how many (default: 8); `volumes`: mounted in each, as in `fcvm.vm`
-- @treturn pool
function Snapshot:pool(opts)
    check(self, "snapshot", "pool")
    opts = options.check("snapshot:pool", { size = options.count(1, 10000), volumes = volume.list }, opts)
    local n = opts.size or 8
    return setmetatable({ snapshot = self, size = n, volumes = opts.volumes, permits = task.semaphore(n), out = {} }, Pool)
end

local function pool_of(self, name)
    if getmetatable(self) ~= Pool then
        error(("pool:%s(): called on a %s; methods are called with a colon"):format(name, type(self)), 3)
    end
    if self.closed then error(("pool:%s(): the pool is closed"):format(name), 3) end
end

--- A fresh clone. Waits while `size` of them are in use.
-- @treturn[1] vm to be given back with `pool:give`
-- @treturn[2] nil
-- @treturn[2] error `ECANCELED`: the pool was closed meanwhile
function Pool:get()
    pool_of(self, "get")
    self.permits:acquire()
    local ok, vm, err = true, nil, nil
    if not self.closed then ok, vm, err = pcall(clone_one, self.snapshot, nil, nil, self.volumes) end
    if ok and self.closed then
        if vm then core.close(vm) end
        vm, err = nil, handle.failure("get", "ECANCELED", "pool:get: the pool was closed meanwhile")
    end
    if not ok or not vm then
        self.permits:release()
        if not ok then error(vm, 0) end
        return nil, err
    end
    self.out[vm] = true
    return vm
end

--- Takes a clone back, which ends it.
-- @tparam vm vm as `pool:get` has returned it
function Pool:give(vm)
    pool_of(self, "give")
    if not self.out[vm] then error("pool:give: expected a clone that pool:get() has returned", 2) end
    self.out[vm] = nil
    core.close(vm)
    self.permits:release()
end

--- Calls `fn` for each item with a fresh clone, `size` at a time, and gives the results as they come.
--
--     for test, out, err in pool:map(tests, function(vm, test) return vm:exec { "/run-test", test } end) do ... end
--
-- Leaving the loop cancels what still runs.
-- @tparam table items
-- @tparam function fn called as `fn(vm, item, index)`
-- @treturn function iterator over item and the results of `fn`, or nil and the error if there was no clone
-- @raise the first error of `fn`, after the others were cancelled and have ended
function Pool:map(items, fn)
    pool_of(self, "map")
    options.argument("pool:map", "items", options.list, items)
    options.argument("pool:map", "fn", options.func, fn)
    return task.each(items, function(item, i)
        local vm, err = self:get()
        if not vm then return nil, err end
        local back <close> = setmetatable({}, { -- luacheck: ignore 211
            __close = function()
                if self.out[vm] then self:give(vm) end
            end,
        })
        return fn(vm, item, i)
    end, { limit = self.size })
end

--- Ends the clones that are in use. Closing twice is harmless.
function Pool:close()
    if getmetatable(self) ~= Pool then pool_of(self, "close") end
    if self.closed then return end
    local list = setmetatable({}, Clones)
    for vm in pairs(self.out) do list[#list + 1] = vm end
    self.closed, self.out = true, {}
    list:close()
    -- who waits for one of them is told
    for _ = 1, #list do self.permits:release() end
end

function Pool:__close()
    Pool.close(self)
end

function Pool:__tostring()
    return self.closed and "pool (closed)" or ("pool of %d, %d in use"):format(self.size, self.size - self.permits.free)
end

-- ---- the type ----

local fields = {}
for _, name in ipairs { "id", "name", "dir", "memory", "vcpus", "pause_ms", "downtime_ms", "waiting" } do
    fields[name] = function(self) return core.snapshot_info(self)[name] end
end

handle.define("snapshot", Snapshot, fields, function(self)
    local info = core.snapshot_info(self)
    return ("snapshot %s, %s, %d vCPU%s"):format(info.name ~= "" and ("%q"):format(info.name) or info.id,
        size.format(info.memory), info.vcpus, info.vcpus == 1 and "" or "s")
end)

return { Snapshot = Snapshot, Clones = Clones, Pool = Pool }
