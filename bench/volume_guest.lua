-- SPDX-License-Identifier: MIT
-- Volumes in guests: what volume_in_guest.lua needs around it. For the rivals, a QEMU with their devices (qemu_with.c), a
-- kernel that knows them and a running virtiofsd; and a data folder of its own, as guests with another kernel have another
-- image.
local fcvm = require "fcvm"
local sample = require "volume_sample"

local M = {}

local MAX_ROUNDS = 5

local function quote(text)
    return "'" .. text:gsub("'", "'\\''") .. "'"
end

local function gone_after(folder)
    return setmetatable({}, { __close = function() os.execute("rm -rf " .. quote(folder)) end })
end

-- Runs the other script with this environment: its result.
local function run_inside(config, what, source, environment)
    local words = { "env" }
    for name, value in pairs(environment) do words[#words + 1] = quote(name .. "=" .. value) end
    local here = arg[0]:match "^(.*)/" or "."
    local rounds = math.min(config.rounds, MAX_ROUNDS)
    local pipe = assert(io.popen(('exec %s "$(readlink /proc/$PPID/exe)" script %s/volume_in_guest.lua %s %s %s %d %s'):format(
        table.concat(words, " "), quote(here), what, quote(config.programs), quote(source), rounds,
        quote(environment.FCVM_MODULES or "-"))))
    local text = pipe:read "a"
    if not pipe:close() then error(what .. ": volume_in_guest.lua has failed", 0) end
    return assert(fcvm.json.decode(text:match "([^\n]*)\n*$"))
end

local function fill(config, folder)
    sample.sh(("mkdir -p %s && %s/fuse-volume fill %s"):format(quote(folder), quote(config.programs), quote(folder)))
end

-- The driver's QEMU: the user's, the one that was fetched, the one in PATH. As lines for qemu_with.c, which lend it its own
-- libraries and firmware where it was unpacked.
local function qemu_lines()
    local binary = sample.sh [[
        data=${FCVM_DATA:-${XDG_DATA_HOME:-$HOME/.local/share}/fcvm}; f=$data/qemu/bin/qemu-system-x86_64
        realpath "${FCVM_QEMU:-$([ -x "$f" ] && echo "$f" || command -v qemu-system-x86_64)}"]]:match "[^\n]+"
    local folder, lines = binary:match "^(.*)/bin/" or "", { binary }
    local file <close> = io.open(folder .. "/env")
    for line in file and file:lines() or function() end do lines[#lines + 1] = line end
    lines[#lines + 1] = ""
    if file then table.move({ "-L", folder .. "/share/qemu" }, 1, 2, #lines + 1, lines) end
    return lines
end

local function write_lines(path, lines)
    local file <close> = assert(io.open(path, "w"))
    assert(file:write(table.concat(lines, "\n"), "\n"))
end

-- virtiofsd, which ends with its VM, this process, or what is returned.
local function start_virtiofsd(rivals, socket, source)
    local pipe = assert(io.popen(("echo $$; exec setpriv --pdeathsig KILL %s/bin/virtiofsd --socket-path=%s --shared-dir=%s"
        .. " --cache=auto </dev/null >%s.log 2>&1"):format(quote(rivals), quote(socket), quote(source), quote(socket))))
    local pid = pipe:read "l"
    return setmetatable({}, {
        __close = function()
            os.execute(("kill %s 2>/dev/null"):format(pid))
            pipe:close()
        end,
    })
end

--- In a guest: its tmpfs, ours, virtiofsd and virtio-9p.
function M.guest(config)
    local rivals = sample.sh("realpath -m " .. quote(config.dir .. "-rivals")):match "[^\n]+"
    local here = arg[0]:match "^(.*)/" or "."
    sample.sh(quote(here .. "/rivals") .. " " .. quote(rivals))
    local work = rivals .. "/work"
    local _ <close> = gone_after(work)
    local source, socket = work .. "/source", work .. "/virtiofsd.sock"
    fill(config, source)
    local lines = qemu_lines()
    for _, word in ipairs {
        "-fsdev", "local,id=bench9p,path=" .. source .. ",security_model=none",
        -- with event_idx the driver waits for ever in an emulated guest
        "-device", "virtio-9p-device,fsdev=bench9p,mount_tag=bench-9p,event_idx=off",
        "-chardev", "socket,id=benchfs,path=" .. socket,
        "-device", "vhost-user-fs-device,chardev=benchfs,tag=bench-virtiofs",
    } do lines[#lines + 1] = word end
    write_lines(work .. "/qemu-with", lines)
    local _ <close> = start_virtiofsd(rivals, socket, source)
    fcvm.sleep(0.5)
    local result = run_inside(config, "guest", source, {
        FCVM_DATA = rivals .. "/data", FCVM_KERNEL = sample.sh("ls " .. quote(rivals) .. "/kernel/boot/vmlinuz-*"):match "[^\n]+",
        FCVM_MODULES = sample.sh("ls -d " .. quote(rivals) .. "/kernel/lib/modules/*"):match "[^\n]+",
        FCVM_QEMU = sample.sh("realpath " .. quote(config.programs .. "/qemu-with")):match "[^\n]+",
        QEMU_WITH = work .. "/qemu-with",
    })
    for _, name in ipairs { "throughput", "forced", "cached", "large" } do sample.index(result[name]) end
    return result
end

--- In a VM, and in one within it.
function M.nested(config)
    local source = sample.sh("realpath -m " .. quote(config.dir .. "-rivals/nested")):match "[^\n]+"
    local _ <close> = gone_after(source)
    fill(config, source)
    return run_inside(config, "nested", source, {})
end

return M
