-- SPDX-License-Identifier: MIT
-- What the specs of volumes share: folders of this host, programs on either side, the servers' processes.
--
--     build/fcvm script /usr/bin/busted tests/guest
--
-- FCVM_PROBER is prober.c, built and static; unset, it is built here.
local fcvm = require "fcvm"

local M = {}

local source = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."

-- luassert's assert formats what it is given; this one is Lua's.
function M.check(value, err, ...)
    if not value then error(tostring(err), 2) end
    return value, err, ...
end

-- What a shell here prints, and its status. "sh" is our child, the server's owner its parent.
function M.host(script)
    local pipe <close> = assert(io.popen("exec 2>&1; " .. script))
    local text = pipe:read "a"
    local _, _, status = pipe:close()
    return text, status
end

-- The same in a guest.
function M.guest(vm, script, timeout)
    local out = M.check(vm:exec { "sh", "-c", script, timeout = timeout or 30, merge_stderr = true })
    return out.stdout, out.status
end

M.top = M.host "mktemp -d /var/tmp/fcvm-guest.XXXXXX":match "[^\n]+"
M.root = M.host "id -u" == "0\n"

local prober = os.getenv "FCVM_PROBER"
if not prober then
    prober = M.top .. "/prober"
    local said, status = M.host(("cc -O1 -static -D_GNU_SOURCE -o %s %s/prober.c"):format(prober, source))
    if status ~= 0 then error(said) end
end
M.prober = prober

local count = 0
-- A new folder of this host, with the prober in it.
function M.folder()
    count = count + 1
    local path = ("%s/folder%d"):format(M.top, count)
    M.host(("mkdir -m 755 %s && cp %s %s/prober"):format(path, prober, path))
    return path
end

function M.clean()
    M.host("rm -rf " .. M.top)
end

function M.write(path, text)
    local file = assert(io.open(path, "wb"))
    file:write(text)
    file:close()
end

function M.read(path)
    local file = assert(io.open(path, "rb"))
    local text = file:read "a"
    file:close()
    return text
end

-- Waits until the function says true; fails after so many seconds.
function M.await(what, seconds, fn)
    local deadline = fcvm.now() + seconds
    while not fn() do
        if fcvm.now() > deadline then error(what .. ": not within " .. seconds .. " s", 2) end
        fcvm.sleep(0.05)
    end
end

-- The processes fcvm-volume that have this process among their forebears.
function M.servers()
    local text = M.host [=[
        for p in /proc/[0-9]*; do
            [ "$(cat $p/comm 2>/dev/null)" = fcvm-volume ] || continue
            at=${p#/proc/}
            while [ "${at:-0}" -gt 1 ]; do
                [ "$at" = "$PPID" ] && echo "${p#/proc/}" && break
                at=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$at/status 2>/dev/null)
            done
        done]=]
    local list = {}
    for pid in text:gmatch "%d+" do list[#list + 1] = pid end
    return list
end

-- The volume at a place of the guest, as vm:volumes() tells; nil: none.
function M.volume(vm, guest)
    for _, v in ipairs(M.check(vm:volumes())) do
        if v.guest == guest then return v end
    end
    return nil
end

function M.vm(options)
    local all = { memory = "128M" }
    for name, value in pairs(options or {}) do all[name] = value end
    return M.check(fcvm.vm(all):start(120))
end

return M
