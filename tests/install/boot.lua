-- SPDX-License-Identifier: MIT
-- For plain lua5.4 with fcvm installed: boots a VM and runs a program.
local fcvm = require "fcvm"
local vm <close> = assert(fcvm.vm { image = "mini", memory = "128M" }:start())
io.write(assert(vm:exec { "uname", "-s" }).stdout)
