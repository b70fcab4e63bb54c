-- Runs a program in the KVM lab: a VM with KVM, Firecracker, QEMU and this build, restored in a moment.
-- SPDX-License-Identifier: MIT
local fcvm = require "fcvm"
local lab = require "fcvm.lab"

local usage = [=[
usage: fcvm script lab.lua [OPTION...] [--] [CMD [ARG...]]

CMD (a shell) runs in the folder of the same name, and its status is ours.

  --memory SIZE  RAM of the lab (6G)
  --vcpus N      its processors (2)
  --build DIR    the build that is put in (the one that runs)
  --rebuild      make the lab anew though it is kept
  --time         say on stderr how long the lab took to start
]=]

local function misuse(text)
    io.stderr:write("lab: ", text, "\n", usage)
    os.exit(2, true)
end

local function parse(argv)
    local known = { memory = true, vcpus = true, build = true, rebuild = false, time = false }
    local o = {}
    local i = 1
    while argv[i] and argv[i]:sub(1, 1) == "-" do
        local word = argv[i]
        i = i + 1
        if word == "--" then break end
        if word == "--help" or word == "-h" then
            io.write(usage)
            os.exit(0, true)
        end
        local name, value = word:match "^%-%-([a-z]+)=?(.*)$"
        if known[name] == nil then misuse("unknown option " .. word) end
        if known[name] and value == "" then
            value = argv[i] or misuse(word .. " wants a value")
            i = i + 1
        end
        o[name] = known[name] and value or true
    end
    return o, table.move(argv, i, #argv, 1, {})
end

local o, command = parse(arg)
if o.vcpus then o.vcpus = math.tointeger(tonumber(o.vcpus)) or misuse "--vcpus wants a number" end
local time = o.time
o.time = nil
if #command == 0 then command = { "bash" } end
local from = fcvm.now()
local vm <close> = assert(lab.start(o))
if time then io.stderr:write(("lab: started in %.2f s\n"):format(fcvm.now() - from)) end
return lab.run(vm, command)
