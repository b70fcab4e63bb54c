rockspec_format = "3.0"
package = "fcvm"
version = "scm-1"
-- The folder of the sources: run `luarocks make lua/fcvm-scm-1.rockspec` at their top.
source = { url = "." }
description = {
    summary = "Boot virtual machines, snapshot them, clone them by the dozen, run programs in them",
    detailed = [[
An embeddable microVM control library in C with a Lua 5.4 front end. What the module starts needs, at run time, the
guest agent and the preload library that its build makes; they are installed beside the library.]],
    license = "MIT",
}
supported_platforms = { "linux" }
dependencies = { "lua ~> 5.4" }
external_dependencies = {
    JANSSON = { header = "jansson.h" },
    LIBARCHIVE = { header = "archive.h" },
    XXHASH = { header = "xxhash.h" },
}
build = {
    type = "cmake",
    variables = {
        CMAKE_INSTALL_PREFIX = "$(PREFIX)",
        CMAKE_BUILD_TYPE = "RelWithDebInfo",
    },
    -- CMake puts both below $(PREFIX)/lib/lua/5.4 and $(PREFIX)/share/lua/5.4, which LuaRocks does not search
    install = {
        lua = {
            ["fcvm"] = "lua/fcvm/init.lua",
            ["fcvm.doc"] = "lua/fcvm/doc.lua",
            ["fcvm.handle"] = "lua/fcvm/handle.lua",
            ["fcvm.json"] = "lua/fcvm/json.lua",
            ["fcvm.measure"] = "lua/fcvm/measure.lua",
            ["fcvm.options"] = "lua/fcvm/options.lua",
            ["fcvm.pretty"] = "lua/fcvm/pretty.lua",
            ["fcvm.program"] = "lua/fcvm/program.lua",
            ["fcvm.reader"] = "lua/fcvm/reader.lua",
            ["fcvm.size"] = "lua/fcvm/size.lua",
            ["fcvm.snapshot"] = "lua/fcvm/snapshot.lua",
            ["fcvm.stream"] = "lua/fcvm/stream.lua",
            ["fcvm.task"] = "lua/fcvm/task.lua",
            ["fcvm.vm"] = "lua/fcvm/vm.lua",
        },
        lib = { ["fcvm.core"] = "build.luarocks/lua/fcvm/core.so" },
    },
}
