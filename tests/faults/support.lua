-- SPDX-License-Identifier: MIT
-- What the scripts of this folder share: checks that are counted, and commands of this host.
local M = {}

local failures = 0

function M.check(ok, ...)
    if ok then return end
    failures = failures + 1
    io.stdout:write("FAILED: ", table.concat({ ... }, " "), "\n")
end

-- What a shell here prints.
function M.sh(command)
    local p = assert(io.popen(command))
    local text = p:read "a"
    p:close()
    return text
end

-- Ends the program: 1 if a check failed.
function M.finish()
    os.exit(failures == 0 and 0 or 1, true)
end

return M
