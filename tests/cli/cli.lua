-- SPDX-License-Identifier: MIT
-- What the specs of the program share: running it, and playing a user at a terminal.
--
--     FCVM=build/fcvm lua5.4 /usr/bin/busted tests/cli
--
-- FCVM_PTY is tests/cli/pty.c, built; unset, it is built here.

local M = {}

local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."

M.fcvm = os.getenv "FCVM" or here .. "/../../build/fcvm"

local function quote(word)
    return "'" .. word:gsub("'", "'\\''") .. "'"
end

function M.read(path)
    local file = assert(io.open(path, "rb"))
    local text = file:read "a"
    file:close()
    return text
end

function M.write(path, text)
    local file = assert(io.open(path, "wb"))
    file:write(text)
    file:close()
    return path
end

local pipe = assert(io.popen "mktemp -d /tmp/fcvm-cli.XXXXXX")
M.dir = pipe:read "l"
pipe:close()

-- Run folder, history and temporary files of our own; images and warm snapshots are those of the machine.
M.run_folder = "/dev/shm/" .. M.dir:match "[^/]*$"
local environment = ("export FCVM_RUN=%s XDG_STATE_HOME=%s/state; "):format(quote(M.run_folder), quote(M.dir))

function M.clean()
    os.execute("rm -rf " .. quote(M.dir) .. " " .. quote(M.run_folder))
end

-- Runs a shell command in which `fcvm` is the program; returns its status, stdout and stderr.
function M.sh(command)
    local out, err = M.dir .. "/out", M.dir .. "/err"
    local script = M.write(M.dir .. "/command", environment .. "cd " .. quote(M.dir) .. "\nfcvm() { " ..
        quote(M.path(M.fcvm)) .. ' "$@"; }\n' .. command)
    local _, how, code = os.execute(("timeout 120 bash %s >%s 2>%s </dev/null"):format(quote(script), quote(out),
        quote(err)))
    if how == "signal" then code = 128 + code end
    return code, M.read(out), M.read(err)
end

function M.path(path)
    local p = assert(io.popen("realpath " .. quote(path)))
    local real = p:read "l"
    p:close()
    return real
end

-- The path of a file of the source tree.
function M.source(path)
    return M.path(here .. "/../../" .. path)
end

-- `fcvm ...`, with the arguments as they are.
function M.call(...)
    local words = table.pack(...)
    for i = 1, words.n do words[i] = quote(words[i]) end
    return M.sh("fcvm " .. table.concat(words, " "))
end

-- A Lua program in a file of its own; returns the path.
local count = 0
function M.program(text)
    count = count + 1
    return M.write(("%s/program%d.lua"):format(M.dir, count), text)
end

local pty = os.getenv "FCVM_PTY"

-- Plays the steps (see pty.c) at a terminal on which `fcvm ...` runs; raises what went wrong.
function M.play(steps, ...)
    if not pty then
        pty = M.dir .. "/pty"
        assert(os.execute(("cc -D_GNU_SOURCE -o %s %s/pty.c -lutil"):format(quote(pty), quote(here))))
    end
    local words = { ... }
    for i, word in ipairs(words) do words[i] = quote(word) end
    local script = M.write(M.dir .. "/steps", (steps:gsub("\n%s+", "\n"):gsub("^%s+", "")))
    local errors = M.dir .. "/pty.err"
    local ok = os.execute(("%s timeout 120 %s %s %s %s 2>%s"):format(environment, quote(pty), quote(script),
        quote(M.path(M.fcvm)), table.concat(words, " "), quote(errors)))
    if not ok then error(M.read(errors), 2) end
end

-- Can guests run here? Else why not.
function M.guests()
    local code, out = M.call("doctor", "--json")
    if code == 0 then return true end
    return false, "no guests here: " .. out
end

return M
