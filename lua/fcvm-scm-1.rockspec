rockspec_format = "3.0"
package = "fcvm"
version = "scm-1"
-- The folder of the sources: run `luarocks make lua/fcvm-scm-1.rockspec` at their top.
source = { url = "." }
description = {
    summary = "Boot virtual machines, snapshot them, clone them by the dozen, run programs in them",
    detailed = [[
An embeddable microVM control library in C with a Lua 5.4 front end. The guest agent and the library that QEMU is
made to load, which it needs at run time, are installed beside the module; QEMU itself is not part of the rock.]],
    license = "MIT",
}
supported_platforms = { "linux" }
dependencies = { "lua ~> 5.4" }
external_dependencies = {
    JANSSON = { header = "jansson.h" },
    LIBARCHIVE = { header = "archive.h" },
    LIBEDIT = { header = "histedit.h" },
    XXHASH = { header = "xxhash.h" },
}
build = {
    type = "cmake",
    variables = { CMAKE_BUILD_TYPE = "RelWithDebInfo", BUILD_TESTING = "OFF" },
    -- CMake would install a whole prefix, of which LuaRocks takes every file in lib for a module
    install_pass = false,
    install = {
        lua = {
            ["fcvm"] = "lua/fcvm/init.lua",
            ["fcvm.doc"] = "lua/fcvm/doc.lua",
            ["fcvm.handle"] = "lua/fcvm/handle.lua",
            ["fcvm.json"] = "lua/fcvm/json.lua",
            ["fcvm.lab"] = "lua/fcvm/lab.lua",
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
            ["fcvm.volume"] = "lua/fcvm/volume.lua",
        },
        -- the last three are no modules: this is the folder where core.so looks first
        lib = {
            ["fcvm.core"] = "build.luarocks/lua/fcvm/core.so",
            ["fcvm.agent"] = "build.luarocks/fcvm-agent",
            ["fcvm.ram"] = "build.luarocks/libfcvm-ram.so",
            ["fcvm.server"] = "build.luarocks/fcvm-volume",
        },
    },
}
