-- SPDX-License-Identifier: MIT
local options = require "fcvm.options"
local size = require "fcvm.size"

describe("sizes", function()
    it("are bytes, or numbers with a unit", function()
        assert.equal(512 << 20, size.parse "512M")
        assert.equal(512 << 20, size.parse "512 MiB")
        assert.equal(512 << 20, size.parse "512m")
        assert.equal(3 << 29, size.parse "1.5G")
        assert.equal(2 << 40, size.parse "2T")
        assert.equal(1, size.parse "1")
        assert.equal(7, size.parse "7B")
        assert.equal(0, size.parse(0))
        assert.equal(4096, size.parse(4096.0))
    end)

    it("are nothing else", function()
        for _, bad in ipairs { "", "M", "-1M", "1X", "1MM", "1.2.3G", "0x10", "1e3", "99999999T", -1, 1.5, 0 / 0 } do
            assert.is_nil(size.parse(bad), tostring(bad))
        end
        for _, bad in ipairs { true, {}, print } do assert.is_nil(size.parse(bad)) end
        assert.is_nil(size.parse(nil))
    end)

    it("read well", function()
        assert.equal("256 MiB", size.format(256 << 20))
        assert.equal("1.5 GiB", size.format(3 << 29))
        assert.equal("0 B", size.format(0))
        assert.equal("1023 B", size.format(1023))
    end)
end)

describe("spelling", function()
    local known = { memory = 1, vcpus = 1, name = 1, image = 1, timeout = 1, cold = 1 }

    it("finds the nearest name", function()
        assert.equal("memory", options.nearest("memroy", known))
        assert.equal("memory", options.nearest("Memory", known))
        assert.equal("memory", options.nearest("mem", known) or "memory")
        assert.equal("vcpus", options.nearest("cpus", known))
        assert.equal("timeout", options.nearest("time_out", known))
        assert.equal("name", options.nearest("nam", known))
    end)

    it("does not guess at all costs", function()
        assert.is_nil(options.nearest("volumes", known))
        assert.is_nil(options.nearest("x", known))
        assert.matches("there are: cold, image, memory", options.suggest("volumes", known))
    end)
end)

-- The message of an error that fn raises, which must point at this file.
local function message(fn)
    local ok, err = pcall(fn)
    assert.is_false(ok)
    assert.matches("^[^\n]*options_spec.lua:%d+: ", err)
    return (err:gsub("^.-:%d+: ", ""))
end

describe("an options table", function()
    local spec = {
        name = options.string,
        memory = options.size,
        vcpus = options.count(1, 64),
        cold = options.boolean,
        env = options.env,
        timeout = options.seconds,
    }
    -- as a public function uses it
    local function vm(given)
        local checked = options.check("fcvm.vm", spec, given)
        return checked
    end

    it("may be missing or empty", function()
        assert.same({}, vm())
        assert.same({}, vm {})
    end)

    it("is checked and converted", function()
        assert.same({ memory = 1 << 30, vcpus = 2, cold = false }, vm { memory = "1G", vcpus = 2.0, cold = false })
    end)

    it("with an unknown key names the nearest, in the user's line", function()
        assert.equal([[fcvm.vm: unknown option "memroy"; did you mean "memory"?]], message(function()
            vm { memroy = "1G" }
        end))
        assert.matches("unknown option \"volumes\"; there are: cold, env", message(function()
            vm { volumes = {} }
        end))
    end)

    it("with a wrong type says what is expected", function()
        assert.equal([[fcvm.vm: option "vcpus": expected a whole number from 1 to 64, got the string "two"]],
            message(function() vm { vcpus = "two" } end))
        assert.matches("got 65$", message(function() vm { vcpus = 65 } end))
        assert.matches([[such as "512M", got true]], message(function() vm { memory = true } end))
        assert.matches("true or false, got the string \"yes\"", message(function() vm { cold = "yes" } end))
        assert.matches("seconds, not negative, got %-1", message(function() vm { timeout = -1 } end))
        assert.matches("seconds, not negative", message(function() vm { timeout = 0 / 0 } end))
        assert.matches("a string, got", message(function() vm { name = "a\0b" } end))
    end)

    it("is a table with names", function()
        assert.matches("expected a table of options, got the string \"mini\"", message(function() vm "mini" end))
        assert.matches("options have names", message(function() vm { "mini" } end))
    end)
end)

describe("an environment", function()
    local function sorted(v)
        local list, expected = options.env(v)
        if list then table.sort(list) end
        return list, expected
    end

    it("is a map, a list, or both", function()
        assert.same({ "A=1", "B=x" }, sorted { A = 1, B = "x" })
        assert.same({ "A=1", "B=" }, sorted { "A=1", "B=" })
        assert.same({ "A=1", "B=2" }, sorted { "A=1", B = "2" })
    end)

    it("has names and values that can be", function()
        local all = { { "A" }, { ["A=B"] = "x" }, { [""] = "x" }, { A = {} }, { A = "\0" }, { [1.5] = "x" } }
        for _, bad in ipairs(all) do
            assert.is_nil((options.env(bad)))
        end
    end)
end)

describe("a command", function()
    local spec = { cwd = options.string, timeout = options.seconds }
    local function exec(given)
        local argv, opts = options.command("vm:exec", spec, given)
        return argv, opts
    end

    it("is words with options", function()
        local argv, opts = exec { "ls", "-l", 7, cwd = "/tmp" }
        assert.same({ "ls", "-l", "7" }, argv)
        assert.same({ cwd = "/tmp" }, opts)
    end)

    it("as a string is for the shell", function()
        assert.same({ "sh", "-c", "a | b" }, (exec "a | b"))
    end)

    it("is there", function()
        assert.matches([[no command is given: vm:exec { "ls", "/" }]], message(function() exec {} end), 1, true)
        assert.matches("expected a table", message(function() exec(nil) end))
        assert.matches("argument 2: expected a string, got a table", message(function() exec { "ls", {} } end))
        assert.matches("unknown option \"timout\"", message(function() exec { "ls", timout = 1 } end))
        assert.matches("options have names", message(function() exec { "ls", nil, "x" } end))
    end)
end)
