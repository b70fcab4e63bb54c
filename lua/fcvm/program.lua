-- SPDX-License-Identifier: MIT
--- Programs that run in a guest, as `vm:spawn` returns them.
--
-- Leaving the scope of a `<close>` variable, or `program:close()`, kills the program, unless it was detached.
--
-- Fields: `pid` (in the guest), `exit_fd` (readable once it has ended), `stdin_fd`, `stdout_fd`, `stderr_fd` (our
-- ends, for poll; -1: none).
-- @classmod program

local core = require "fcvm.core"
local handle = require "fcvm.handle"
local options = require "fcvm.options"
local reader = require "fcvm.reader"

local M = {}

local Program = {}
local check = handle.check

local SIGNALS = {
    HUP = 1, INT = 2, QUIT = 3, ILL = 4, TRAP = 5, ABRT = 6, BUS = 7, FPE = 8, KILL = 9, USR1 = 10, SEGV = 11,
    USR2 = 12, PIPE = 13, ALRM = 14, TERM = 15, CHLD = 17, CONT = 18, STOP = 19, TSTP = 20, TTIN = 21, TTOU = 22,
    URG = 23, XCPU = 24, XFSZ = 25, VTALRM = 26, PROF = 27, WINCH = 28, IO = 29, PWR = 30, SYS = 31,
}

local STREAMS = { stdout = 1, stderr = 2 }

-- program -> { tty, [1] = reader of stdout, [2] = reader of stderr }
local states = setmetatable({}, { __mode = "k" })

-- Says how it was started, which the handle itself does not know.
function M.started(program, tty)
    states[program] = { tty = tty and true or false }
    return program
end

local function reader_of(program, stream)
    local state = states[program]
    if not state[stream] then
        -- the state must not keep the program: it is the value of a table that is weak in the program
        local weak = setmetatable({ program = program }, { __mode = "v" })
        state[stream] = reader.new(function(size, timeout)
            return core.program_read(weak.program, stream, size, timeout)
        end, state.tty)
    end
    return state[stream]
end

local function stream_kind(v)
    if v == nil then return 1 end
    local n = STREAMS[v]
    if n then return n end
    return nil, [["stdout" or "stderr"]]
end

local READ = { from = stream_kind, timeout = options.seconds }
local TIMEOUT = { timeout = options.seconds }

--- Writes to its standard input, all of it.
-- @tparam string data
-- @tparam ?table opts `timeout` in seconds (default: for ever)
-- @treturn[1] program itself
-- @treturn[2] nil
-- @treturn[2] error `EPIPE`: it reads no more; `ETIMEDOUT`
function Program:write(data, opts)
    check(self, "program", "write")
    options.argument("program:write", "data", options.data, data)
    opts = options.check("program:write", TIMEOUT, opts)
    local ok, err = core.program_write(self, data, opts.timeout)
    if not ok then return nil, err end
    return self
end

--- Closes its standard input: it reads the end of file.
-- @treturn program itself
function Program:close_stdin()
    check(self, "program", "close_stdin")
    core.program_close_fd(self, 0)
    return self
end

--- Reads what it has written.
-- @tparam[opt=65536] integer|string what at most so many bytes, as soon as some are there; `"l"` a line, `"L"` with
-- its end, `"a"` all to the end
-- @tparam ?table opts `from`: "stdout" (default) or "stderr"; `timeout` in seconds (default: for ever)
-- @treturn[1] string
-- @treturn[2] nil at the end
-- @treturn[3] nil
-- @treturn[3] error `ETIMEDOUT`: what was read so far comes with the next read
function Program:read(what, opts)
    check(self, "program", "read")
    what = options.argument("program:read", "what", reader.what, what)
    opts = options.check("program:read", READ, opts)
    return reader_of(self, opts.from or 1):read(what, opts.timeout)
end

--- Lines that it writes, as they come.
-- @tparam[opt="stdout"] string from "stdout" or "stderr"
-- @tparam ?table opts `timeout` in seconds for each line (default: for ever)
-- @treturn function iterator over lines, without their ends
-- @raise the error table, as reading goes on
function Program:lines(from, opts)
    check(self, "program", "lines")
    local stream = options.argument("program:lines", "from", stream_kind, from)
    opts = options.check("program:lines", TIMEOUT, opts)
    return reader_of(self, stream):lines(false, opts.timeout)
end

--- Waits until it has ended. May be called again.
-- @tparam ?number|table opts seconds, or `timeout` in seconds (default: for ever)
-- @treturn[1] table `status` (128 + signal if one ended it), `signal` (its number, or nil)
-- @treturn[2] nil
-- @treturn[2] error
function Program:wait(opts)
    check(self, "program", "wait")
    return core.program_wait(self, options.timeout("program:wait", opts))
end

local function signal_kind(v)
    if type(v) == "string" then
        local n = SIGNALS[v:upper():gsub("^SIG", "")]
        if n then return n end
    elseif type(v) == "number" then
        local n = math.tointeger(v)
        if n and n >= 0 and n <= 64 then return n end
    end
    return nil, [[a signal such as "TERM" or 15]]
end

--- Sends a signal to it and what it has started (its process group).
-- @tparam string|integer signal such as `"TERM"` or 15
-- @treturn[1] program itself
-- @treturn[2] nil
-- @treturn[2] error
function Program:signal(signal)
    check(self, "program", "signal")
    local n = options.argument("program:signal", "signal", signal_kind, signal)
    local ok, err = core.program_signal(self, n)
    if not ok then return nil, err end
    return self
end

--- Tells it that its terminal has another size.
-- @tparam integer rows
-- @tparam integer cols
-- @treturn[1] program itself
-- @treturn[2] nil
-- @treturn[2] error it has no terminal, or has ended
function Program:resize(rows, cols)
    check(self, "program", "resize")
    local whole = options.count(1, 65535)
    rows = options.argument("program:resize", "rows", whole, rows)
    cols = options.argument("program:resize", "cols", whole, cols)
    local ok, err = core.program_resize(self, rows, cols)
    if not ok then return nil, err end
    return self
end

--- Kills it, unless it was detached, and lets go of it. Closing twice is harmless.
function Program:close()
    if core.kind(self) ~= "program" then check(self, "program", "close") end
    core.close(self)
end

handle.define("program", Program, {
    pid = core.program_pid,
    exit_fd = function(self) return core.program_fd(self) end,
    stdin_fd = function(self) return core.program_fd(self, 0) end,
    stdout_fd = function(self) return core.program_fd(self, 1) end,
    stderr_fd = function(self) return core.program_fd(self, 2) end,
}, function(self)
    return ("program (pid %d)"):format(core.program_pid(self))
end)

return M
