-- SPDX-License-Identifier: MIT
std = "lua54"
max_line_length = 130
unused_args = false -- signatures of callbacks are given
exclude_files = { "lua/library" } -- what LuaCATS definitions declare is declared, not used
-- `local vm <close>` is taken for an unused variable.
files["tests"] = { ignore = { "211" } }
files["tests/**/*_spec.lua"] = { std = "lua54+busted", ignore = { "211" } }
