-- SPDX-License-Identifier: MIT
--- Virtual machines, as `fcvm.vm`, `fcvm.attach` and `snapshot:clone` return them.
--
-- Leaving the scope of a `<close>` variable, or `vm:close()`, ends the VM (an attached one is only let go of).
--
-- Fields: `id`, `name`, `image`, `driver`, `accel`, `node` (the name of the VM that it runs on; "": this host), `dir`
-- (its run folder), `state` ("new", "starting", "running",
-- "paused", "ended"), `memory` (bytes), `vcpus`, `pid` (of its VMM; 0: none), `generation` (grows with each
-- restore), `uptime` (seconds since start), `start_ms` (what starting or cloning it took), `warm` (started from a
-- snapshot), `attached` (another process owns it).
-- @classmod vm

local core = require "fcvm.core"
local handle = require "fcvm.handle"
local json = require "fcvm.json"
local options = require "fcvm.options"
local program = require "fcvm.program"
local size = require "fcvm.size"
local volume = require "fcvm.volume"

local VM = {}
local check = handle.check

-- What the core returned, with itself for true: so that calls can be chained in assert().
local function itself(vm, ok, err)
    if not ok then return nil, err end
    return vm
end

-- ---- its life ----

--- Starts it and waits until its agent answers. If such a VM (image, memory, driver, ...) was booted before, it
-- starts from a snapshot taken right after that boot; `cold = true` of `fcvm.vm` boots.
-- @tparam ?number|table opts seconds, or `timeout` in seconds (default: 120)
-- @treturn[1] vm itself
-- @treturn[2] nil
-- @treturn[2] error nothing runs; `detail` has the last lines of the console
function VM:start(opts)
    check(self, "vm", "start")
    return itself(self, core.vm_start(self, options.timeout("vm:start", opts)))
end

--- Halts its processors. Whatever is sent to it waits until `vm:resume`.
-- @treturn[1] vm itself
-- @treturn[2] nil
-- @treturn[2] error
function VM:pause()
    check(self, "vm", "pause")
    return itself(self, core.vm_pause(self))
end

--- Lets a paused VM go on.
-- @treturn[1] vm itself
-- @treturn[2] nil
-- @treturn[2] error
function VM:resume()
    check(self, "vm", "resume")
    return itself(self, core.vm_resume(self))
end

--- Asks the guest to power off; what has not ended in time is killed.
-- @tparam ?number|table opts seconds, or `timeout` in seconds (default: 10)
-- @treturn[1] vm itself
-- @treturn[2] nil
-- @treturn[2] error
function VM:stop(opts)
    check(self, "vm", "stop")
    return itself(self, core.vm_stop(self, options.timeout("vm:stop", opts)))
end

--- Kills its VMM, and does not wait for its end.
-- @treturn[1] vm itself
-- @treturn[2] nil
-- @treturn[2] error
function VM:kill()
    check(self, "vm", "kill")
    return itself(self, core.vm_kill(self))
end

--- Waits until its VMM has ended.
-- @tparam ?number|table opts seconds, or `timeout` in seconds (default: for ever)
-- @treturn[1] table `status` (0 after an orderly end), `signal` (the number of what killed the VMM, or nil)
-- @treturn[2] nil
-- @treturn[2] error
function VM:wait(opts)
    check(self, "vm", "wait")
    local status, err = core.vm_wait(self, options.timeout("vm:wait", opts))
    if not status then return nil, err end
    if status >= 0x100 then return { status = 128 + (status & 0xff), signal = status & 0xff } end
    return { status = status }
end

--- A round trip to its agent.
-- @tparam ?number|table opts seconds, or `timeout` in seconds (default: 5)
-- @treturn[1] number seconds that it took
-- @treturn[2] nil
-- @treturn[2] error
function VM:ping(opts)
    check(self, "vm", "ping")
    return core.vm_ping(self, options.timeout("vm:ping", opts))
end

--- Makes a virtual machine that runs on this one: `fcvm.vm` with `node = vm`.
--
--     local l2 <close> = assert(l1:vm { memory = "128M" }:start())
-- @tparam ?table opts as for `fcvm.vm`
-- @treturn vm
-- @raise if an option is unknown, or its value cannot be
function VM:vm(opts)
    check(self, "vm", "vm")
    local all = { node = self }
    if opts ~= nil and type(opts) ~= "table" then
        error(("vm:vm: expected a table of options, got a %s"):format(type(opts)), 2)
    end
    for name, value in pairs(opts or {}) do all[name] = value end
    if all.node ~= self then error("vm:vm: it runs on the VM that it is called on: drop the option \"node\"", 2) end
    return require "fcvm".vm(all)
end

--- Takes memory from the guest and gives it to the host, until told otherwise. What the guest cannot spare comes later
-- or not at all. The VM was made with `balloon = true`.
-- @tparam number|string size how much, such as "64M"; 0 gives all of it back
-- @tparam ?number|table opts seconds, or `timeout` in seconds (default: 10)
-- @treturn[1] vm itself
-- @treturn[2] nil
-- @treturn[2] error
function VM:balloon(size_, opts)
    check(self, "vm", "balloon")
    size_ = options.argument("vm:balloon", "size", options.size, size_)
    return itself(self, core.vm_balloon(self, size_, options.timeout("vm:balloon", opts)))
end

--- What its VMM counts, in the VMM's own words.
-- @tparam ?number|table opts seconds, or `timeout` in seconds (default: 10)
-- @treturn[1] table
-- @treturn[2] nil
-- @treturn[2] error `EOPNOTSUPP`: its driver does not count
function VM:metrics(opts)
    check(self, "vm", "metrics")
    local text, err = core.vm_metrics(self, options.timeout("vm:metrics", opts))
    if not text then return nil, err end
    local value, why = json.decode(text)
    if value == nil then return nil, handle.failure("metrics", "EBADMSG", self.name .. ": metrics: " .. why) end
    return value
end

--- The last output of its console.
-- @tparam[opt="64K"] number|string max bytes
-- @treturn string
function VM:console(max)
    check(self, "vm", "console")
    return core.vm_console(self, options.argument("vm:console", "max", options.size, max or "64K"))
end

--- Ends the VM, or lets go of it if another process owns it. Calls that other tasks have running on it fail with
-- `ECANCELED`. Closing twice is harmless.
function VM:close()
    if core.kind(self) ~= "vm" then check(self, "vm", "close") end
    core.close(self)
end

local SNAPSHOT = { name = options.string, stop = options.boolean, timeout = options.seconds }

--- Takes a snapshot of it, to make clones of.
-- @tparam ?table opts
--
-- * `name`: keep it in the data folder under this name, for `fcvm.snapshot(name)`; default: it goes with its handle
-- * `stop`: the VM ends with the snapshot; default: it goes on at once
-- * `timeout` in seconds (default: 60)
-- @treturn[1] snapshot
-- @treturn[2] nil
-- @treturn[2] error nothing was kept
function VM:snapshot(opts)
    check(self, "vm", "snapshot")
    opts = options.check("vm:snapshot", SNAPSHOT, opts)
    return core.vm_snapshot(self, opts, opts.timeout)
end

-- ---- programs ----

local EXEC = {
    cwd = options.string,
    env = options.env,
    clear_env = options.boolean,
    user = options.string,
    merge_stderr = options.boolean,
    input = options.data,
    limit = options.size,
    timeout = options.seconds,
}

local SPAWN = {
    cwd = options.string,
    env = options.env,
    clear_env = options.boolean,
    user = options.string,
    merge_stderr = options.boolean,
    null_stdin = options.boolean,
    detach = options.boolean,
    tty = options.tty,
}

--- Runs a program in the guest to its end.
--
--     vm:exec { "ls", "-l", cwd = "/tmp", timeout = 5 }
--     vm:exec "ls /tmp | wc -l"
-- @tparam table|string command the program and its arguments, and options by name; a string is for `sh -c`
--
-- * `cwd` (default "/"), `user` (`"name"`, `"uid"` or `"uid:gid"`; default: root)
-- * `env`: `{ NAME = "value" }`, added to the guest's; with `clear_env` instead of it
-- * `input`: a string for its stdin (default: nothing)
-- * `merge_stderr`: stderr goes into stdout
-- * `limit`: bytes kept of stdout and of stderr each, as `"1M"` (default: 64 MiB)
-- * `timeout` in seconds: then it is killed (default: for ever)
-- @treturn[1] table `status` (128 + signal if one ended it), `stdout`, `stderr`; `signal` and `truncated` if so. A
-- status that is not 0 is a result, no error.
-- @treturn[2] nil
-- @treturn[2] error `ENOENT`: there is no such program; `ETIMEDOUT`
function VM:exec(command)
    check(self, "vm", "exec")
    local argv, opts = options.command("vm:exec", EXEC, command)
    return core.vm_exec(self, argv, opts)
end

--- Starts a program in the guest, to talk to.
--
--     local p <close> = assert(vm:spawn { "python3", "-i", tty = { rows = 40, cols = 120 } })
-- @tparam table|string command the program and its arguments, and options by name; a string is for `sh -c`
--
-- * `cwd`, `user`, `env`, `clear_env`, `merge_stderr`: as for `vm:exec`
-- * `tty`: `{ rows =, cols = }` or true: a terminal on its stdin and stdout (and stderr)
-- * `null_stdin`: its stdin is empty
-- * `detach`: it goes on when its handle is closed
-- @treturn[1] program
-- @treturn[2] nil
-- @treturn[2] error
function VM:spawn(command)
    check(self, "vm", "spawn")
    local argv, opts = options.command("vm:spawn", SPAWN, command)
    local tty = opts.tty
    opts.tty = tty and true or false
    if tty then opts.rows, opts.columns = tty.rows, tty.cols end
    local p, err = core.vm_spawn(self, argv, opts)
    if not p then return nil, err end
    return program.started(p, tty)
end

-- ---- files and sockets ----

local TIMEOUT = { timeout = options.seconds }

--- Copies a file or folder into the guest, as `cp -a` does: into `to` if that is a folder.
-- @tparam string from here
-- @tparam string to in the guest
-- @tparam ?table opts `timeout` in seconds (default: for ever)
-- @treturn[1] vm itself
-- @treturn[2] nil
-- @treturn[2] error
function VM:copy_in(from, to, opts)
    check(self, "vm", "copy_in")
    options.argument("vm:copy_in", "from", options.string, from)
    options.argument("vm:copy_in", "to", options.string, to)
    opts = options.check("vm:copy_in", TIMEOUT, opts)
    return itself(self, core.vm_copy_in(self, from, to, opts.timeout))
end

--- Copies a file or folder out of the guest, as `cp -a` does: into `to` if that is a folder.
-- @tparam string from in the guest
-- @tparam string to here
-- @tparam ?table opts `timeout` in seconds (default: for ever)
-- @treturn[1] vm itself
-- @treturn[2] nil
-- @treturn[2] error
function VM:copy_out(from, to, opts)
    check(self, "vm", "copy_out")
    options.argument("vm:copy_out", "from", options.string, from)
    options.argument("vm:copy_out", "to", options.string, to)
    opts = options.check("vm:copy_out", TIMEOUT, opts)
    return itself(self, core.vm_copy_out(self, from, to, opts.timeout))
end

local READ_FILE = { max = options.size, timeout = options.seconds }

--- A file of the guest.
-- @tparam string path
-- @tparam ?table opts `max`: the largest size that is read, as `"1G"` (default: 64 MiB); `timeout` in seconds
-- (default: 60)
-- @treturn[1] string its bytes
-- @treturn[2] nil
-- @treturn[2] error `ENOENT`; `EFBIG`: it is larger than `max`
function VM:read_file(path, opts)
    check(self, "vm", "read_file")
    options.argument("vm:read_file", "path", options.string, path)
    opts = options.check("vm:read_file", READ_FILE, opts)
    return core.vm_read_file(self, path, opts.max or 64 << 20, opts.timeout)
end

local WRITE_FILE = { mode = options.count(0, 4095), timeout = options.seconds }

--- Writes a file of the guest, or replaces it.
-- @tparam string path
-- @tparam string data
-- @tparam ?table opts `mode`: its permission bits (default: `tonumber("644", 8)`); `timeout` in seconds
-- (default: 60)
-- @treturn[1] vm itself
-- @treturn[2] nil
-- @treturn[2] error
function VM:write_file(path, data, opts)
    check(self, "vm", "write_file")
    options.argument("vm:write_file", "path", options.string, path)
    options.argument("vm:write_file", "data", options.data, data)
    opts = options.check("vm:write_file", WRITE_FILE, opts)
    return itself(self, core.vm_write_file(self, path, data, opts.mode, opts.timeout))
end

local function address(v)
    if type(v) == "string" and (v:find "^unix:." or v:find "^tcp:.+:%d+$") and not v:find "\0" then return v end
    return nil, [["unix:/path" or "tcp:127.0.0.1:80"]]
end

--- Connects to a socket in the guest.
-- @tparam string to `"unix:/path"` or `"tcp:127.0.0.1:80"`
-- @tparam ?table opts `timeout` in seconds (default: 30)
-- @treturn[1] stream
-- @treturn[2] nil
-- @treturn[2] error `ECONNREFUSED`, `ENOENT`, ...
function VM:connect(to, opts)
    check(self, "vm", "connect")
    options.argument("vm:connect", "to", address, to)
    opts = options.check("vm:connect", TIMEOUT, opts)
    return core.vm_connect(self, to, opts.timeout)
end

--- Listens on a socket in the guest.
-- @tparam string on `"unix:/path"` or `"tcp:127.0.0.1:80"`
-- @treturn[1] listener
-- @treturn[2] nil
-- @treturn[2] error
function VM:listen(on)
    check(self, "vm", "listen")
    options.argument("vm:listen", "on", address, on)
    return core.vm_listen(self, on)
end

-- ---- volumes ----

--- Mounts a folder of this host in the guest. What one side writes the other sees; snapshots and clones take the volume
-- along, with open files and locks. A lock that cannot be had again, since another clone of the snapshot has it, say, is lost,
-- which the guest is not told: `volume-N.log` in `vm.dir` tells.
--
--     vm:mount { host = "src", guest = "/work", readonly = true }
--     vm:mount "src:/work:ro"
-- @tparam table|string opts `"HOST:GUEST[:OPTION,...]"` (options: `ro`, `rw`, `devices`, `locks=guest`, `readers=N`,
-- `timeout=S`, `uid_map=GUEST:HOST:COUNT`, `gid_map=`), or
--
-- * `host`: the folder; `guest`: where it is mounted, an absolute path; made if it is missing
-- * `readonly`; `devices`: the guest may make block and character devices there (as root)
-- * `locks`: "host" (the default: they exclude other guests and this host's processes, too) or "guest" (within the guest
--   only; quicker)
-- * `readers`: queues that carry requests side by side, 1 to 256, by as many threads as the guest has processors (default:
--   `FCVM_FUSE_READERS`, else 1)
-- * `timeout`: seconds for which the guest may take names and attributes for granted (default: 1)
-- * `uid_map`, `gid_map`: lists of `{ guest =, host =, count = }`; ids that are in no entry are nobody's (as root)
-- * `wait`: the limit of the call in seconds (default: 30)
-- @treturn[1] vm itself
-- @treturn[2] nil
-- @treturn[2] error `EEXIST`: a volume is mounted there; `ENOENT`, `ENOTDIR`: `host` is no folder
function VM:mount(opts)
    check(self, "vm", "mount")
    local checked = options.argument("vm:mount", "volume", volume.mount, opts)
    return itself(self, core.vm_mount(self, checked, checked.wait))
end

local UNMOUNT = { force = options.boolean, timeout = options.seconds }

--- Unmounts a volume.
-- @tparam string guest where it is mounted
-- @tparam ?table opts `force`: also while programs use it, whose calls on it then fail; `timeout`: of the call, in seconds
-- (default: 30)
-- @treturn[1] vm itself
-- @treturn[2] nil
-- @treturn[2] error `EBUSY`: a program uses it; `ENOENT`: no volume is mounted there
function VM:unmount(guest, opts)
    check(self, "vm", "unmount")
    options.argument("vm:unmount", "guest", options.string, guest)
    opts = options.check("vm:unmount", UNMOUNT, opts)
    return itself(self, core.vm_unmount(self, guest, opts.force, opts.timeout))
end

--- Its volumes, and what their servers have counted.
-- @treturn[1] {table,...} each with `number`, `host`, `guest`, `readonly`, `devices`, `locks`, `readers`, `timeout`,
-- `uid_map`, `gid_map`, `root`, `port` (its first stream is a virtio port of its own), `pid` (of its server), `state`
-- ("waiting", "running", "quiet", "ended"), `files`, `handles`, `bytes_read`, `bytes_written`, `ops` (by name: `count`,
-- `errors`, `p50_us`, `p99_us`, `max_us`, `histogram_ns`), `trace` (by name, of the traced ones)
-- @treturn[2] nil
-- @treturn[2] error
function VM:volumes()
    check(self, "vm", "volumes")
    local text, err = core.vm_volumes(self)
    if not text then return nil, err end
    local list, why = json.decode(text)
    if list == nil then return nil, handle.failure("volumes", "EBADMSG", self.name .. ": volumes: " .. why) end
    return list
end

--- What was traced last on a volume: with `FCVM_FUSE_TRACE_RATE=N` in the environment of this process when it mounts,
-- every Nth request from the guest's dequeueing it to the reply. Of a VM that is restored only with it set here, too.
--
--     [TRACE         read] total=212µs srv=63µs | fs=11 | to_srv=101 to_cli=48
-- @tparam string guest where it is mounted
-- @treturn[1] string a line each
-- @treturn[2] nil
-- @treturn[2] error `ENOENT`: no volume is mounted there
function VM:traces(guest)
    check(self, "vm", "traces")
    options.argument("vm:traces", "guest", options.string, guest)
    return core.vm_traces(self, guest)
end

-- ---- the type ----

local fields = {}
for _, name in ipairs {
    "id", "name", "image", "driver", "accel", "node", "dir", "state", "memory", "vcpus", "pid", "generation", "uptime",
    "start_ms", "warm", "attached",
} do
    fields[name] = function(self) return core.vm_info(self)[name] end
end

handle.define("vm", VM, fields, function(self)
    local info = core.vm_info(self)
    local parts = { ("vm %q %s"):format(info.name, info.state) }
    if info.driver ~= "" then
        parts[#parts + 1] = info.driver .. (info.accel ~= "" and "/" .. info.accel or "")
    end
    parts[#parts + 1] = size.format(info.memory)
    parts[#parts + 1] = ("%d vCPU%s"):format(info.vcpus, info.vcpus == 1 and "" or "s")
    if info.uptime > 0 and info.state ~= "ended" then parts[#parts + 1] = ("up %d s"):format(info.uptime // 1) end
    return table.concat(parts, ", ")
end)

return VM
