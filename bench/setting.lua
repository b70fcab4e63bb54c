-- SPDX-License-Identifier: MIT
-- A number from the environment: FCVM_BENCH_NAME, or the default.
return function(name, default)
    return math.tointeger(tonumber(os.getenv("FCVM_BENCH_" .. name) or default))
end
