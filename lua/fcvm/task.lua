-- SPDX-License-Identifier: MIT
--- Tasks: functions that wait side by side, on one thread.
--
-- Inside a task a call that blocks (`vm:exec`, `snap:clone`, `fcvm.sleep`, ...) lets other tasks run until it is
-- done. Outside of tasks it just blocks. Only calls of fcvm switch tasks, so between two of them nobody else
-- touches your variables.
-- @module fcvm.task

local core = require "fcvm.core"
local options = require "fcvm.options"

local M = {}

-- Theory of operation. A task's coroutine yields one of three things: a call of the core (it is resumed when the
-- call is done), PARK (it is resumed by wake()), or anything else (it is resumed in the next turn). All tasks that
-- can run are in one queue; a turn of the loop takes what calls are done, then runs each task that was in the queue
-- once.
--
--   ready -> running -> calling | parked | ready | done;  calling, parked -> ready
--
-- Outside of a task, whoever waits turns the loop himself.

local PARK = {}

local queue = { first = 1, last = 0 } -- of tasks that can run
local calling = {} -- call -> task
local ncalling = 0
local alive = 0 -- tasks that are not done
local current -- the task that runs
local failures = setmetatable({}, { __mode = "v" }) -- failed tasks that nobody has awaited; weak, by number
local nfailures = 0

--- A task, as `fcvm.spawn` returns it.
-- @type Task
local Task = {}
Task.__index = Task
Task.__name = "fcvm.task"

-- ---- the scheduler ----

local function enqueue(t)
    -- what can fail for want of memory comes first
    local last = queue.last + 1
    queue[last] = t
    queue.last = last
    t.state = "ready"
    -- somebody else's event loop is to come round
    core.wake()
end

-- Makes the tasks in the list ready that are parked there.
local function wake(waiters)
    for i = 1, #waiters do
        local t = waiters[i]
        waiters[i] = nil
        if t.state == "parked" and t.waiters == waiters then enqueue(t) end
    end
end

local function finish(t, ok, ...)
    t.state, t.ok, t.results = "done", ok, table.pack(...)
    t.co = nil
    alive = alive - 1
    if t.group then
        t.group:ended(t)
    elseif not ok and not t.observed and not t.cancelling then
        nfailures = nfailures + 1
        failures[nfailures] = t
    end
    wake(t.waiters_for_me)
end

-- coroutine.resume's results: what the body's xpcall returned, if the coroutine has ended.
local function switched(t, resumed, ...)
    core.running(nil)
    current = nil
    local value = ...
    if coroutine.status(t.co) == "dead" then
        if resumed then
            finish(t, ...)
        else
            finish(t, false, value)
        end
    elseif core.is_call(value) then
        t.state, t.call = "calling", value
        calling[value] = t
        ncalling = ncalling + 1
        if t.cancel_soon and core.cancel(value) then t.cancel_soon = nil end
    elseif value == PARK then
        t.state = "parked"
        if t.cancel_soon then enqueue(t) end
    else
        t.yielded = true
        enqueue(t)
    end
    return t.state == "done" and not t.ok and rawequal(t.results[1], core.interrupted)
end

-- Runs it until it waits. true: an interrupt has ended it.
local function resume(t)
    local yielded = t.yielded
    t.state, t.call, t.begun, t.yielded = "running", nil, true, nil
    current = t
    core.running(t.co)
    if yielded and t.cancel_soon then
        -- nothing can be raised out of a plain coroutine.yield(): the coroutine is closed there
        local ok, err = coroutine.close(t.co)
        return switched(t, true, false, ok and core.cancelled or err)
    end
    return switched(t, coroutine.resume(t.co))
end

local function run_queue()
    local interrupted = false
    for _ = queue.first, queue.last do
        -- a turn within a turn may have taken some
        if queue.first > queue.last then break end
        local t = queue[queue.first]
        queue[queue.first] = nil
        queue.first = queue.first + 1
        if t.state == "ready" and resume(t) then interrupted = true end
    end
    -- Ctrl-C means everybody, whichever task it happened to hit
    if interrupted then error(core.interrupted, 0) end
end

local function turn_once(timeout)
    if queue.first <= queue.last then timeout = 0 end
    core.wait(timeout)
    for call in core.take do
        local t = calling[call]
        if t then
            calling[call] = nil
            ncalling = ncalling - 1
            enqueue(t)
        end
    end
    run_queue()
end

-- Runs fn(...) as the scheduler: an interrupt does not strike between its lines, and there is no current task.
local function as_scheduler(fn, ...)
    local task = current
    local before = core.scheduling(true)
    core.running(nil)
    current = nil
    local ok, err = pcall(fn, ...)
    current = task
    core.running(task and task.co)
    core.scheduling(before)
    if not ok then error(err, 0) end
end

local function turn(timeout)
    as_scheduler(turn_once, timeout)
end

-- Is this code a task's own coroutine, that can wait by yielding?
local function in_task()
    return current and coroutine.running() == current.co and coroutine.isyieldable()
end

-- Returns when somebody may have called wake(waiters): the caller looks again. Raises fcvm.cancelled.
local function wait(waiters)
    if not in_task() then
        if queue.first > queue.last and ncalling == 0 then
            error("deadlock: what is waited for waits for nothing that can happen", 0)
        end
        return turn(nil)
    end
    local t = current
    waiters[#waiters + 1] = t
    t.waiters = waiters
    coroutine.yield(PARK)
    t.waiters = nil
    if t.cancel_soon then
        t.cancel_soon = nil
        error(core.cancelled, 0)
    end
end

-- ---- tasks ----

-- The error as it is to be seen elsewhere: with the place where it happened.
local function with_traceback(err)
    if type(err) == "string" then
        return debug.traceback(err, 2)
    elseif type(err) == "table" and getmetatable(err) == core.error and not err.traceback then
        err.traceback = debug.traceback(nil, 2)
    end
    return err
end

local function new_task(fn, group, ...)
    local args = table.pack(...)
    local t = setmetatable({ state = "ready", group = group, waiters_for_me = {} }, Task)
    t.co = coroutine.create(function()
        -- xpcall within the coroutine, so that <close> variables are closed by the task itself, and may wait
        return xpcall(fn, with_traceback, table.unpack(args, 1, args.n))
    end)
    core.adopt(t.co)
    alive = alive + 1
    return t
end

-- From outside of tasks a task runs at once until it first waits: what it waits for is under way then, whatever
-- the caller does next. From within a task it runs in the next turn.
local function start(t)
    if current then
        enqueue(t)
    else
        as_scheduler(function()
            if resume(t) then error(core.interrupted, 0) end
        end)
    end
    return t
end

--- Starts a task: `fn(...)` runs beside whatever else does.
-- @tparam function fn
-- @param ... its arguments
-- @treturn Task
-- @raise if `fn` is no function
function M.spawn(fn, ...)
    options.argument("fcvm.spawn", "fn", options.func, fn)
    return start(new_task(fn, nil, ...))
end

local function task_of(self, name)
    if getmetatable(self) ~= Task then
        error(("task:%s(): called on a %s; methods are called with a colon"):format(name, type(self)), 3)
    end
end

--- Waits until the task has ended.
-- @return what its function returned
-- @raise the error that ended it, with the task's traceback; `fcvm.cancelled` if it was cancelled
function Task:await()
    task_of(self, "await")
    if self == current then error("a task cannot wait for itself", 2) end
    self.observed = true
    while self.state ~= "done" do wait(self.waiters_for_me) end
    if not self.ok then error(self.results[1], 0) end
    return table.unpack(self.results, 1, self.results.n)
end

--- Cancels the task: the call that it waits in ends, and raises `fcvm.cancelled` there, so that its `<close>`
-- variables are closed. Does not wait for that. Closing a handle is not cancelled: the call after it is. A task that
-- has ended is left alone.
function Task:cancel()
    task_of(self, "cancel")
    if self.state == "done" then return end
    self.cancelling = true
    if not self.begun then
        finish(self, false, core.cancelled)
    elseif not (self.call and core.cancel(self.call)) then
        -- raised where it is parked, or at its next wait
        self.cancel_soon = true
        if self.state == "parked" then enqueue(self) end
    end
end

--- Has the task ended?
-- @treturn boolean
function Task:done()
    task_of(self, "done")
    return self.state == "done"
end

function Task:__close(err)
    self:cancel()
    while self.state ~= "done" do wait(self.waiters_for_me) end
    -- an error that nobody has seen is not lost with the variable
    if not self.ok and not self.observed and not self.cancelling and err == nil then
        self.observed = true
        error(self.results[1], 0)
    end
    self.observed = true
end

function Task:__gc()
    if self.state == "done" and not self.ok and not self.observed and not self.group and not self.cancelling and
        not rawequal(self.results[1], core.interrupted) then
        warn("fcvm: a task that nobody waited for has failed: ", tostring(self.results[1]))
    end
end

function Task:__tostring()
    local state = self.state
    if state == "done" then state = self.ok and "done" or "failed" end
    if state == "calling" or state == "parked" then state = "waiting" end
    return "task (" .. state .. ")"
end

-- ---- groups: tasks that end together ----

local Group = {}
Group.__index = Group

function M.group()
    return setmetatable({ tasks = {}, open = 0, waiters = {} }, Group)
end

function Group:spawn(fn, ...)
    local t = new_task(fn, self, ...)
    self.tasks[t] = true
    self.open = self.open + 1
    start(t)
end

-- The first failure cancels the others.
function Group:ended(t)
    self.tasks[t] = nil
    self.open = self.open - 1
    if not t.ok and not self.failed and not (self.closing and rawequal(t.results[1], core.cancelled)) then
        self.failed, self.error = true, t.results[1]
        self:cancel()
    end
    wake(self.waiters)
end

function Group:cancel()
    if self.closing then return end
    self.closing = true
    local tasks = {}
    for t in pairs(self.tasks) do tasks[#tasks + 1] = t end
    for _, t in ipairs(tasks) do t:cancel() end
end

-- Until all have ended. Raises the first failure.
function Group:wait()
    while self.open > 0 do wait(self.waiters) end
    if self.failed then error(self.error, 0) end
end

function Group:__close()
    self:cancel()
    while self.open > 0 do wait(self.waiters) end
end

-- ---- many at once ----

local PARALLEL = { limit = options.count(1, 1000000), ordered = options.boolean }

-- Starts tasks that call work(i) for i = 1 .. n, `limit` at a time.
function M.spread(group, n, limit, work)
    local next_index = 1
    local function runner()
        while next_index <= n do
            local i = next_index
            next_index = i + 1
            work(i)
        end
    end
    for _ = 1, math.min(limit or n, n) do
        -- those before may have done all, or failed
        if next_index > n or group.closing then break end
        group:spawn(runner)
    end
end

local function each(list, fn, limit)
    local group = M.group()
    local done, first, last = {}, 1, 0
    M.spread(group, #list, limit, function(i)
        local results = table.pack(list[i], fn(list[i], i))
        last = last + 1
        done[last] = results
        wake(group.waiters)
    end)
    return function()
        while first > last and group.open > 0 do wait(group.waiters) end
        if group.failed then group:wait() end
        local results = done[first]
        if not results then return nil end
        done[first] = nil
        first = first + 1
        return table.unpack(results, 1, results.n)
    end, nil, nil, group
end

--- Calls `fn` for each item of a list, all at once or `limit` at a time, each in a task of its own, and gives the
-- results as they come.
--
--     for vm, out, err in fcvm.each(clones, function(vm) return vm:exec { "hostname" } end) do ... end
--
-- Leaving the loop cancels what still runs.
-- @tparam table list
-- @tparam function fn called as `fn(item, index)`
-- @tparam ?table opts `limit`: how many at a time (default: all)
-- @treturn function iterator over item and the results of `fn`
-- @raise the first error of `fn`, after the others were cancelled and have ended
function M.each(list, fn, opts)
    options.argument("fcvm.each", "list", options.list, list)
    options.argument("fcvm.each", "fn", options.func, fn)
    return each(list, fn, options.check("fcvm.each", { limit = PARALLEL.limit }, opts).limit)
end

--- Calls `fn` for each item of a list, all at once or `limit` at a time, each in a task of its own, and waits for
-- all.
-- @tparam table list
-- @tparam function fn called as `fn(item, index)`
-- @tparam ?table opts `limit`: how many at a time (default: all); `ordered = false`: as `fcvm.each`
-- @treturn table the first result for each item, in the order of the list, and `n`, their number. Where that result
-- is nil and there is a second (an error), it is in `errors[i]` of the table.
-- @raise the first error of `fn`, with its traceback, after the others were cancelled and have ended
function M.parallel(list, fn, opts)
    options.argument("fcvm.parallel", "list", options.list, list)
    options.argument("fcvm.parallel", "fn", options.func, fn)
    opts = options.check("fcvm.parallel", PARALLEL, opts)
    if opts.ordered == false then return each(list, fn, opts.limit) end
    local results = { n = #list }
    local group <close> = M.group()
    M.spread(group, #list, opts.limit, function(i)
        local result, err = fn(list[i], i)
        results[i] = result
        if result == nil and err ~= nil then
            results.errors = results.errors or {}
            results.errors[i] = err
        end
    end)
    group:wait()
    return results
end

-- ---- a number of permits ----

local Semaphore = {}
Semaphore.__index = Semaphore

function M.semaphore(n)
    return setmetatable({ free = n, waiters = {} }, Semaphore)
end

function Semaphore:acquire()
    while self.free == 0 do wait(self.waiters) end
    self.free = self.free - 1
end

function Semaphore:release()
    self.free = self.free + 1
    wake(self.waiters)
end

-- ---- time and the loop ----

--- Waits. Inside a task others run meanwhile.
-- @tparam number seconds
function M.sleep(seconds)
    options.argument("fcvm.sleep", "seconds", options.seconds, seconds)
    core.sleep(seconds)
end

--- Waits until all tasks have ended. The program `fcvm script` does this after the script.
-- @raise the error of a task that failed and that nobody waited for
function M.run()
    if current then error("fcvm.run: called inside a task", 2) end
    local nobody = {}
    while alive > 0 do wait(nobody) end
    for i = 1, nfailures do
        local t = failures[i]
        failures[i] = nil
        if t and not t.observed then
            t.observed = true
            error(t.results[1], 0)
        end
    end
end

--- The loop that runs tasks, for programs with an event loop of their own.
-- @type Loop
local Loop = {}
Loop.__index = Loop
Loop.__name = "fcvm.loop"

--- A file descriptor that is readable whenever there is something to do for `step`. It stays the same.
-- @treturn integer
function Loop:fd() -- luacheck: ignore 212
    return core.fd()
end

--- Runs the tasks that can run.
-- @tparam[opt=0] number timeout seconds to wait for something to do
-- @treturn integer how many tasks have not ended
-- @raise `fcvm.interrupted`. Errors of tasks are their `await`'s.
function Loop:step(timeout) -- luacheck: ignore 212
    timeout = options.argument("loop:step", "timeout", options.seconds, timeout or 0)
    if current then error("loop:step: called inside a task", 2) end
    if alive > 0 or timeout > 0 then turn(timeout) end
    return alive
end

local loop = setmetatable({}, Loop)

--- The loop that runs tasks: `loop:fd()` for poll, `loop:step(timeout)` when it is readable.
--
--     local loop = fcvm.loop()
--     uv.new_poll(loop:fd()):start("r", function() loop:step(0) end)
--
-- @treturn Loop
function M.loop()
    return loop
end

M.Task, M.Loop = Task, Loop

return M
