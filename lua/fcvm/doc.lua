-- SPDX-License-Identifier: MIT
--- Help at the prompt, out of the comments in the source.
-- @module fcvm.doc

local M = {}

-- ---- comments ----

local sources = {} -- path -> list of lines, or false

local function lines_of(path)
    if sources[path] == nil then
        local file = io.open(path, "r")
        local lines = {}
        if file then
            for line in file:lines() do lines[#lines + 1] = line end
            file:close()
        end
        sources[path] = file and lines or false
    end
    return sources[path]
end

-- The comment that ends above the line, as a list of lines without their dashes; nil if it is no doc comment.
local function comment_above(lines, number)
    local first = number
    while first > 1 and lines[first - 1]:find "^%s*%-%-" do first = first - 1 end
    -- several comments in a row: the last that begins with three dashes
    for i = number - 1, first, -1 do
        if lines[i]:find "^%s*%-%-%-" then
            local comment = {}
            for j = i, number - 1 do comment[#comment + 1] = (lines[j]:gsub("^%s*%-%-%-? ?", "")) end
            return comment
        end
    end
    return nil
end

local function split(text)
    local first, rest = text:match "^(%S+)%s*(.*)$"
    return first or "", rest or ""
end

-- "error `ENOENT`: no such" as in "nil and an error: ..."
local function failure_text(text)
    local what = text:match "^error%s*(.*)$"
    if not what then return text end
    return "an error" .. (what ~= "" and ": " .. what or "")
end

-- One LDoc tag as people read it, or nil and what is added to the line before. state.alternative: the number of the
-- last @treturn[n].
local function tag_text(tag, modifiers, text, state)
    local optional = modifiers:match "opt=([^%]]*)"
    if tag == "tparam" or tag == "param" then
        local kind, name = "", text
        if tag == "tparam" then kind, name = split(text) end
        local rest
        name, rest = split(name)
        kind = kind:gsub("^%?", "")
        local notes = kind ~= "" and " (" .. kind .. (optional and ", default " .. optional or "") .. ")" or ""
        return ("  %s%s%s"):format(name, notes, rest ~= "" and ": " .. rest or "")
    elseif tag == "treturn" or tag == "return" then
        local alternative = modifiers:match "%d+" or "1"
        local again = state.alternative == alternative
        state.alternative = alternative
        if again then return nil, " and " .. failure_text(text) end
        local start = state.returned and "  or " or "  returns "
        state.returned = true
        return start .. text
    elseif tag == "raise" then
        return "  raises " .. text
    end
    return nil
end

-- LDoc text to plain text.
local function plain(comment)
    local out, state = {}, {}
    for _, line in ipairs(comment) do
        local tag, modifiers, text = line:match "^@(%a+)(%S*)%s*(.*)$"
        local more
        if tag then
            line, more = tag_text(tag, modifiers, text, state)
            state.tagged = true
        elseif state.tagged and line ~= "" then
            line = "      " .. line
        end
        if more then out[#out] = out[#out] .. more:gsub("`", "") end
        if line then out[#out + 1] = (line:gsub("`", "")) end
    end
    while out[#out] and out[#out]:find "^%s*$" do out[#out] = nil end
    return table.concat(out, "\n")
end

-- "vm:exec(command)" of the line where a function begins.
local function signature(line)
    local name, args = line:match "function%s+([%w_.:]+)%s*(%b())"
    if not name then return nil end
    return (name:gsub("^M%.", "fcvm."):gsub("^(%u%a*)([.:])", function(class, dot) return class:lower() .. dot end))
        .. args
end

local function of_function(fn)
    local info = debug.getinfo(fn, "S")
    local path = info.source:match "^@(.*)"
    local lines = path and lines_of(path)
    if not lines or not lines[info.linedefined] then return nil end
    local comment = comment_above(lines, info.linedefined)
    local head = signature(lines[info.linedefined])
    if not comment then return nil, head end
    return (head and head .. "\n" or "") .. plain(comment)
end

-- ---- members ----

-- The metatable's tables of a handle (set by fcvm.handle).
local function parts_of(value)
    local meta = getmetatable(value)
    if type(meta) ~= "table" then return nil end
    local methods = rawget(meta, "__methods")
    if methods then return methods, rawget(meta, "__fields") end
    local index = rawget(meta, "__index")
    if type(index) == "table" then return index, {} end
    return nil
end

--- The names that may follow `value.` or `value:`, for completion.
-- @param value a handle, or any table
-- @treturn {string,...} sorted
function M.members(value)
    local set, names = {}, {}
    local function add(t)
        for key in next, t do
            if type(key) == "string" and not key:find "^__" then set[key] = true end
        end
    end
    if type(value) == "table" then add(value) end
    local methods, fields = parts_of(value)
    if type(value) == "string" then methods, fields = string, {} end
    if methods then
        add(methods)
        add(fields)
    end
    for name in pairs(set) do names[#names + 1] = name end
    table.sort(names)
    return names
end

-- "exec(command)   Runs a program in the guest to its end."
local function summary(t, prefix)
    local rows, names, width = {}, {}, 0
    for name, fn in pairs(t) do
        if type(name) == "string" and type(fn) == "function" and not name:find "^_" then names[#names + 1] = name end
    end
    table.sort(names)
    for _, name in ipairs(names) do
        local text = of_function(t[name])
        -- the first sentence, or what there is up to an empty line or a list of parameters
        local first = text and text:match "\n(.*)" or ""
        first = (first:match "^(.-)\n%s" or first:match "^(.-)\n\n" or first):gsub("\n", " ")
        local head = text and text:match "%b()" or "()"
        local row = { prefix .. name .. head, first:match "^(.-%.)%s" or first }
        width = math.max(width, #row[1])
        rows[#rows + 1] = row
    end
    for i, row in ipairs(rows) do
        rows[i] = ("  %-" .. math.min(width, 40) .. "s  %s"):format(row[1], row[2]):gsub("%s+$", "")
    end
    return table.concat(rows, "\n")
end

-- The comment at the head of a file that a table's function comes from.
local function head_comment(t)
    for _, fn in pairs(t) do
        if type(fn) == "function" then
            local path = debug.getinfo(fn, "S").source:match "^@(.*)"
            local lines = path and lines_of(path)
            if lines and lines[2] and lines[2]:find "^%-%-%- " then
                local stop = 2
                while lines[stop] and lines[stop]:find "^%-%-" do stop = stop + 1 end
                return plain(comment_above(lines, stop) or {})
            end
        end
    end
    return nil
end

local function of_table(t, prefix, heading)
    local parts = {}
    if heading and heading ~= "" then parts[#parts + 1] = heading end
    local rows = summary(t, prefix)
    if rows ~= "" then parts[#parts + 1] = rows end
    return table.concat(parts, "\n\n")
end

--- The documentation of a value.
-- @param x a function (`vm.exec`, `fcvm.vm`), a handle, or a table of functions
-- @treturn[1] string
-- @treturn[2] nil if there is none
function M.text(x)
    if type(x) == "function" then
        local text, head = of_function(x)
        return text or head
    end
    local methods = parts_of(x)
    if methods then return of_table(methods, ":", head_comment(methods)) end
    if type(x) == "table" then
        local fcvm = package.loaded["fcvm"]
        -- its functions come from several files: its own is where fcvm.vm is
        local text = of_table(x, "", x == fcvm and head_comment { fcvm.vm } or nil)
        if text ~= "" then return text end
    end
    return nil
end

--- Prints the documentation of a value: `help(vm.exec)`, `help(vm)`, `help(fcvm)`.
-- @param x a function, a handle, or a table of functions; none: where to begin
function M.help(x)
    if x == nil then
        print [[
help(fcvm)       what the library has
help(vm)         a handle's methods and fields
help(vm.exec)    one function]]
        return
    end
    print(M.text(x) or "There is no documentation of this " .. type(x) .. ".")
end

return M
