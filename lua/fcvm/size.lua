-- SPDX-License-Identifier: MIT
--- Sizes in bytes, from text and to text.
-- Units are powers of 1024: `"512M"`, `"512 MiB"` and `512 * 1024 * 1024` are the same.
-- @module fcvm.size

local M = {}

local UNITS = { [""] = 0, K = 1, M = 2, G = 3, T = 4 }

--- Bytes of a size.
-- @tparam number|string size bytes, or a number with the unit K, M, G or T, as in `"512M"` or `"1.5G"`
-- @treturn[1] integer bytes
-- @treturn[2] nil if it is no such size
function M.parse(size)
    if type(size) == "number" then
        local bytes = math.tointeger(size)
        return bytes and bytes >= 0 and bytes or nil
    end
    if type(size) ~= "string" then return nil end
    local digits, unit = size:match "^%s*(%d+%.?%d*)%s*(%a?)[iI]?[bB]?%s*$"
    local power = unit and UNITS[unit:upper()]
    if not power and unit and unit:upper() == "B" then power = 0 end
    if not power then return nil end
    local bytes = tonumber(digits) * 1024 ^ power
    return bytes < 2 ^ 62 and math.tointeger(bytes // 1) or nil
end

--- A size for people.
-- @tparam integer bytes
-- @treturn string such as `"256 MiB"` or `"1.5 GiB"`
function M.format(bytes)
    local names = { "B", "KiB", "MiB", "GiB", "TiB" }
    local n, i = bytes, 1
    while n >= 1024 and i < #names do
        n, i = n / 1024, i + 1
    end
    local text = ("%.1f"):format(n):gsub("%.0$", "")
    return text .. " " .. names[i]
end

return M
