-- SPDX-License-Identifier: MIT
-- What the prompt shows: values and help. And that nothing public is left undocumented.
local core = require "fcvm.core"
local doc = require "fcvm.doc"
local fcvm = require "fcvm"
local pretty = require "fcvm.pretty"

describe("pretty printing", function()
    it("shows an exec result in one line", function()
        assert.equal('{ status = 0, stdout = "bin\\ndev\\n", stderr = "" }',
            pretty.format { stderr = "", stdout = "bin\ndev\n", status = 0 })
        local long = pretty.format { status = 0, stdout = ("a line of text\n"):rep(10), stderr = "" }
        assert.equal('{ status = 0, stdout = "a line of text\\na line of text\\n...", stderr = "" }', long)
    end)

    it("shows lists and names as Lua would read them", function()
        assert.equal('{ 1, "two", { true } }', pretty.format { 1, "two", { true } })
        assert.equal('{ 1, [10] = 4, ["a b"] = 2, ["end"] = 3 }',
            pretty.format { 1, ["a b"] = 2, ["end"] = 3, [10] = 4 })
        assert.equal("{}", pretty.format {})
        assert.equal("nil", pretty.format(nil))
        assert.equal('"a\\"b\\x00"', pretty.format 'a"b\0')
        assert.equal('"\\xff"', pretty.format "\xff")
    end)

    it("breaks what is long, and ends what has none", function()
        local t = {}
        for i = 1, 40 do t[i] = "item " .. i end
        assert.matches('^{\n    "item 1",\n', pretty.format(t))
        t = {}
        for i = 1, 1000 do t[i] = i end
        assert.matches("%.%.%. 900 more", pretty.format(t))
        local loop = {}
        loop.self = loop
        assert.equal("{ self = { its own table } }", pretty.format(loop))
    end)

    it("shows text of several lines as it is", function()
        assert.equal("one\ntwo", pretty.format "one\ntwo\n")
    end)

    it("leaves it to values that can show themselves", function()
        local _, err = fcvm.snapshot "there-is-no-such-snapshot"
        assert.equal(tostring(err), pretty.format(err))
    end)
end)

describe("help", function()
    it("knows functions", function()
        local text = doc.text(fcvm.vm)
        assert.matches("^fcvm%.vm%(opts%)\nMakes a virtual machine", text)
        assert.is_nil(text:find("@", 1, true))
        assert.is_nil(text:find("`", 1, true))
        local vm <close> = fcvm.vm { name = "help-spec" }
        assert.matches("^vm:snapshot%(opts%)\nTakes a snapshot", doc.text(vm.snapshot))
        assert.matches("or nil and an error", doc.text(vm.snapshot))
    end)

    it("knows handles and the module", function()
        local vm <close> = fcvm.vm { name = "help-spec" }
        assert.matches("^Virtual machines", doc.text(vm))
        assert.matches(":exec%(command%)%s+Runs a program", doc.text(vm))
        assert.matches("parallel%(list, fn, opts%)", doc.text(fcvm))
        assert.is_nil(doc.text(12))
    end)

    it("knows what may follow a name", function()
        local vm <close> = fcvm.vm { name = "help-spec" }
        local members = table.concat(doc.members(vm), " ")
        for _, name in ipairs { "exec", "state", "snapshot", "vcpus" } do assert.matches(name, members) end
        assert.matches("parallel", table.concat(doc.members(fcvm), " "))
        assert.same({}, doc.members(12))
    end)
end)

describe("every public function", function()
    local source = debug.getinfo(fcvm.vm, "S").source:gsub("^@", "")
    local file = assert(io.open((source:gsub("fcvm/init.lua$", "library/fcvm.lua"))))
    local definitions = file:read "a"
    file:close()

    local function each(visit)
        for name, fn in pairs(fcvm) do
            if type(fn) == "function" then visit("fcvm." .. name, fn) end
        end
        for kind, meta in pairs(core.meta) do
            local class = kind == "vm" and "VM" or kind:sub(1, 1):upper() .. kind:sub(2)
            for name, fn in pairs(meta.__methods) do visit(class .. ":" .. name, fn) end
        end
        local snapshot = require "fcvm.snapshot"
        local task = require "fcvm.task"
        local classes = { Clones = snapshot.Clones, Pool = snapshot.Pool, Task = task.Task, Loop = task.Loop }
        for class, methods in pairs(classes) do
            for name, fn in pairs(methods) do
                if type(fn) == "function" and not name:find "^__" then visit(class .. ":" .. name, fn) end
            end
        end
    end

    it("has a comment", function()
        each(function(name, fn)
            local text = doc.text(fn)
            assert.is_truthy(text and text:find "\n", name)
        end)
    end)

    it("is in the definitions for editors", function()
        each(function(name)
            assert.is_truthy(definitions:find("function " .. name .. "(", 1, true), name)
        end)
    end)

    it("and every field as well", function()
        for _, meta in pairs(core.meta) do
            for name in pairs(meta.__fields) do
                assert.is_truthy(definitions:find("@field " .. name .. " ", 1, true), name)
            end
        end
    end)
end)
