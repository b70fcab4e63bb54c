-- SPDX-License-Identifier: MIT
-- snapshot_damaged.lua make NAME | refused NAME TEXT... | works NAME
local fcvm = require "fcvm"

local what, name = arg[1], arg[2]
if what == "make" then
    local vm <close> = assert(fcvm.vm { memory = "96M" }:start())
    assert(vm:write_file("/tmp/mark", "kept\n"))
    local snap <close> = assert(vm:snapshot { name = name, stop = true })
elseif what == "works" then
    local snap <close> = assert(fcvm.snapshot(name))
    local clone <close> = assert(snap:clone())
    assert(clone:read_file "/tmp/mark" == "kept\n")
else
    local snap, err = fcvm.snapshot(name)
    if snap then
        local clone, why = snap:clone()
        err = why
        if clone then clone:close() end
        assert(not clone, "a damaged snapshot was cloned")
    end
    io.stdout:write("  ", tostring(err), "\n")
    for i = 3, #arg do
        assert(tostring(err):find(arg[i], 1, true), "it does not say '" .. arg[i] .. "'")
    end
    assert(#fcvm.list() == 0)
end
