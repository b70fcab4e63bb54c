-- SPDX-License-Identifier: MIT
--- Sockets of a guest: streams as `vm:connect` and `listener:accept` return them, and listeners.
--
-- Field: `fd`, for poll.
-- @classmod stream

local core = require "fcvm.core"
local handle = require "fcvm.handle"
local options = require "fcvm.options"
local reader = require "fcvm.reader"

local Stream = {}
local check = handle.check

-- stream -> its reader
local readers = setmetatable({}, { __mode = "k" })

local function reader_of(stream)
    if not readers[stream] then
        -- the reader must not keep the stream: it is the value of a table that is weak in the stream
        local weak = setmetatable({ stream = stream }, { __mode = "v" })
        readers[stream] = reader.new(function(size, timeout)
            return core.stream_read(weak.stream, size, timeout)
        end)
    end
    return readers[stream]
end

local TIMEOUT = { timeout = options.seconds }

--- Writes all of it.
-- @tparam string data
-- @tparam ?table opts `timeout` in seconds (default: for ever)
-- @treturn[1] stream itself
-- @treturn[2] nil
-- @treturn[2] error `EPIPE`, `ETIMEDOUT`
function Stream:write(data, opts)
    check(self, "stream", "write")
    options.argument("stream:write", "data", options.data, data)
    opts = options.check("stream:write", TIMEOUT, opts)
    local ok, err = core.stream_write(self, data, opts.timeout)
    if not ok then return nil, err end
    return self
end

--- Reads.
-- @tparam[opt=65536] integer|string what at most so many bytes, as soon as some are there; `"l"` a line, `"L"` with
-- its end, `"a"` all to the end
-- @tparam ?table opts `timeout` in seconds (default: for ever)
-- @treturn[1] string
-- @treturn[2] nil at the end
-- @treturn[3] nil
-- @treturn[3] error
function Stream:read(what, opts)
    check(self, "stream", "read")
    what = options.argument("stream:read", "what", reader.what, what)
    opts = options.check("stream:read", TIMEOUT, opts)
    return reader_of(self):read(what, opts.timeout)
end

--- Lines as they come.
-- @tparam ?table opts `timeout` in seconds for each line (default: for ever)
-- @treturn function iterator over lines, without their ends
-- @raise the error table, as reading goes on
function Stream:lines(opts)
    check(self, "stream", "lines")
    opts = options.check("stream:lines", TIMEOUT, opts)
    return reader_of(self):lines(false, opts.timeout)
end

--- Ends our direction: the peer reads the end of file, and may still write.
-- @treturn[1] stream itself
-- @treturn[2] nil
-- @treturn[2] error
function Stream:shutdown()
    check(self, "stream", "shutdown")
    local ok, err = core.stream_shutdown(self)
    if not ok then return nil, err end
    return self
end

--- Closes it. Closing twice is harmless.
function Stream:close()
    if core.kind(self) ~= "stream" then check(self, "stream", "close") end
    core.close(self)
end

handle.define("stream", Stream, { fd = core.stream_fd }, function(self)
    return ("stream (fd %d)"):format(core.stream_fd(self))
end)

--- A socket that is listened on in a guest, as `vm:listen` returns it.
-- @type listener
local Listener = {}

--- Waits for somebody in the guest to connect.
-- @tparam ?number|table opts seconds, or `timeout` in seconds (default: for ever)
-- @treturn[1] stream
-- @treturn[2] nil
-- @treturn[2] error
function Listener:accept(opts)
    check(self, "listener", "accept")
    return core.listener_accept(self, options.timeout("listener:accept", opts) or math.huge)
end

--- Stops listening. Closing twice is harmless.
function Listener:close()
    if core.kind(self) ~= "listener" then check(self, "listener", "close") end
    core.close(self)
end

handle.define("listener", Listener, {}, function() return "listener" end)

return { Stream = Stream, Listener = Listener }
