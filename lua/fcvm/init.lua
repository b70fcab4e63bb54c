-- SPDX-License-Identifier: MIT
--- Boot virtual machines, snapshot them, clone them by the dozen, run programs in them.
--
--     local fcvm = require "fcvm"
--     local vm <close> = assert(fcvm.vm { memory = "256M" }:start())
--     print(assert(vm:exec { "uname", "-a" }).stdout)
--
-- A failure returns nil and an error: a table with `code` ("ENOENT"), `msg`, `op`, `detail` (further lines, such as
-- the console's last) that prints as text. Misuse (an unknown option, a closed handle) raises.
-- @module fcvm

local core = require "fcvm.core"
local handle = require "fcvm.handle"
local json = require "fcvm.json"
local options = require "fcvm.options"
local task = require "fcvm.task"
local volume = require "fcvm.volume"

require "fcvm.program"
require "fcvm.stream"
require "fcvm.vm"
require "fcvm.snapshot"

local M = {}

--- The version of fcvm, such as "0.1.0".
M.version = core.version()

--- Raised out of whatever runs when the user presses Ctrl-C.
M.interrupted = core.interrupted

--- Raised in a task that is cancelled, out of the call that it waits in.
M.cancelled = core.cancelled

--- JSON: `fcvm.json.encode(value, indent)`, `fcvm.json.decode(text)`.
M.json = json

M.spawn = task.spawn
M.parallel = task.parallel
M.each = task.each
M.sleep = task.sleep
M.run = task.run
M.loop = task.loop

--- The time on a clock that only runs forward, for measuring.
-- @treturn number seconds
function M.now()
    return core.now()
end

--- How many processors this host has.
-- @treturn integer
function M.processors()
    return core.processors()
end

-- ---- virtual machines ----

local VM = {
    name = options.string,
    image = options.string,
    memory = options.size,
    vcpus = options.count(1, 64),
    driver = options.string,
    accel = options.string,
    cmdline = options.string,
    cold = options.boolean,
    node = options.vm,
    nested = options.boolean,
    balloon = options.boolean,
    jail = options.boolean,
    volumes = volume.list,
    root = volume.host,
}

--- Makes a virtual machine, and does not start it.
--
--     local vm <close> = assert(fcvm.vm { image = "mini", memory = "512M" }:start())
-- @tparam ?table opts
--
-- * `name`: unique among running VMs (default: made up, such as "quiet-heron")
-- * `image` (default: "mini")
-- * `memory`: as "512M" (default: 256 MiB); `vcpus` (default: 1)
-- * `driver`: "firecracker" or "qemu"; `accel`: "kvm" or "tcg" (default: what works here, see `fcvm.doctor`)
-- * `cmdline`: added to the kernel's command line
-- * `cold`: boot, even if a snapshot of such a VM taken right after its boot is kept
-- * `node`: a running VM that it runs on, instead of this host; it ends with that
-- * `nested`: it is to run VMs: its guest loads KVM where the processor has it
-- * `balloon`: it has one, for `vm:balloon` (firecracker)
-- * `jail`: its VMM runs as a user, and in a file system and a cgroup, of its own (firecracker, as root)
-- * `volumes`: folders of this host that are mounted before anything runs in it: a list of what `vm:mount` takes
-- * `root`: a folder of this host that is the guest's root, read-only beneath a tmpfs: "/", or a Debian tree
-- @treturn vm
-- @raise if an option is unknown, or its value cannot be
function M.vm(opts)
    local vm, err = core.vm_new(options.check("fcvm.vm", VM, opts))
    -- a VM that cannot be has nothing to call :start() on; what is wrong is in the options
    if not vm then error(err, 2) end
    return vm
end

--- A VM that another process of this user owns. Closing the handle lets go of it.
-- @tparam string id its id or name
-- @treturn[1] vm
-- @treturn[2] nil
-- @treturn[2] error `ENOENT`
function M.attach(id)
    options.argument("fcvm.attach", "id", options.string, id)
    return core.vm_attach(id)
end

--- Opens a named snapshot.
-- @tparam string name
-- @treturn[1] snapshot
-- @treturn[2] nil
-- @treturn[2] error `ENOENT`; `EINVAL`: it is damaged, or does not fit this host
function M.snapshot(name)
    options.argument("fcvm.snapshot", "name", options.string, name)
    return core.snapshot_open(name)
end

-- ---- what there is ----

-- The table of a report, or nil and an error.
local function report(op, text, err)
    if not text then return nil, err end
    local value, why = json.decode(text)
    if value == nil then return nil, handle.failure(op, "EBADMSG", op .. ": " .. why) end
    return value
end

--- The VMs of this user, of all processes.
-- @treturn[1] {table,...} each with `id`, `name`, `state`, ...
-- @treturn[2] nil
-- @treturn[2] error
function M.list()
    return report("list", core.list_vms())
end

--- The snapshots that are kept by name.
-- @treturn[1] {table,...} each with `name`, `created`, `memory`, ...
-- @treturn[2] nil
-- @treturn[2] error
function M.snapshots()
    return report("snapshots", core.list_snapshots())
end

--- The images that are built.
-- @treturn[1] {table,...} each with `name`, `key`, `kernel`, `bytes`, ...
-- @treturn[2] nil
-- @treturn[2] error
function M.images()
    return report("images", core.list_images())
end

--- What is kept of a named snapshot: its manifest.
-- @tparam string name
-- @treturn[1] table
-- @treturn[2] nil
-- @treturn[2] error `ENOENT`
function M.inspect_snapshot(name)
    options.argument("fcvm.inspect_snapshot", "name", options.string, name)
    return report("inspect_snapshot", core.inspect_snapshot(name))
end

--- Removes a named snapshot. Clones live on.
-- @tparam string name
-- @treturn[1] boolean true
-- @treturn[2] nil
-- @treturn[2] error `ENOENT`
function M.remove_snapshot(name)
    options.argument("fcvm.remove_snapshot", "name", options.string, name)
    return core.remove_snapshot(name)
end

--- Builds an image if its inputs have changed. The first time it needs the Debian mirror.
-- @tparam[opt="mini"] string name
-- @treturn[1] table `name`, `key`, `built`, `dir`
-- @treturn[2] nil
-- @treturn[2] error
function M.build_image(name)
    name = options.argument("fcvm.build_image", "name", options.string, name or "mini")
    return report("build_image", core.build_image(name))
end

--- Removes an image.
-- @tparam string name
-- @treturn[1] boolean true
-- @treturn[2] nil
-- @treturn[2] error `ENOENT`
function M.remove_image(name)
    options.argument("fcvm.remove_image", "name", options.string, name)
    return core.remove_image(name)
end

--- Removes what dead owners left in the run folder, kept snapshots of boots that are old or of other inputs, and
-- half-made files.
-- @tparam ?table opts `max_age`: seconds that a kept boot may go unused (default: two weeks)
-- @treturn[1] table `removed` (a list of `what`, `path`, `bytes`), `bytes`
-- @treturn[2] nil
-- @treturn[2] error
function M.gc(opts)
    opts = options.check("fcvm.gc", { max_age = options.seconds }, opts)
    return report("gc", core.gc(opts.max_age and math.tointeger(math.min(opts.max_age, 1e12) // 1)))
end

--- What would be used on this machine, and why not the other.
-- @treturn[1] table `ok`, `checks` (a list of `name`, `ok`, `value`, `remedy`), `driver`, `accel`, ...
-- @treturn[2] nil
-- @treturn[2] error
function M.doctor()
    return report("doctor", core.doctor())
end

--- Kills a VM of another process.
-- @tparam string id its id or name
-- @treturn[1] boolean true
-- @treturn[2] nil
-- @treturn[2] error `ENOENT`
function M.kill(id)
    options.argument("fcvm.kill", "id", options.string, id)
    return core.kill_vm(id)
end

--- The kept part of a VM's console log, oldest first.
-- @tparam string id its id or name
-- @treturn[1] string
-- @treturn[2] nil
-- @treturn[2] error `ENOENT`
function M.log(id)
    options.argument("fcvm.log", "id", options.string, id)
    return core.vm_log(id)
end

return M
