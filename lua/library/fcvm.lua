---@meta fcvm
-- SPDX-License-Identifier: MIT
-- Definitions for editors (LuaCATS). Never run.
-- luacheck: ignore

---@class fcvm.Error
---@field code string such as "ENOENT"
---@field errno? integer
---@field op string the operation that failed
---@field msg string one line
---@field detail string further lines, such as the console's last; "" if none
---@field traceback? string where it was raised, if a task ended with it

---@class fcvm.IdRange
---@field guest integer the first id in the guest
---@field host integer the first id here
---@field count? integer default: 1

---@class fcvm.VolumeOptions
---@field host string a folder of this host
---@field guest string an absolute path in the guest
---@field readonly? boolean
---@field devices? boolean the guest may make device files there (as root)
---@field locks? "host"|"guest" whom locks exclude; default: "host"
---@field readers? integer 1 to 256
---@field timeout? number seconds for which the guest may take names and attributes for granted; default: 1
---@field uid_map? fcvm.IdRange[] as root
---@field gid_map? fcvm.IdRange[] as root

---@alias fcvm.Volume fcvm.VolumeOptions|string "HOST:GUEST[:ro]"

---@class fcvm.MountOptions: fcvm.VolumeOptions
---@field wait? number seconds; default: 30

---@class fcvm.OperationCounters
---@field count integer
---@field errors integer
---@field p50_us integer
---@field p99_us integer
---@field max_us integer
---@field histogram_ns integer[] the i-th counts those from 2^(i-1) to 2^i ns

---@class fcvm.VolumeInfo
---@field number integer
---@field host string
---@field guest string
---@field readonly boolean
---@field devices boolean
---@field locks "host"|"guest"
---@field readers integer
---@field timeout number seconds
---@field uid_map fcvm.IdRange[]
---@field gid_map fcvm.IdRange[]
---@field root boolean
---@field port boolean its first stream is a virtio port of its own
---@field pid integer of its server
---@field state "waiting"|"running"|"quiet"|"ended"
---@field files integer
---@field handles integer
---@field bytes_read integer
---@field bytes_written integer
---@field ops table<string, fcvm.OperationCounters>
---@field trace table<string, table>

---@class fcvm.VMOptions
---@field name? string unique among running VMs; default: made up
---@field image? string default: "mini"
---@field memory? integer|string bytes, or as "512M"; default: 256 MiB
---@field vcpus? integer default: 1
---@field driver? "firecracker"|"qemu"
---@field accel? "kvm"|"tcg"
---@field cmdline? string added to the kernel's command line
---@field cold? boolean boot, even if a snapshot of such a VM taken right after its boot is kept
---@field node? fcvm.VM runs on this VM, and ends with it
---@field nested? boolean it is to run VMs
---@field balloon? boolean it has one, for VM:balloon (firecracker)
---@field jail? boolean its VMM is confined (firecracker, as root)
---@field volumes? fcvm.Volume[] mounted before anything runs in it
---@field root? string a folder of this host that is the guest's root, read-only beneath a tmpfs

---@class fcvm.TimeoutOptions
---@field timeout? number seconds

---@class fcvm.RunOptions
---@field [integer] string|number
---@field cwd? string default: "/"
---@field env? table<string, string|number>|string[]
---@field clear_env? boolean
---@field user? string "name", "uid" or "uid:gid"; default: root
---@field merge_stderr? boolean

---@class fcvm.ExecOptions: fcvm.RunOptions
---@field input? string
---@field limit? integer|string bytes kept of stdout and of stderr each; default: 64 MiB
---@field timeout? number seconds; default: for ever

---@class fcvm.SpawnOptions: fcvm.RunOptions
---@field tty? boolean|{ rows?: integer, cols?: integer }
---@field null_stdin? boolean
---@field detach? boolean

---@class fcvm.ExitStatus
---@field status integer 128 + signal if one ended it
---@field signal? integer

---@class fcvm.ExecResult: fcvm.ExitStatus
---@field stdout string
---@field stderr string
---@field truncated? boolean

---@class fcvm.VM
---@field id string
---@field name string
---@field image string
---@field driver string
---@field accel string
---@field dir string
---@field state "new"|"starting"|"running"|"paused"|"ended"
---@field memory integer bytes
---@field vcpus integer
---@field pid integer
---@field generation integer
---@field node string the name of the VM that it runs on; "": this host
---@field uptime number seconds
---@field start_ms number what starting or cloning it took
---@field warm boolean
---@field attached boolean
local VM = {}

---@param opts? number|fcvm.TimeoutOptions
---@return fcvm.VM? self, fcvm.Error? err
function VM:start(opts) end

---@return fcvm.VM? self, fcvm.Error? err
function VM:pause() end

---@return fcvm.VM? self, fcvm.Error? err
function VM:resume() end

---@param opts? number|fcvm.TimeoutOptions
---@return fcvm.VM? self, fcvm.Error? err
function VM:stop(opts) end

---@return fcvm.VM? self, fcvm.Error? err
function VM:kill() end

---@param opts? number|fcvm.TimeoutOptions
---@return fcvm.ExitStatus?, fcvm.Error? err
function VM:wait(opts) end

---@param opts? number|fcvm.TimeoutOptions
---@return number? seconds, fcvm.Error? err
function VM:ping(opts) end

---@param opts? fcvm.VMOptions
---@return fcvm.VM
function VM:vm(opts) end

---@param size integer|string of the guest's memory, given to the host
---@param opts? number|fcvm.TimeoutOptions
---@return fcvm.VM? vm, fcvm.Error? err
function VM:balloon(size, opts) end

---@param opts? number|fcvm.TimeoutOptions
---@return table? metrics, fcvm.Error? err
function VM:metrics(opts) end

---@param max? integer|string bytes
---@return string
function VM:console(max) end

function VM:close() end

---@param opts? { name?: string, stop?: boolean, timeout?: number }
---@return fcvm.Snapshot?, fcvm.Error? err
function VM:snapshot(opts) end

---@param command string|fcvm.ExecOptions
---@return fcvm.ExecResult?, fcvm.Error? err
function VM:exec(command) end

---@param command string|fcvm.SpawnOptions
---@return fcvm.Program?, fcvm.Error? err
function VM:spawn(command) end

---@param from string here
---@param to string in the guest
---@param opts? fcvm.TimeoutOptions
---@return fcvm.VM? self, fcvm.Error? err
function VM:copy_in(from, to, opts) end

---@param from string in the guest
---@param to string here
---@param opts? fcvm.TimeoutOptions
---@return fcvm.VM? self, fcvm.Error? err
function VM:copy_out(from, to, opts) end

---@param path string
---@param opts? { max?: integer|string, timeout?: number }
---@return string?, fcvm.Error? err
function VM:read_file(path, opts) end

---@param path string
---@param data string
---@param opts? { mode?: integer, timeout?: number }
---@return fcvm.VM? self, fcvm.Error? err
function VM:write_file(path, data, opts) end

---@param to string "unix:/path" or "tcp:127.0.0.1:80"
---@param opts? fcvm.TimeoutOptions
---@return fcvm.Stream?, fcvm.Error? err
function VM:connect(to, opts) end

---@param on string "unix:/path" or "tcp:127.0.0.1:80"
---@return fcvm.Listener?, fcvm.Error? err
function VM:listen(on) end

---@param volume fcvm.MountOptions|string "HOST:GUEST[:ro]"
---@return fcvm.VM? self, fcvm.Error? err
function VM:mount(volume) end

---@param guest string where it is mounted
---@param opts? { force?: boolean, timeout?: number }
---@return fcvm.VM? self, fcvm.Error? err
function VM:unmount(guest, opts) end

---@return fcvm.VolumeInfo[]?, fcvm.Error? err
function VM:volumes() end

---@param guest string where it is mounted
---@return string?, fcvm.Error? err
function VM:traces(guest) end

---@class fcvm.Program
---@field pid integer in the guest
---@field exit_fd integer
---@field stdin_fd integer
---@field stdout_fd integer
---@field stderr_fd integer
local Program = {}

---@param data string
---@param opts? fcvm.TimeoutOptions
---@return fcvm.Program? self, fcvm.Error? err
function Program:write(data, opts) end

---@return fcvm.Program self
function Program:close_stdin() end

---@param what? integer|"l"|"L"|"a"
---@param opts? { from?: "stdout"|"stderr", timeout?: number }
---@return string?, fcvm.Error? err
function Program:read(what, opts) end

---@param from? "stdout"|"stderr"
---@param opts? fcvm.TimeoutOptions
---@return fun(): string?
function Program:lines(from, opts) end

---@param opts? number|fcvm.TimeoutOptions
---@return fcvm.ExitStatus?, fcvm.Error? err
function Program:wait(opts) end

---@param signal string|integer
---@return fcvm.Program? self, fcvm.Error? err
function Program:signal(signal) end

---@param rows integer
---@param cols integer
---@return fcvm.Program? self, fcvm.Error? err
function Program:resize(rows, cols) end

function Program:close() end

---@class fcvm.Stream
---@field fd integer
local Stream = {}

---@param data string
---@param opts? fcvm.TimeoutOptions
---@return fcvm.Stream? self, fcvm.Error? err
function Stream:write(data, opts) end

---@param what? integer|"l"|"L"|"a"
---@param opts? fcvm.TimeoutOptions
---@return string?, fcvm.Error? err
function Stream:read(what, opts) end

---@param opts? fcvm.TimeoutOptions
---@return fun(): string?
function Stream:lines(opts) end

---@return fcvm.Stream? self, fcvm.Error? err
function Stream:shutdown() end

function Stream:close() end

---@class fcvm.Listener
local Listener = {}

---@param opts? number|fcvm.TimeoutOptions
---@return fcvm.Stream?, fcvm.Error? err
function Listener:accept(opts) end

function Listener:close() end

---@class fcvm.Snapshot
---@field id string
---@field name string "" if it has none
---@field dir string
---@field memory integer bytes
---@field vcpus integer
---@field pause_ms number
---@field downtime_ms number
---@field waiting integer
local Snapshot = {}

---@class fcvm.CloneOptions: fcvm.TimeoutOptions
---@field names? string[]
---@field limit? integer
---@field partial? boolean
---@field volumes? fcvm.Volume[] mounted in each, besides those of the snapshot

---@overload fun(self: fcvm.Snapshot, opts?: { name?: string, timeout?: number, volumes?: fcvm.Volume[] }): fcvm.VM?, fcvm.Error?
---@param n integer
---@param opts? fcvm.CloneOptions
---@return fcvm.Clones?, fcvm.Error? err
function Snapshot:clone(n, opts) end

---@param n integer
---@param opts? fcvm.TimeoutOptions
---@return fcvm.Snapshot? self, fcvm.Error? err
function Snapshot:prepare(n, opts) end

---@param opts? { size?: integer, volumes?: fcvm.Volume[] }
---@return fcvm.Pool
function Snapshot:pool(opts) end

function Snapshot:close() end

---@class fcvm.Clones
---@field [integer] fcvm.VM
---@field errors? table<integer, fcvm.Error> with `partial`: of those that could not be made
local Clones = {}

function Clones:close() end

---@class fcvm.Pool
local Pool = {}

---@return fcvm.VM?, fcvm.Error? err
function Pool:get() end

---@param vm fcvm.VM
function Pool:give(vm) end

---@generic T
---@param items T[]
---@param fn fun(vm: fcvm.VM, item: T, index: integer): ...
---@return fun(): T, ...
function Pool:map(items, fn) end

function Pool:close() end

---@class fcvm.Task
local Task = {}

---@return any ...
function Task:await() end

function Task:cancel() end

---@return boolean
function Task:done() end

---@class fcvm.Loop
local Loop = {}

---@return integer
function Loop:fd() end

---@param timeout? number seconds; default: 0
---@return integer tasks that have not ended
function Loop:step(timeout) end

---@class fcvm
---@field version string
---@field interrupted table raised by Ctrl-C
---@field cancelled table raised in a task that is cancelled
---@field json { encode: (fun(value: any, indent?: integer): string), decode: (fun(text: string): any, string?), array: (fun(list?: table): table), null: any }
local fcvm = {}

---@param opts? fcvm.VMOptions
---@return fcvm.VM
function fcvm.vm(opts) end

---@param id string
---@return fcvm.VM?, fcvm.Error? err
function fcvm.attach(id) end

---@param name string
---@return fcvm.Snapshot?, fcvm.Error? err
function fcvm.snapshot(name) end

---@return table[]?, fcvm.Error? err
function fcvm.list() end

---@return table[]?, fcvm.Error? err
function fcvm.snapshots() end

---@return table[]?, fcvm.Error? err
function fcvm.images() end

---@param name string
---@return table?, fcvm.Error? err
function fcvm.inspect_snapshot(name) end

---@param name string
---@return boolean?, fcvm.Error? err
function fcvm.remove_snapshot(name) end

---@param name? string
---@return table?, fcvm.Error? err
function fcvm.build_image(name) end

---@param name string
---@return boolean?, fcvm.Error? err
function fcvm.remove_image(name) end

---@param opts? { max_age?: number }
---@return table?, fcvm.Error? err
function fcvm.gc(opts) end

---@return table?, fcvm.Error? err
function fcvm.doctor() end

---@param id string
---@return boolean?, fcvm.Error? err
function fcvm.kill(id) end

---@param id string
---@return string?, fcvm.Error? err
function fcvm.log(id) end

---@param fn function
---@param ... any
---@return fcvm.Task
function fcvm.spawn(fn, ...) end

---@generic T
---@param list T[]
---@param fn fun(item: T, index: integer): ...
---@param opts? { limit?: integer, ordered?: boolean }
---@return table|function
function fcvm.parallel(list, fn, opts) end

---@generic T
---@param list T[]
---@param fn fun(item: T, index: integer): ...
---@param opts? { limit?: integer }
---@return fun(): T, ...
function fcvm.each(list, fn, opts) end

---@param seconds number
function fcvm.sleep(seconds) end

function fcvm.run() end

---@return number seconds on a clock that only runs forward
function fcvm.now() end

---@return integer
function fcvm.processors() end

---@return fcvm.Loop
function fcvm.loop() end

return fcvm
