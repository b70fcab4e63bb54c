-- SPDX-License-Identifier: MIT
-- Starts a VM and runs tests/unit/test_node.c over its agent, by the socket that other processes use.
local fcvm = require "fcvm"
local vm <close> = assert(fcvm.vm { memory = "512M" }:start())
local command = ("FCVM_NODE_SOCKET='%s/agent.sock' timeout -k 5 250 build/tests/test_node"):format(vm.dir)
local _, _, status = os.execute(command)
return status
