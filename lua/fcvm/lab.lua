-- SPDX-License-Identifier: MIT
--- The KVM lab: a VM in which KVM works, though this machine may have none, with this build of fcvm, QEMU and
-- Firecracker in it at the paths that they have here.
--
--     local lab = require "fcvm.lab"
--     local l1 <close> = assert(lab.start())
--     print(assert(l1:exec { "sh", "-c", "ls -l /dev/kvm" }).stdout)
--
-- It is a VM like any other, kept as two snapshots: `lab-base-...` has what seldom changes (tools, libraries, QEMU,
-- Firecracker, the guest image), `lab-...` is a clone of it with the build and its sources. A lab is a clone of the
-- latter; what either was made of is looked at each time (names, sizes, times, inodes), and what has changed is made
-- anew.
-- @module fcvm.lab

local fcvm = require "fcvm"
local handle = require "fcvm.handle"
local options = require "fcvm.options"

local M = {}

-- Beyond what the image has. Those that this machine lacks are left out.
local TOOLS = { "bash", "busybox", "cmp", "cp", "curl", "env", "find", "lua5.4", "mount", "pgrep", "pkill", "ps", "setsid",
    "strace", "timeout", "unshare" }
-- The last is opened by name, so that no program's list of libraries has it.
local TOOL_TREES = { "/usr/bin/busted", "/usr/share/lua/5.4", "/usr/lib/x86_64-linux-gnu/lua/5.4",
    "/usr/lib/x86_64-linux-gnu/libcurl.so.4" }
-- Changes whenever a package does: libraries are those that programs turn out to want.
local PACKAGES = "/var/lib/dpkg/status"

-- In the folder of the build, and in that of the sources.
local BUILD = { "fcvm", "fcvm-agent", "fcvm-volume", "libfcvm-ram.so", "libfcvm.so", "libfcvm.so.0", "lua", "tests",
    "bench" }
local SOURCE = { "CMakeLists.txt", "README.md", "bench", "csrc/host/fcvm.bash", "lua", "scripts", "tests" }

-- How many snapshots of each level are kept: of several source trees and sizes, the youngest.
local KEPT = 4
local KEY_DIGITS = 12

-- ---- the shell ----

local function quote(text)
    return "'" .. tostring(text):gsub("'", [['\'']]) .. "'"
end

local function quote_all(list)
    local quoted = {}
    for i, text in ipairs(list) do quoted[i] = quote(text) end
    return table.concat(quoted, " ")
end

-- What a shell script prints, given arguments; without its last newline. nil and what it said on stderr.
local function shell(script, ...)
    local errors <const> = os.tmpname()
    local pipe = assert(io.popen(("exec 2>%s; set -eu -- %s\n%s"):format(quote(errors), quote_all { ... }, script)))
    local out = pipe:read "a"
    local ok = pipe:close()
    local file = io.open(errors)
    local said = file and file:read "a" or ""
    if file then file:close() end
    os.remove(errors)
    if not ok then return nil, said:gsub("%s+$", "") end
    return (out:gsub("\n$", ""))
end

local function lines(text)
    local list = {}
    for line in text:gmatch "[^\n]+" do list[#list + 1] = line end
    return list
end

-- ---- what goes in ----

-- The folders of this program, of its sources (nil if it is installed) and of its data.
local function places(build)
    local exe = assert(shell [[readlink "/proc/$PPID/exe"]])
    local module = assert(package.searchpath("fcvm.lab", package.path))
    local source = shell([[cd "$1/../.." && [ -f CMakeLists.txt ] && pwd -P]], module:match "^(.*)/" or ".")
    local data = os.getenv "FCVM_DATA"
    if not data or data == "" then
        local home = os.getenv "XDG_DATA_HOME"
        data = (home and home ~= "" and home or (os.getenv "HOME" or "") .. "/.local/share") .. "/fcvm"
    end
    if not build and exe:match "/fcvm$" then build = exe:match "^(.*)/" end
    if not build and source then build = source .. "/build" end
    if build then
        local real = shell([[cd "$1" && [ -x fcvm ] && pwd -P]], build)
        if not real then
            return nil, handle.failure("lab", "ENOENT", build .. ": no folder of a build: there is no fcvm in it")
        end
        build = real
    end
    -- as the driver looks for it: the user's own, the one that was fetched, the one in PATH; nil: none
    local named = os.getenv "FCVM_FIRECRACKER"
    local firecracker = shell([[
        f=$1
        [ -n "$f" ] || { f=$2/firecracker/bin/firecracker; [ -x "$f" ] || f=$(command -v firecracker); }
        realpath -e "$f"]], named or "", data)
    return { exe = exe, source = source, build = build, data = assert(shell([[realpath -m "$1"]], data)),
        firecracker = firecracker }
end

-- Those of the files and folders that are there.
local function existing(paths)
    return lines(assert(shell([[for p; do [ ! -e "$p" ] || printf '%s\n' "$p"; done]], table.unpack(paths))))
end

local function base_files(at)
    local tools = lines(assert(shell([[for t; do command -v "$t" || :; done]], table.unpack(TOOLS))))
    -- not the image: that is made in the lab, as it would not be taken for fresh on other inodes
    local trees = { at.data .. "/qemu", at.data .. "/kernels", at.data .. "/busybox" }
    table.move(TOOL_TREES, 1, #TOOL_TREES, #trees + 1, trees)
    if at.firecracker then
        trees[#trees + 1] = at.firecracker
        trees[#trees + 1] = at.firecracker:match "^(.*)/" .. "/jailer"
    end
    trees = existing(trees)
    -- the machine's own QEMU where no other was unpacked
    if #existing { at.data .. "/qemu/bin/qemu-system-x86_64" } == 0 then
        table.move(lines(assert(shell [[command -v qemu-system-x86_64 || :]])), 1, 1, #tools + 1, tools)
        table.move(existing { "/usr/share/qemu", "/usr/share/seabios" }, 1, 2, #trees + 1, trees)
    end
    return tools, trees
end

local function build_files(at)
    local trees = {}
    if at.build and at.source then
        for _, name in ipairs(BUILD) do trees[#trees + 1] = at.build .. "/" .. name end
        for _, name in ipairs(SOURCE) do trees[#trees + 1] = at.source .. "/" .. name end
    elseif at.build then
        local prefix = at.build:match "^(.*)/" or ""
        for _, name in ipairs { "bin/fcvm", "libexec/fcvm", "lib/lua/5.4/fcvm", "share/lua/5.4/fcvm", "share/fcvm" } do
            trees[#trees + 1] = prefix .. "/" .. name
        end
    end
    return existing(trees)
end

-- A hash of what is known of all files beneath, but for what the build leaves behind, and of the text.
local function digest(text, ...)
    return assert(shell([[
text=$1 n=$2; shift 2
{ printf '%s\n' "$text"
  find "$@" \( -name CMakeFiles -o -name Testing -o -name test-logs \) -prune -o -printf '%p %y %s %T@ %i %l\n' | sort
} | sha256sum | cut -c1-"$n"]], text, KEY_DIGITS, ...))
end

-- ---- staging ----

-- stage FOLDER LIBRARIES TREE...: copies of the trees at the same paths beneath the folder, and all shared libraries
-- that programs in them want. Folders above a tree are made, and never links, as /lib is one here and none there.
local STAGE = [[
stage=$1; export LD_LIBRARY_PATH="$2"; shift 2
for tree; do
    mkdir -p "$stage/${tree%/*}"
    cp -a -- "$tree" "$stage/${tree%/*}/"
done
cd "$stage"
find . \( -name CMakeFiles -o -name Testing -o -name test-logs -o -name '*.o' \) -prune -exec rm -rf {} +
# links out of a tree that is here for another tree, as Lua's modules have them
find . -xtype l -printf '%P\n' | while read -r link; do
    real=$(realpath -m "/$link")
    [ ! -f "$real" ] || cp -a --remove-destination -- "$real" "./$link"
done
find . -type f \( -perm -100 -o -name '*.so*' \) -size +1k -exec ldd {} + 2>/dev/null |
    sed -n 's/^[^/]*\(\/[^ ]*\) (0x[0-9a-f]*)$/\1/p' | sort -u |
    while read -r library; do
        [ ! -e "./$library" ] || continue
        mkdir -p "./${library%/*}"
        cp -L --preserve=mode,timestamps -- "$library" "./$library"
    done
]]

-- Copies them into the VM.
local function put(vm, at, trees)
    local folder = assert(shell [[mktemp -d "${TMPDIR:-/tmp}/fcvm-lab-XXXXXX"]])
    local _ <close> = setmetatable({}, { __close = function() shell([[rm -rf -- "$1"]], folder) end })
    local ok, err = shell(STAGE, folder, at.data .. "/qemu/lib", table.unpack(trees))
    if not ok then return nil, handle.failure("lab", "EIO", "stage the lab's files: " .. err) end
    return vm:copy_in(folder .. "/.", "/")
end

-- Runs a script in the VM; it must succeed.
local function must(vm, script, env)
    local out, err = vm:exec { "sh", "-c", script, env = env, merge_stderr = true, timeout = 120 }
    if not out then return nil, err end
    if out.status ~= 0 then
        return nil, handle.failure("lab", "EIO", ("prepare the lab: status %d"):format(out.status), out.stdout)
    end
    return vm
end

-- ---- the two levels ----

local function say(text)
    io.stderr:write("fcvm: ", text, "\n")
end

-- Removes snapshots of this level but the youngest: first those that cannot be read. Those in use stay.
local function thin_out(level)
    local list = {}
    for _, s in ipairs(fcvm.snapshots() or {}) do
        if s.name:match("^" .. level:gsub("%-", "%%-") .. "%-" .. ("%x"):rep(KEY_DIGITS) .. "$") then list[#list + 1] = s end
    end
    table.sort(list, function(a, b) return (a.created or 0) > (b.created or 0) end)
    for i = KEPT + 1, #list do fcvm.remove_snapshot(list[i].name) end
end

-- The VM as the snapshot `name`; if another process has kept it meanwhile, that one.
local function keep(vm, level, name)
    local snap, err = vm:snapshot { name = name, stop = true, timeout = 300 }
    if not snap and err.code == "EEXIST" then snap, err = fcvm.snapshot(name) end
    if snap then thin_out(level) end
    return snap, err
end

local PREPARE_BASE = [[
set -e
ln -sf /usr/bin/bash /bin/bash
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
for f in 0:stdin 1:stdout 2:stderr; do [ -e /dev/${f#*:} ] || ln -s /proc/self/fd/${f%:*} /dev/${f#*:}; done
[ ! -x /usr/bin/lua5.4 ] || ln -sf lua5.4 /usr/bin/lua
mkdir -p /usr/local/bin
[ -z "$FIRECRACKER" ] || ln -sf "$FIRECRACKER" /usr/local/bin/firecracker
[ ! -x "${FIRECRACKER%/*}/jailer" ] || ln -sf "${FIRECRACKER%/*}/jailer" /usr/local/bin/jailer
[ -c /dev/kvm ] || { echo "the guest has no /dev/kvm"; exit 1; }
]]

local function make_base(at, name, vm_options, tools, trees)
    say "make the lab's base: tools, QEMU, Firecracker"
    local vm <close>, err = fcvm.vm(vm_options):start()
    if not vm then return nil, err end
    local all = table.move(trees, 1, #trees, #tools + 1, table.move(tools, 1, #tools, 1, {}))
    local ok
    ok, err = put(vm, at, all)
    if ok then ok, err = must(vm, PREPARE_BASE, { FIRECRACKER = at.firecracker or "" }) end
    if not ok then return nil, err end
    return keep(vm, "lab-base", name)
end

-- The environment of what runs in a lab.
local function environment(at, more)
    local env = {
        HOME = os.getenv "HOME", FCVM_DATA = at.data, FCVM_FIRECRACKER = at.firecracker, LANG = "C.UTF-8",
        PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin",
    }
    for name, value in pairs(more or {}) do env[name] = value end
    return env
end

local function make_lab(at, name, base, trees)
    say "put the build into the lab"
    local vm <close>, err = base:clone()
    if not vm then return nil, err end
    local ok
    ok, err = put(vm, at, trees)
    -- so that nobody who starts a VM in a lab has to build the image first
    if ok and at.build then ok, err = must(vm, quote(at.build .. "/fcvm") .. " image build mini", environment(at)) end
    if not ok then return nil, err end
    return keep(vm, "lab", name)
end

-- An open snapshot, or what make() makes where there is none that can be used.
local function open_or(name, rebuild, make)
    local snap, err
    if rebuild then
        fcvm.remove_snapshot(name)
    else
        snap, err = fcvm.snapshot(name)
        if not snap and err.code ~= "ENOENT" then
            say(tostring(err))
            fcvm.remove_snapshot(name)
        end
    end
    if snap then return snap end
    return make()
end

local START = {
    memory = options.size,
    vcpus = options.count(1, 64),
    accel = options.string,
    build = options.string,
    rebuild = options.boolean,
}

--- Starts a lab: at once if it is kept, else it is made (some ten seconds).
-- @tparam ?table opts
--
-- * `memory`: as "6G" (default); half of it is for files; `vcpus` (default: 2)
-- * `accel`: "kvm" or "tcg" (default: what works here)
-- * `build`: folder of the build that is put in (default: the one that runs)
-- * `rebuild`: make it though it is kept
-- @treturn[1] vm
-- @treturn[2] nil
-- @treturn[2] error
function M.start(opts)
    opts = options.check("lab.start", START, opts)
    local image, err = fcvm.build_image "mini"
    if not image then return nil, err end
    local at
    at, err = places(opts.build)
    if not at then return nil, err end
    local vm_options = { memory = opts.memory or "6G", vcpus = opts.vcpus or 2, driver = "qemu", accel = opts.accel,
        nested = true }
    local tools, trees = base_files(at)
    local files = table.move(trees, 1, #trees, #tools + 1, table.move(tools, 1, #tools, 1, {}))
    local build = build_files(at)
    local about = table.concat({ STAGE, PREPARE_BASE, fcvm.version, image.key, tostring(vm_options.memory), vm_options.vcpus,
        opts.accel or os.getenv "FCVM_ACCEL" or "", at.firecracker or "" }, "\n")
    local base_key = digest(about, table.unpack(existing { PACKAGES, table.unpack(files) }))
    local snap <close>, why = open_or("lab-" .. digest(base_key, table.unpack(build)), opts.rebuild, function()
        local base <close>, no_base = open_or("lab-base-" .. base_key, opts.rebuild, function()
            return make_base(at, "lab-base-" .. base_key, vm_options, tools, trees)
        end)
        if not base then return nil, no_base end
        return make_lab(at, "lab-" .. digest(base_key, table.unpack(build)), base, build)
    end)
    if not snap then return nil, why end
    return snap:clone()
end

local RUN = { cwd = options.string, env = options.env }

--- Runs a program in a lab with our stdin, stdout and stderr; signals of the terminal reach it.
-- @tparam vm vm
-- @tparam {string,...} argv the program and its arguments
-- @tparam ?table opts
--
-- * `cwd` (default: as here, where the lab has that folder, else "/")
-- * `env`: `{ NAME = "value" }`, added to what a lab gives its programs (HOME, FCVM_DATA, PATH)
-- @treturn integer its exit status (128 + signal if one ended it)
function M.run(vm, argv, opts)
    handle.check(vm, "vm", "run")
    opts = options.check("lab.run", RUN, opts)
    local at = assert(places())
    local here = opts.cwd or assert(shell [[pwd -P]])
    local there = vm:exec { "test", "-d", here }
    local command = { at.exe:match "/fcvm$" and at.exe or "fcvm", "exec", "--cwd",
        there and there.status == 0 and here or "/" }
    for name, value in pairs(environment(at, opts.env)) do
        command[#command + 1] = "--env"
        command[#command + 1] = name .. "=" .. value
    end
    table.move({ vm.id, "--", table.unpack(argv) }, 1, #argv + 2, #command + 1, command)
    local _, how, status = os.execute("exec " .. quote_all(command))
    return how == "signal" and 128 + status or status
end

return M
