-- SPDX-License-Identifier: MIT
-- POSIX's rules and what people do on a file system, in a real guest: its root is this host's, so that this host's programs are
-- there, and what they work on is a volume. The same on this host's kernel: tests/run/volume.
--
-- FCVM_POSIX is tests/volume's posix, built.
local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."
package.path = here .. "/?.lua;" .. package.path
local T = require "support"

local host, guest = T.host, T.guest

-- Files have owners and attributes that only root may give.
local as_root = T.root and it or function(name) pending(name .. " (as root only)") end

teardown(T.clean)

describe("a volume of a VM on this host's root", function()
    local vm, src
    local repository = host(("realpath %s/../.."):format(here)):match "[^\n]+"
    local built = host("realpath " .. (os.getenv "FCVM_POSIX" or "build/tests/volume-posix")):match "[^\n]+"

    setup(function()
        src = T.folder()
        host(("cp %s %s/posix"):format(built, src))
        -- In place of the host's own folder a second volume over it, which takes nothing for granted. The guest's /tmp is
        -- its own, so what is tested by comes as a volume, too.
        vm = T.vm {
            name = "field", memory = "512M", vcpus = 2, root = "/",
            volumes = {
                { host = src, guest = "/mnt/volume" }, { host = src, guest = "/mnt/host", timeout = 0 },
                { host = repository, guest = "/mnt/repository", readonly = true },
            },
        }
    end)
    teardown(function() if vm then vm:close() end end)

    -- What this host's kernel does and the guest's does not yet; the guest's own file system is asked.
    local function by_kernel(name)
        local _, status = guest(vm, ("mkdir -p /tmp/posix-%s /mnt/volume/%s && /mnt/host/posix /tmp/posix-%s /mnt/volume/%s %s")
            :format(name, name, name, name, name), 60)
        return status == 0
    end

    as_root("has POSIX's rules", function()
        host(("cd %s && mkdir volume host && ./posix --write transcripts host"):format(src))
        local out = guest(vm, "/mnt/host/posix /mnt/host/transcripts /mnt/volume/volume", 120)
        assert.is_true(tonumber(out:match "(%d+) passed, %d+ failed\n$" or 0) >= 30, out)
        for name in out:gmatch "not ok ([%w_]+)" do
            -- FUSE tells a file's birth from Linux 6.6 on.
            assert.is_true(name == "lists_and_figures" or by_kernel(name), out)
        end
    end)

    -- Those that start few programs: under emulation each takes a second. Of our history only the end.
    for _, name in ipairs { "git_clone", "rsync_compare", "sqlite_journals", "tar_round_trip" } do
        as_root("carries " .. name, function()
            host(("cd %s && { test -d repository || git clone -q --depth 5 file://%s repository; }"):format(src, repository))
            local out, status = guest(vm, "FIELD_REPOSITORY=/mnt/host/repository FIELD_ROWS=5 "
                .. "/mnt/repository/tests/volume/field " .. name .. " /mnt/host /mnt/volume", 180)
            if status == 77 then return pending(out:match "[^\n]*\n*$") end
            assert.equal(0, status, out)
        end)
    end
end)
