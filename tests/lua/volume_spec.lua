-- SPDX-License-Identifier: MIT
-- What is said of volumes, without a guest.
local core = require "fcvm.core"
local fcvm = require "fcvm"

-- The message of an error that fn raises, which must point at this file.
local function message(fn)
    local ok, err = pcall(fn)
    assert.is_false(ok)
    err = tostring(err)
    assert.matches("^[^\n]*volume_spec.lua:%d+: ", err)
    return (err:gsub("^.-:%d+: ", ""))
end

local here = core.volume_host "."

describe("a volume as text", function()
    it("is two folders", function()
        assert.same({ host = here, guest = "/work", readonly = false, devices = false, locks = "host" },
            core.volume_parse ".:/work")
        assert.equal("/a:b", core.volume_parse("/a:b:/c").host)
        assert.equal("/c", core.volume_parse("/a:b:/c").guest)
        assert.equal("/", core.volume_parse("/tmp:/").guest)
    end)

    it("has options", function()
        local v = core.volume_parse ".:/work:ro,locks=guest,readers=4,timeout=0.5,uid_map=0:1000:1,uid_map=1:2000:5,gid_map=0:5:1"
        assert.same({
            host = here, guest = "/work", readonly = true, devices = false, locks = "guest", readers = 4, timeout = 0.5,
            uid_map = { { guest = 0, host = 1000, count = 1 }, { guest = 1, host = 2000, count = 5 } },
            gid_map = { { guest = 0, host = 5, count = 1 } },
        }, v)
        assert.is_false(core.volume_parse(".:/work:ro,rw").readonly)
        assert.is_true(core.volume_parse(".:/work:devices").devices)
    end)

    it("is nothing else", function()
        for _, bad in ipairs {
            "", ".", ":", ":/", ":/work", ".:", ".:work", ".:/w:", ".:/w:,", ".:/w:RO", ".:/w:ro,,", ".:/w:ro=1", ".:/w:locks",
            ".:/w:locks=", ".:/w:locks=both", ".:/w:readers=", ".:/w:readers=0", ".:/w:readers=257", ".:/w:readers=1x",
            ".:/w:readers=-1", ".:/w:timeout=", ".:/w:timeout=-1", ".:/w:timeout=nan", ".:/w:timeout=0x1",
            ".:/w:uid_map=0", ".:/w:uid_map=0:0", ".:/w:uid_map=0:0:0", ".:/w:uid_map=0:0:1:1",
            ".:/w:uid_map=0:0:4294967296", ".:/w:" .. ("x"):rep(200), ("x"):rep(5000) .. ":/w", ".:/" .. ("x"):rep(5000),
            ".:/w:" .. ("uid_map=0:0:1,"):rep(341) .. "ro",
        } do
            local v, why = core.volume_parse(bad)
            assert.is_nil(v, bad)
            assert.matches("^volume '", why)
        end
    end)

    it("has maps of as many ranges as the kernel takes, and says so", function()
        assert.equal(340, #core.volume_parse(".:/w:" .. ("uid_map=0:0:1,"):rep(340) .. "ro").uid_map)
        assert.matches("at most 340", select(2, core.volume_parse(".:/w:" .. ("gid_map=0:0:1,"):rep(341) .. "ro")))
    end)

    it("is of the folder that is here now", function()
        assert.equal("/usr", core.volume_host "/usr/../usr/.")
        assert.equal(here .. "/not-there", core.volume_host "not-there")
    end)
end)

describe("volumes as options", function()
    local function vm(volumes)
        local made <close> = fcvm.vm { volumes = volumes }
        return made
    end

    it("are tables or text", function()
        assert.has_no.errors(function()
            vm {}
            vm { ".:/work:ro", { host = ".", guest = "/data", readonly = true, locks = "guest", readers = 2, timeout = 0 } }
            vm { { host = ".", guest = "/data", uid_map = { { guest = 0, host = 1000 } } } }
        end)
    end)

    it("name the nearest key, and which volume it is", function()
        assert.equal([[fcvm.vm: option "volumes": volume 2: unknown option "readonyl"; did you mean "readonly"?]],
            message(function() vm { ".:/a", { host = ".", guest = "/b", readonyl = true } } end))
        assert.matches([[volume 1: unknown option "wait"]], message(function() vm { { host = ".", guest = "/b", wait = 1 } } end))
    end)

    it("say what is wrong", function()
        local function wrong(volume) return message(function() vm { volume } end) end
        assert.matches("volume 1: host is missing", wrong { guest = "/work" })
        assert.matches("volume 1: guest is missing", wrong { host = "." })
        assert.matches([[option "guest": expected an absolute path in the guest, such as "/work", got the string "work"]],
            wrong { host = ".", guest = "work" }, 1, true)
        assert.matches([["host" or "guest", got the string "all"]], wrong { host = ".", guest = "/w", locks = "all" })
        assert.matches("a whole number from 1 to 256, got 0", wrong { host = ".", guest = "/w", readers = 0 })
        assert.matches("seconds, not negative", wrong { host = ".", guest = "/w", timeout = -1 })
        assert.matches("entry 1: unknown option \"hots\"; did you mean \"host\"",
            wrong { host = ".", guest = "/w", uid_map = { { guest = 0, hots = 0 } } })
        assert.matches("a list of { guest =, host =, count = }", wrong { host = ".", guest = "/w", gid_map = { 5 } })
        assert.matches("volume 1: volume 'src': HOST:GUEST", wrong "src")
        assert.matches("volume 1: expected a table such as", wrong(7))
        assert.matches("expected a list of volumes", message(function() vm { host = ".", guest = "/w" } end))
        assert.matches("expected a list of volumes", message(function() vm ".:/work" end))
    end)

    it("are those of vm:mount and vm:unmount as well", function()
        local made <close> = fcvm.vm {}
        assert.matches([[^vm:mount: volume: unknown option "readonyl"; did you mean "readonly"?]],
            message(function() made:mount { host = ".", guest = "/b", readonyl = true } end))
        assert.matches("^vm:mount: volume: volume '%.': HOST:GUEST", message(function() made:mount "." end))
        assert.matches("^vm:mount: volume: expected a table such as", message(function() made:mount() end))
        assert.matches("option \"force\": expected true or false", message(function() made:unmount("/w", { force = 1 }) end))
        assert.matches([[unknown option "wait"]], message(function() made:unmount("/w", { wait = 1 }) end))
        assert.equal("EINVAL", select(2, made:unmount("/w", { timeout = 1 })).code)
        assert.matches("vm:unmount: guest: expected a string", message(function() made:unmount() end))
    end)

    it("have a root that is a path", function()
        assert.matches([[option "root": expected the path of a folder of this host]],
            message(function() fcvm.vm { root = "" } end))
        assert.matches([[option "root": expected the path of a folder of this host]],
            message(function() fcvm.vm { root = true } end))
    end)
end)
