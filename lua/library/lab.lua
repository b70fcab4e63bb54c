---@meta fcvm.lab
-- SPDX-License-Identifier: MIT
-- Definitions for editors (LuaCATS). Never run.
-- luacheck: ignore

local M = {}

---@class fcvm.LabOptions
---@field memory? integer|string default: "6G"
---@field vcpus? integer default: 2
---@field accel? "kvm"|"tcg"
---@field build? string folder of the build that is put in
---@field rebuild? boolean make it though it is kept

---@param opts? fcvm.LabOptions
---@return fcvm.VM? lab, fcvm.Error? err
function M.start(opts) end

---@param vm fcvm.VM
---@param argv string[]
---@param opts? { cwd?: string, env?: table<string, string> }
---@return integer status
function M.run(vm, argv, opts) end

return M
