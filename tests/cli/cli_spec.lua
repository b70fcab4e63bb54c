-- SPDX-License-Identifier: MIT
-- The program without a guest: its verbs' help, misuse, scripts, the prompt.
package.path = (debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or ".") .. "/?.lua;" .. package.path
local cli = require "cli"

local function contains(want, text)
    assert.is_truthy(text:find(want, 1, true), ("%q is not in:\n%s"):format(want, text))
end

local function lacks(want, text)
    assert.is_nil(text:find(want, 1, true), ("%q is in:\n%s"):format(want, text))
end

local VERBS = { "script", "repl", "run", "ls", "exec", "cp", "logs", "kill", "volumes", "trace", "snapshot ls",
    "snapshot inspect", "snapshot rm", "image ls", "image build", "image rm", "gc", "doctor" }

teardown(cli.clean)

describe("help", function()
    it("lists every verb", function()
        local code, out = cli.call "--help"
        assert.equal(0, code)
        for _, verb in ipairs(VERBS) do contains("\n  " .. verb, out) end
    end)

    for _, verb in ipairs(VERBS) do
        it("of " .. verb, function()
            local code, out, err = cli.sh("fcvm " .. verb .. " --help")
            assert.equal(0, code)
            assert.equal("", err)
            contains("usage: fcvm " .. verb, out)
            contains("--help", out)
            assert.equal(out, select(2, cli.sh("fcvm help " .. verb)))
            assert.equal(out, select(2, cli.sh("fcvm help " .. verb .. " more")))
        end)
    end

    it("of a group lists its verbs", function()
        local code, out = cli.sh "fcvm snapshot --help"
        assert.equal(0, code)
        contains("snapshot inspect", out)
        lacks("image", out)
        assert.equal(2, (cli.sh "fcvm snapshot"))
    end)

    it("and the manual know the same options", function()
        local manual = cli.read(cli.source "csrc/host/fcvm.1")
        for _, verb in ipairs(VERBS) do
            local _, out = cli.sh("fcvm --complete " .. verb)
            contains("--help\n", out)
            contains("Cm " .. verb, manual)
            for name in out:gmatch "%-%-([%l-]+)" do contains("Fl \\-" .. name:gsub("%-", "\\-"), manual) end
        end
    end)

    it("knows its version", function()
        local code, out = cli.call "--version"
        assert.equal(0, code)
        assert.matches("^fcvm %d+%.%d+%.%d+\n$", out)
    end)
end)

describe("misuse exits with 2 and", function()
    local function misuse(command, message)
        local code, out, err = cli.sh(command)
        assert.equal(2, code)
        assert.equal("", out)
        contains(message, err)
        assert.matches("^fcvm: ", err)
    end

    it("names the nearest verb", function()
        misuse("fcvm rnu", "did you mean 'run'?")
        misuse("fcvm snapshot list", "'snapshot list'; did you mean 'snapshot ls'?")
        misuse("fcvm quarrel", "fcvm --help lists them")
    end)
    it("names the nearest option", function()
        misuse("fcvm run --memroy 1G -- true", "did you mean --memory?")
        misuse("fcvm run --mem 1G -- true", "did you mean --memory?")
        misuse("fcvm ls --xyzzy", "see fcvm ls --help")
        misuse("fcvm run -Z true", "unknown option -Z")
    end)
    it("checks operands and values", function()
        misuse("fcvm run", "something is missing")
        misuse("fcvm exec vm", "something is missing")
        misuse("fcvm ls vm", "did not expect vm")
        misuse("fcvm run --memory", "--memory wants a value")
        misuse("fcvm run --memory 12x true", "--memory 12x: a size")
        misuse("fcvm run --vcpus many true", "--vcpus many: a number")
        misuse("fcvm run --vcpus 0 true", "--vcpus 0: a number from 1 on")
        misuse("fcvm run --timeout -1 true", "--timeout -1: a time")
        misuse("fcvm ls --json=yes", "--json takes no value")
        misuse("fcvm run --tty --no-tty true", "not both")
        misuse("fcvm run --env =x true", "NAME=VALUE")
        misuse("fcvm run --snapshot s --memory 1G true", "--memory has no meaning")
        misuse("fcvm run --snapshot s --root / true", "--root has no meaning")
        misuse("fcvm run -v src true", "volume 'src': HOST:GUEST[:ro] is wanted")
        misuse("fcvm run -v src:work true", "an absolute path in the guest")
        misuse("fcvm run -v src:/work:r true", "option 'r': there are ro,")
        misuse("fcvm run -v src:/work:ro,readers=0 true", "option 'readers=0': readers= wants a number")
        misuse("fcvm run -v src:/work:uid_map=0:1 true", "GUEST:HOST:COUNT")
        misuse("fcvm run -v src:/work:timeout=-1 true", "timeout= wants seconds")
        misuse("fcvm run --root= true", "--root '': a folder is wanted")
        misuse("fcvm run " .. ("-v a:/b "):rep(33) .. "true", "33 volumes")
        misuse("fcvm trace", "something is missing")
        misuse("fcvm trace --lines 0 vm", "--lines 0: a number from 1 on")
        misuse("fcvm trace --lines 3 --json vm", "not both")
        misuse("fcvm volumes -l -q", "not both")
        misuse("fcvm cp a b", "neither side is in a VM")
        misuse("fcvm cp a:b c:d", "both sides are in a VM")
        misuse("fcvm kill", "which one?")
        misuse("fcvm kill --all vm", "not both")
        misuse("fcvm script", "which one?")
    end)
    it("without a verb shows the verbs", function()
        local code, _, err = cli.sh "fcvm"
        assert.equal(2, code)
        contains("usage: fcvm VERB", err)
    end)
end)

describe("failure exits with 1:", function()
    it("a VM that is not there", function()
        for _, verb in ipairs { "exec nobody true", "logs nobody", "logs -f nobody", "kill nobody",
            "cp nobody:/x .", "volumes nobody", "trace nobody", "trace -n 3 nobody" } do
            local code, out, err = cli.sh("fcvm " .. verb)
            assert.equal(1, code)
            assert.equal("", out)
            contains("nobody", err)
        end
    end)
    it("a snapshot that is not there", function()
        for _, verb in ipairs { "snapshot rm nothing", "snapshot inspect nothing", "run --snapshot nothing true" } do
            local code, _, err = cli.sh("fcvm " .. verb)
            assert.equal(1, code)
            contains("nothing", err)
        end
    end)
end)

describe("listings", function()
    it("are JSON on demand", function()
        for _, verb in ipairs { "ls", "volumes", "snapshot ls", "image ls" } do
            local code, out = cli.sh("fcvm " .. verb .. " --json")
            assert.equal(0, code)
            assert.matches("^%[.*%]\n$", out)
        end
        local _, out = cli.sh "fcvm doctor --json"
        assert.matches('^{.*"checks".*}\n$', out)
        contains('"volumes\' sandbox"', out)
        _, out = cli.sh "fcvm gc --json"
        assert.matches('^{.*"removed".*}\n$', out)
    end)
    it("say that nothing is there", function()
        assert.same({ 0, "no VM runs\n", "" }, { cli.sh "fcvm ls" })
        assert.same({ 0, "", "" }, { cli.sh "fcvm ls --quiet" })
        assert.same({ 0, "no volume is mounted\n", "" }, { cli.sh "fcvm volumes" })
        assert.same({ 0, "", "" }, { cli.sh "fcvm volumes --quiet" })
    end)
end)

describe("completion", function()
    local function complete(words)
        local list = {}
        for word in (words .. "\n"):gmatch "(.-)[ \n]" do list[#list + 1] = "'" .. word .. "'" end
        local code, out, err = cli.sh(([[
            source %s
            COMP_WORDS=(%s) COMP_CWORD=%d COMPREPLY=()
            _fcvm fcvm
            printf '%%s\n' "${COMPREPLY[@]}" | sort]]):format(
            cli.source "csrc/host/fcvm.bash", table.concat(list, " "), #list - 1))
        assert.equal("", err)
        assert.equal(0, code)
        return out
    end

    it("offers verbs", function()
        assert.equal("snapshot\n", complete "fcvm sn")
        contains("doctor\n", complete "fcvm ")
        assert.equal("inspect\nls\nrm\n", complete "fcvm snapshot ")
    end)
    it("offers options", function()
        assert.equal("--memory\n", complete "fcvm run --me")
        contains("--json\n", complete "fcvm snapshot ls --")
    end)
    -- As bash splits a line at colons and equals signs.
    it("offers a volume's parts", function()
        local function volume(line)
            local words = line:gsub("([:=])", " %1 "):gsub("  +", " ")
            local list = {}
            for word in (words .. "\n"):gmatch "(.-)[ \n]" do list[#list + 1] = "'" .. word .. "'" end
            local code, out, err = cli.sh(([[
                mkdir -p sources/inner
                source %s
                COMP_WORDS=(%s) COMP_CWORD=%d COMPREPLY=() COMP_LINE='%s' COMP_POINT=%d
                _fcvm fcvm
                printf '%%s\n' "${COMPREPLY[@]}" | sort]]):format(cli.source "csrc/host/fcvm.bash", table.concat(list, " "),
                #list - 1, line, #line))
            assert.equal("", err)
            assert.equal(0, code)
            return out
        end
        assert.equal("sources\n", volume "fcvm run -v sou")
        assert.equal("sources/inner\n", volume "fcvm run --volume sources/in")
        assert.equal("sources\n", volume "fcvm run --volume=sou")
        assert.equal("\n", volume "fcvm run -v sources:/wo")
        assert.equal("readers=\nro\nrw\n", volume "fcvm run -v sources:/work:r")
        assert.equal("ro,locks=\n", volume "fcvm run -v sources:/work:ro,lo")
        assert.equal("guest\nhost\n", volume "fcvm run -v sources:/work:ro,locks=")
        assert.equal("--volume\n", volume "fcvm run -v sources:/work:ro --vo")
        assert.equal("sources\n", volume "fcvm run --root sou")
    end)
    it("offers scripts", function()
        contains("clone50\n", complete "fcvm script clo")
    end)
end)

describe("script", function()
    it("passes arguments, and options that are not its own", function()
        local file = cli.program 'print(arg[0] ~= nil, #arg, arg[1], arg[2], ..., select("#", ...))'
        local code, out = cli.call("script", file, "--json", "x y")
        assert.equal(0, code)
        assert.equal("true\t2\t--json\tx y\t--json\t2\n", out)
    end)
    it("reads stdin for -", function()
        assert.same({ 0, "3\n", "" }, { cli.sh "echo 'print(1 + 2)' | fcvm script -" })
    end)
    it("exits as the program says", function()
        assert.equal(0, (cli.call("script", cli.program "")))
        assert.equal(7, (cli.call("script", cli.program "return 7")))
        assert.equal(1, (cli.call("script", cli.program "return false")))
        assert.equal(0, (cli.call("script", cli.program "return true")))
        assert.equal(9, (cli.call("script", cli.program "os.exit(9)")))
        assert.equal(1, (cli.call("script", cli.program "os.exit(false)")))
        local code, _, err = cli.call("script", cli.program "return nil, 'no luck'")
        assert.equal(1, code)
        assert.equal("fcvm: no luck\n", err)
    end)
    it("shows an error's file, line and traceback", function()
        local file = cli.program 'local function f()\n  error "boom"\nend\nf()'
        local code, _, err = cli.call("script", file)
        assert.equal(1, code)
        contains(file .. ":2: boom", err)
        contains("stack traceback:", err)
        contains(file .. ":4:", err)
    end)
    it("shows where an error that is a table was raised", function()
        local file = cli.program [[

            assert(nil, setmetatable({}, { __tostring = function() return "vm x: start: no" end }))]]
        local code, _, err = cli.call("script", file)
        assert.equal(1, code)
        contains(file .. ":2: vm x: start: no", err)
    end)
    it("shows a syntax error", function()
        local file = cli.program "local = 1"
        local code, _, err = cli.call("script", file)
        assert.equal(1, code)
        contains(file .. ":1:", err)
    end)
    it("says so when the file is missing", function()
        local code, _, err = cli.call("script", "./missing.lua")
        assert.equal(1, code)
        contains("missing.lua", err)
        code, _, err = cli.call("script", "clone5")
        assert.equal(1, code)
        contains("did you mean clone50?", err)
    end)
    it("says in which of the program's lines it failed, and where in a task", function()
        local line = "fcvm: [^\n]*/program%d+%.lua:"
        local _, _, err = cli.call("script", cli.program 'local fcvm = require "fcvm"\n\nfcvm.vm { memory = "1M" }')
        assert.matches("^" .. line .. "3: memory of", err)
        for _, fault in ipairs { 'error "failed"', 'fcvm.json.encode(print)', 'assert(fcvm.attach "failed")' } do
            _, _, err = cli.call("script", cli.program('local fcvm = require "fcvm"\nlocal function inner()\n' ..
                fault .. "\nend\nfcvm.spawn(function()\nfcvm.sleep(0)\ninner()\nend)"))
            assert.equal(1, select(2, err:gsub("stack traceback:", "")))
            assert.matches("program%d+%.lua:7: in function", err)
        end
    end)
    it("finds the shipped ones, and lists them", function()
        local code, out = cli.call("script", "--list")
        assert.equal(0, code)
        assert.matches("clone50 +%u", out)
        code = cli.call("script", "clone50", "--help")
        assert.equal(0, code)
        code = cli.call("script", "clone50.lua", "--help")
        assert.equal(0, code)
    end)
    it("closes what is open however it ends", function()
        local body = [[
            local path = ...
            local function close(text)
                return setmetatable({}, { __close = function() io.open(path, "a"):write(text):close() end,
                    __gc = function() io.open(path, "a"):write(text):close() end })
            end
            collected = close "gc "
            local closed <close> = close "close "
        ]]
        for _, ending in ipairs { "os.exit(3)", "error 'x'", "return 3" } do
            local path = cli.dir .. "/closed"
            os.remove(path)
            cli.call("script", cli.program(body .. ending), path)
            contains("close", cli.read(path))
            contains("gc", cli.read(path))
        end
    end)
end)

describe("Ctrl-C in a script", function()
    local head = [[
        local trace = ...
        local function note(s) io.open(trace, "a"):write(s):close() end
        local function ready() io.write "ready\n" io.flush() end
        local x <close> = setmetatable({}, { __close = function() note "closed" end })
    ]]
    -- Runs a program until it is ready, sends it signals, and returns its status, its notes and what it printed.
    local function interrupt(body, signals)
        local trace = cli.write(cli.dir .. "/trace", "")
        local code, out, err = cli.sh(([[
            rm -f ready; %s script %s %s >ready &
            p=$!
            for i in $(seq 200); do grep -qs ready ready && break; sleep 0.05; done
            for s in %s; do kill -$s $p; sleep 0.3; done
            wait $p]]):format(cli.path(cli.fcvm), cli.program(head .. body), trace, signals))
        return code, cli.read(trace), out .. err
    end

    it("ends Lua code, closes and exits with 130", function()
        local code, trace, text = interrupt("ready() while true do end", "INT")
        assert.equal(130, code)
        assert.equal("closed", trace)
        contains("interrupted", text)
        lacks("traceback", text)
    end)
    it("ends a call that waits", function()
        local code, trace = interrupt("local fcvm = require 'fcvm' ready() fcvm.sleep(60) note 'slept '", "INT")
        assert.equal(130, code)
        assert.equal("closed", trace)
    end)
    it("ends tasks", function()
        local code, trace = interrupt([[
            local fcvm = require "fcvm"
            ready()
            fcvm.parallel({ 1, 2 }, function(i) if i == 1 then while true do end end fcvm.sleep(60) end)
            note "went on "]], "INT")
        assert.equal(130, code)
        assert.equal("closed", trace)
    end)
    it("ends coroutines, also within tasks", function()
        for _, body in ipairs {
            "ready() coroutine.wrap(function() while true do end end)()",
            "local go = coroutine.wrap(function() while true do coroutine.yield() end end) ready()\n" ..
                "while true do go() end",
            "ready() coroutine.resume(coroutine.create(function() while true do end end)) while true do end",
            "require 'fcvm'.spawn(function() ready() coroutine.wrap(function() while true do end end)() end):await()",
        } do
            local code, trace, text = interrupt(body, "INT")
            assert.equal(130, code)
            assert.equal("closed", trace)
            contains("interrupted", text)
        end
    end)
    it("cannot be overlooked by pcall", function()
        assert.equal(130, (interrupt("ready() pcall(function() while true do end end)", "INT")))
    end)
    it("twice ends it at once", function()
        local code, trace = interrupt([[
            local slow <close> = setmetatable({}, { __close = function()
                note "begun "
                local t = os.time() + 5
                while os.time() < t do end
            end })
            ready() while true do end]], "INT INT")
        assert.equal(130, code)
        assert.equal("begun ", trace)
    end)
    it("is like SIGTERM but for the status", function()
        local code, trace = interrupt("ready() while true do end", "TERM")
        assert.equal(143, code)
        assert.equal("closed", trace)
    end)
end)

it("a script whose reader has left ends", function()
    local file = cli.program "while true do print 'y' end"
    local code, out, err = cli.sh(("fcvm script %s | head -n 1; echo ${PIPESTATUS[0]}"):format(file))
    assert.equal(0, code)
    assert.equal("y\n141\n", out)
    assert.equal("", err)
end)

it("coroutines are those of Lua", function()
    local code, out, err = cli.call("script", cli.program [[
        local co = coroutine.create(function(...)
            local a = coroutine.yield(select("#", ...), ...)
            error { a }
        end)
        assert(coroutine.resume(co, 1, nil) and coroutine.status(co) == "suspended")
        local ok, value = coroutine.resume(co, "x")
        assert(not ok and value[1] == "x")
        assert(select(2, coroutine.resume(co)) == "cannot resume dead coroutine")
        assert(not pcall(coroutine.resume, 1) and not pcall(coroutine.wrap, 1))
        assert(select(2, coroutine.resume((coroutine.running()))) == "cannot resume non-suspended coroutine")
        local closed = {}
        local gen = coroutine.wrap(function(a)
            local x <close> = setmetatable({}, { __close = function(_, e) closed[1] = e end })
            a = a + coroutine.yield(a, a)
            error("bad " .. a, 0)
        end)
        assert(select("#", gen(1)) == 2)
        local _, message = pcall(gen, 2)
        assert(message:find "bad 3$" and closed[1] == "bad 3", message)
        local _, message = pcall(gen)
        assert(message:find "cannot resume dead coroutine", message)
        local _, value = pcall(coroutine.wrap(function() error(closed) end))
        assert(value == closed)
        local n = 0
        for i in coroutine.wrap(function() for i = 1, 10 do coroutine.yield(i) end end) do n = n + i end
        assert(n == 55)
    ]])
    assert.same({ 0, "", "" }, { code, out, err })
end)

describe("repl without a terminal", function()
    local function repl(text)
        cli.write(cli.dir .. "/input", text)
        return cli.sh "fcvm repl <input"
    end
    it("shows values of expressions", function()
        assert.same({ 0, "2\n", "" }, { repl "1 + 1" })
        assert.same({ 0, "2\n", "" }, { repl "= 1 + 1" })
        assert.same({ 0, "", "" }, { repl "x = 1" })
        assert.same({ 0, "1\t2\n", "" }, { repl "return 1, 2" })
        assert.same({ 0, "nil\n", "" }, { repl "nothing" })
        assert.same({ 0, "", "" }, { repl "-- a comment\n\n" })
    end)
    it("keeps globals, and knows fcvm", function()
        assert.same({ 0, "6\n", "" }, { repl "x = 5\nx + 1" })
        local code, out = repl "fcvm.version"
        assert.equal(0, code)
        assert.matches('^"?%d+%.%d+', out)
    end)
    it("reads on while something is incomplete", function()
        assert.same({ 0, "3\n", "" }, { repl "for i = 3, 3 do\nprint(i)\nend" })
        assert.same({ 0, "2\n", "" }, { repl "#{\n1,\n2 }" })
    end)
    it("reports errors, goes on, and exits with 1", function()
        local code, out, err = repl "error 'one'\nx = = 2\n1 +* 2\nprint 'on'\nfor"
        assert.equal(1, code)
        assert.equal("on\n", out)
        contains("stdin:1: one", err)
        contains("unexpected symbol near '='", err)
        contains("near '*'", err)
        contains("near <eof>", err)
        lacks("traceback", err)
    end)
    it("shows the traceback of what is deeper", function()
        local _, _, err = repl "function f() error 'deep' end\nf()"
        contains("stack traceback", err)
    end)
    it("leaves by os.exit", function()
        assert.equal(4, (repl "os.exit(4)\nprint 'no'"))
    end)
    it("helps", function()
        local code, out = repl "help()\nhelp(fcvm.vm)"
        assert.equal(0, code)
        contains("memory", out)
    end)
end)

describe("repl at a terminal", function()
    before_each(function() os.remove(cli.dir .. "/state/fcvm/history") end)

    it("evaluates, edits and leaves", function()
        cli.play([[
            expect fcvm>
            send 1 + 1\n
            expect \n2\n
            expect fcvm>
            send 1 + 12\x7f3\n
            expect \n14\n
            expect fcvm>
            send \x04
            status 0
        ]], "repl")
    end)
    it("continues on the next line", function()
        cli.play([[
            expect fcvm>
            send t = {\n
            expect    >>
            send 5 }\n
            expect fcvm>
            send t[1] * 2\n
            expect \n10\n
            send \x04
            status 0
        ]], "repl")
    end)
    it("completes globals, fields, methods and keywords", function()
        cli.play([[
            expect fcvm>
            send tos\t(12)\n
            expect "12"
            send string.for\t("%d", 7)\n
            expect "7"
            send s = "abc"\n
            expect fcvm>
            send s:up\t()\n
            expect "ABC"
            send t = { { alpha = 31, alphabet = 32, ["not a name"] = 33 } }\n
            expect fcvm>
            send t[1].al\t
            expect t[1].alpha
            send \t
            expect alpha     alphabet
            send b\t\n
            expect \n32\n
            send fcvm.para\t\n
            expect fcvm.parallel
            expect function
            send repe\t
            expect repeat
            send \x03
            expect fcvm>
            send print "tos\t"\n
            expect print "tos
            send \x03\x04
            status 0
        ]], "repl")
    end)
    it("stops what runs at Ctrl-C, and stays", function()
        cli.play([[
            expect fcvm>
            send print("be" .. "gun") while true do end\n
            expect begun
            send \x03
            expect interrupted
            expect fcvm>
            send print("be" .. "gun") fcvm.sleep(100)\n
            expect begun
            send \x03
            expect interrupted
            expect fcvm>
            send print("be" .. "gun") fcvm.parallel({ 1 }, function() while true do end end)\n
            expect begun
            send \x03
            expect interrupted
            expect fcvm>
            send print("be" .. "gun") coroutine.wrap(function() while true do end end)()\n
            expect begun
            send \x03
            expect interrupted
            expect fcvm>
            send os.execute "echo be''gun; exec sleep 100"\n
            expect begun
            send \x03
            expect fcvm>
            send "still" .. " here"\n
            expect still here
            send \x04
            status 0
        ]], "repl")
    end)
    it("drops the line at Ctrl-C", function()
        cli.play([[
            expect fcvm>
            send os.exit(3)\x03
            expect ^C
            expect fcvm>
            send function f()\n
            expect    >>
            send \x03
            expect ^C
            expect fcvm>
            send 6 * 7\n
            expect \n42\n
            send \x04
            status 0
        ]], "repl")
    end)
    it("remembers lines, also those of the last time", function()
        cli.play("expect fcvm> \nsend x = {\\n\nexpect >> \nsend 21 }\\n\nexpect fcvm> \nsend \\x04\nstatus 0", "repl")
        cli.play([[
            expect fcvm>
            send \e[A
            expect x = { 21 }
            send \n
            expect fcvm>
            send x[1]\n
            expect \n21\n
            send \x04
            status 0
        ]], "repl")
        local _, out = cli.sh "stat -c %a $XDG_STATE_HOME/fcvm/history"
        assert.equal("600\n", out)
    end)
    it("runs tasks while one types", function()
        cli.play([[
            expect fcvm>
            send t = fcvm.spawn(function() fcvm.sleep(0.5) print("from the " .. "task") end)\n
            expect fcvm>
            send 40 +
            expect from the task
            expect fcvm> 40 +
            send  2\n
            expect \n42\n
            send \x04
            status 0
        ]], "repl")
    end)
    it("takes letters of other scripts", function()
        cli.play("expect fcvm> \nsend ('grün'):rep(2)\\n\nexpect grüngrün\nsend \\x04\nstatus 0", "repl")
    end)
    it("ends with its terminal, and by SIGTERM", function()
        cli.play("expect fcvm> \nhangup\nstatus 129", "repl")
        cli.play("expect fcvm> \nsignal 15\nstatus 143", "repl")
    end)
    it("ends by SIGTERM when Ctrl-C could not stop what runs", function()
        cli.play([[
            expect fcvm>
            send print("be" .. "gun") while true do pcall(string.find, ("a"):rep(40), ("a*"):rep(40) .. "b") end\n
            expect begun
            send \x03
            expect ^C
            signal 15
            status 143
        ]], "repl")
    end)
end)
