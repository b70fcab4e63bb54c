-- SPDX-License-Identifier: MIT
-- The program with real guests: run, exec, cp, logs, kill, ls, and the prompt.
package.path = (debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or ".") .. "/?.lua;" .. package.path
local cli = require "cli"

local function contains(want, text)
    assert.is_truthy(text:find(want, 1, true), ("%q is not in:\n%s"):format(want, text))
end

local function lacks(want, text)
    assert.is_nil(text:find(want, 1, true), ("%q is in:\n%s"):format(want, text))
end

local can, why = cli.guests()
if not can then
    describe("guests", function() pending(why) end)
    return
end

teardown(cli.clean)

-- What runs or lies about after a test must be nothing.
local function nothing_left()
    assert.same({ 0, "no VM runs\n", "" }, { cli.sh "fcvm ls" })
    local _, out = cli.sh("ls " .. cli.run_folder)
    assert.equal("", out)
    _, out = cli.sh(("pgrep -af 'qemu-system.*%s' | grep -v pgrep"):format(cli.run_folder))
    assert.equal("", out)
end

describe("run", function()
    after_each(nothing_left)

    it("gives the program our stdin, stdout, stderr and its status", function()
        assert.same({ 7, "out hi\n", "err\n" },
            { cli.sh "echo hi | fcvm run -- sh -c 'echo out $(cat); echo err >&2; exit 7' 2> >(grep -v ^fcvm: >&2)" })
    end)
    it("takes the program's options for its own, with or without --", function()
        local _, out = cli.sh "fcvm run echo --cold -x"
        assert.equal("--cold -x\n", out)
        _, out = cli.sh "fcvm run -- echo -- x"
        assert.equal("-- x\n", out)
    end)
    it("sets environment, folder and user", function()
        local _, out = cli.sh [[export OURS=1; fcvm run -e A=b -e OURS -e NOT_SET --cwd /tmp --user 12:34 -- \
            sh -c 'echo "$A $OURS ${NOT_SET-unset}"; pwd; id -u; id -g']]
        assert.equal("b 1 unset\n/tmp\n12\n34\n", out)
    end)
    it("gives the VM its name, memory and processors", function()
        local _, out = cli.sh [[fcvm run --name my-vm -m 160M --vcpus 2 -- \
            sh -c 'hostname; nproc; grep MemTotal /proc/meminfo']]
        assert.matches("^my%-vm\n2\nMemTotal: +1[2-6]%d%d%d%d kB\n$", out)
    end)
    it("boots with --cold", function()
        local code, out, err = cli.sh "fcvm run --cold -- cat /proc/uptime"
        assert.equal(0, code)
        assert.matches("^%d", out)
        contains("boot", err)
    end)
    it("says in the shell's way that a program did not run", function()
        local code, _, err = cli.sh "fcvm run -- no-such-program"
        assert.equal(127, code)
        contains("no-such-program", err)
        assert.equal(126, (cli.sh "fcvm run -- /etc/hostname"))
        assert.equal(137, (cli.sh "fcvm run -- sh -c 'kill -9 $$'"))
    end)
    it("kills the program after --timeout", function()
        local code, out, err = cli.sh "fcvm run --timeout 1.5 -- sh -c 'echo on; sleep 60; echo off'"
        assert.equal(124, code)
        assert.equal("on\n", out)
        contains("--timeout", err)
    end)
    it("passes much data both ways, unharmed", function()
        local _, out = cli.sh [[head -c 8000001 /dev/urandom >data
            fcvm run -- cat <data | cmp - data && echo same]]
        assert.equal("same\n", out)
    end)
    it("ends the program whose reader has left", function()
        local _, out = cli.sh "fcvm run -- yes | head -n 2"
        assert.equal("y\ny\n", out)
    end)
    it("works with what is missing of our stdin, stdout and stderr", function()
        assert.same({ 3, "0\n", "" }, { cli.sh "fcvm run -- sh -c 'wc -c; exit 3' <&- 2>&-" })
        assert.equal(3, (cli.sh "fcvm run -- sh -c 'echo to nobody; exit 3' <&- >&- 2>&-"))
    end)
    it("gives a terminal on demand, and its end of file", function()
        local code, out = cli.sh "echo 'tty; exit 4' | fcvm run --tty -- sh"
        assert.equal(4, code)
        contains("/dev/pts/", out)
        assert.equal(0, (cli.sh "printf unfinished | fcvm run --tty -- cat"))
    end)
    it("says so when its VM dies", function()
        local code, out, err = cli.sh [[
            rm -f o; fcvm run --name dies -- sh -c 'echo up; sleep 100' >o & p=$!
            for i in $(seq 300); do grep -qs up o && break; sleep 0.1; done
            fcvm kill dies; wait $p]]
        assert.equal(1, code)
        assert.equal("", out)
        contains("dies", err)
        contains("Killed", err)
    end)
    it("does not wait for what the program left running", function()
        local code, out = cli.sh("timeout 30 " .. cli.path(cli.fcvm) .. " run -- sh -c 'sleep 1000 & echo done'")
        assert.equal(0, code)
        assert.equal("done\n", out)
    end)
    it("passes SIGINT on, and the second ends it", function()
        local code, out = cli.sh(([[
            rm -f o; %s run -- sh -c 'trap "echo caught; exit 5" INT; echo ready; while :; do sleep 0.1; done' >o &
            for i in $(seq 300); do grep -qs ready o && break; sleep 0.1; done
            kill -INT $!; wait $!; echo $?; cat o]]):format(cli.path(cli.fcvm)))
        assert.equal(0, code)
        assert.equal("5\nready\ncaught\n", out)
        out = select(2, cli.sh(([[
            rm -f o; %s run -- sh -c 'trap "echo caught" INT; echo ready; while :; do sleep 0.1; done' >o &
            for i in $(seq 300); do grep -qs ready o && break; sleep 0.1; done
            kill -INT $!; sleep 1; kill -INT $!; wait $!; echo $?]]):format(cli.path(cli.fcvm))))
        assert.equal("130\n", out)
    end)
    it("is interrupted while it boots", function()
        local _, out, err = cli.sh(([[
            %s run --cold -- true & sleep 0.7; kill -INT $!; wait $!; echo $?]]):format(cli.path(cli.fcvm)))
        assert.equal("130\n", out)
        lacks("ancel", err)
    end)
end)

describe("run at a terminal", function()
    after_each(nothing_left)

    it("gives the program a terminal of our size, and what is typed", function()
        cli.play([[
            within 60
            expect #
            send stty size; tty; echo TERM=$TERM\n
            expect 24 80
            expect /dev/pts/
            expect TERM=xterm
            send echo one\x7f\x7f\x7ftwo\n
            expect \ntwo
            resize 50 132
            send sleep 1; stty size\n
            expect 50 132
            send sh -c 'echo be""gun; exec sleep 100'\n
            expect begun
            send \x03
            expect #
            send exit 9\n
            status 9
        ]], "run", "--", "sh")
    end)
    it("shows progress in one line and takes it away", function()
        cli.play("within 60\nexpect boot\nexpect ready\nstatus 0", "run", "--cold", "--", "echo", "ready")
    end)
end)

describe("beside a script that owns a VM,", function()
    local owner

    -- Starts a script that holds a VM until it is told to stop, as a coroutine of the shell would.
    setup(function()
        local file = cli.program [[
            local fcvm = require "fcvm"
            local vm <close> = assert(fcvm.vm { name = "held", memory = "128M" }:start())
            -- Closed at once: who has it open keeps it from being removed.
            do local kept <close> = assert(vm:snapshot { name = "cli-spec" }) end
            print "ready" io.stdout:flush()
            assert(vm:exec { "sh", "-c", "until test -e /tmp/stop; do sleep 0.2; done" })
        ]]
        local code, out, err = cli.sh(([[
            fcvm snapshot rm cli-spec 2>/dev/null
            rm -f owner.out; %s script %s >owner.out 2>owner.err & echo $!
            for i in $(seq 600); do grep -qs ready owner.out && exit 0; sleep 0.1; done
            cat owner.err >&2; exit 1]]):format(cli.path(cli.fcvm), file))
        assert(code == 0, err)
        owner = out:match "%d+"
    end)
    teardown(function()
        cli.sh("fcvm snapshot rm cli-spec; fcvm kill held")
        cli.sh(("for i in $(seq 50); do kill -0 %s 2>/dev/null || break; sleep 0.1; done"):format(owner))
        nothing_left()
    end)

    it("ls shows it", function()
        local code, out = cli.sh "fcvm ls"
        assert.equal(0, code)
        assert.matches("ID +NAME +STATE", out)
        assert.matches("held +running .* 128 MiB", out)
        out = select(2, cli.sh "fcvm ls --quiet")
        assert.equal("held\n", out)
        out = select(2, cli.sh "fcvm ls --json")
        contains('"name":"held"', out)
    end)
    it("exec runs programs in it, several at once", function()
        assert.same({ 3, "hi\n", "" }, { cli.sh "fcvm exec held -- sh -c 'echo hi; exit 3'" })
        local _, id = cli.sh "fcvm ls | awk '/held/ { print $1 }'"
        assert.same({ 0, "held\n", "" }, { cli.sh("fcvm exec " .. id:match "%w+" .. " hostname") })
        local code, out = cli.sh [[
            for i in 1 2 3 4; do
                echo $i | fcvm exec held -- sh -c 'read x; sleep 0.5; echo got $x' &
            done | sort; wait]]
        assert.equal(0, code)
        assert.equal("got 1\ngot 2\ngot 3\ngot 4\n", out)
    end)
    it("exec gives a terminal", function()
        cli.play([[
            within 60
            expect #
            send tty\n
            expect /dev/pts/
            send exit 4\n
            status 4
        ]], "exec", "held", "--", "sh")
    end)
    it("what exec started ends with it", function()
        local _, out = cli.sh(([[
            %s exec held -- sleep 4711 & sleep 1; kill -KILL $!; wait $!; sleep 1
            fcvm exec held -- pgrep -f 'sleep 4711' | wc -l]]):format(cli.path(cli.fcvm)))
        assert.equal("0\n", out)
    end)
    it("cp copies both ways", function()
        local code, out, err = cli.sh [[
            mkdir -p tree/sub; echo 1 >tree/sub/file; ln -sf sub tree/link; chmod 750 tree/sub
            fcvm cp tree held:/tmp && fcvm exec held -- sh -c 'cat /tmp/tree/link/file; stat -c %a /tmp/tree/sub' &&
            rm -rf back && fcvm cp held:/tmp/tree back && readlink back/link && stat -c %a back/sub &&
            diff -r tree back && echo two >f && fcvm cp f held:/tmp/name && fcvm exec held cat /tmp/name]]
        assert.equal("", err)
        assert.equal("1\n750\nsub\n750\ntwo\n", out)
        assert.equal(0, code)
        code, out, err = cli.sh "fcvm cp held:/no/such/file ."
        assert.equal(1, code)
        assert.equal("", out)
        contains("/no/such/file", err)
    end)
    it("logs shows its console, and follows it", function()
        local code, out = cli.sh "fcvm exec held -- sh -c 'echo on the console >/dev/console'; fcvm logs held"
        assert.equal(0, code)
        contains("on the console", out)
        out = select(2, cli.sh(([[
            rm -f followed; %s logs --follow held >followed & sleep 1
            fcvm exec held -- sh -c 'echo from the guest >/dev/console'
            for i in $(seq 50); do grep -qs 'from the guest' followed && break; sleep 0.1; done
            kill -INT $!; wait $!; echo $?; grep -c 'from the guest' followed]]):format(
            cli.path(cli.fcvm))))
        assert.equal("130\n1\n", out)
    end)
    it("a snapshot is listed, inspected, run and removed", function()
        local code, out = cli.sh "fcvm snapshot ls"
        assert.equal(0, code)
        assert.matches("cli%-spec +%d+ s +held", out)
        out = select(2, cli.sh "fcvm snapshot inspect cli-spec")
        contains('"format"', out)
        out = select(2, cli.sh "fcvm run --snapshot cli-spec --name from-it -- hostname")
        assert.equal("from-it\n", out)
        assert.equal(0, (cli.sh "fcvm snapshot rm cli-spec"))
        code = cli.sh "fcvm snapshot ls --quiet | grep -x cli-spec"
        assert.equal(1, code)
    end)
    it("bash completes its name", function()
        local _, out = cli.sh(("source %s; COMP_WORDS=(fcvm exec '') COMP_CWORD=2; _fcvm; echo ${COMPREPLY[*]}"):format(
            cli.source "csrc/host/fcvm.bash"))
        assert.equal("held\n", out)
    end)
    it("kill ends it, and its owner is told", function()
        assert.equal(0, (cli.sh "fcvm kill held"))
        local code = cli.sh(("for i in {1..99}; do kill -0 %s 2>&- || exit 0; sleep 0.1; done; exit 1"):format(owner))
        assert.equal(0, code)
        contains("held", cli.read(cli.dir .. "/owner.err"))
    end)
end)

describe("Ctrl-C in a script with VMs", function()
    it("ends them and exits with 130", function()
        local file = cli.program [[
            local fcvm = require "fcvm"
            local vm <close> = assert(fcvm.vm { memory = "128M" }:start())
            other = assert(fcvm.vm { memory = "128M" }:start())
            print "ready" io.stdout:flush()
            assert(vm:exec { "sleep", "1000" })
        ]]
        local _, out, err = cli.sh(([[
            rm -f o; %s script %s >o &
            for i in $(seq 300); do grep -qs ready o && break; sleep 0.1; done
            kill -INT $!; wait $!; echo $?]]):format(cli.path(cli.fcvm), file))
        assert.equal("130\n", out)
        lacks("traceback", err)
        nothing_left()
    end)
end)

it("VMs that a script leaves open are all killed before one is waited for", function()
    local code, out = cli.call("script", cli.program [[
        local fcvm = require "fcvm"
        first = assert(fcvm.vm { memory = "128M" }:start())
        -- finalized after the second VM and before the first
        between = setmetatable({}, { __gc = function() print((assert(first:wait(5)).signal)) end })
        second = assert(fcvm.vm { memory = "128M" }:start())]])
    assert.equal(0, code)
    assert.equal("9\n", out)
end)

describe("the prompt", function()
    after_each(nothing_left)

    it("plays the session of the README as it is printed there", function()
        local session = cli.read(cli.source "README.md"):match "<!%-%- repl %-%->%s*```%w*\n(.-)```"
        local steps = { "within 60" }
        local function escaped(text) return (text:gsub("\\", "\\\\")) end
        for line in session:gmatch "[^\n]+" do
            local typed = line:match "^fcvm> (.*)"
            if typed then
                steps[#steps + 1] = "expect fcvm>\nsend " .. escaped(typed) .. "\\n"
            else
                -- "..." stands for anything
                for part in (line .. "..."):gmatch "(.-)%.%.%." do
                    if part:find "%S" then steps[#steps + 1] = "expect " .. escaped(part) end
                end
            end
        end
        assert.is_true(#steps > 6)
        steps[#steps + 1] = "expect fcvm>\nsend \\x04\nstatus 0"
        cli.play(table.concat(steps, "\n"), "repl")
    end)
    it("completes a VM's fields and methods", function()
        cli.play([[
            within 60
            expect fcvm>
            send vm = assert(fcvm.vm { memory = "128M" }:start())\n
            expect fcvm>
            send vm:snap\t
            expect vm:snapshot
            send \x03
            expect fcvm>
            send vm.stat\t\n
            expect vm.state
            expect "running"
            send vms = { vm }\n
            expect fcvm>
            send vms[1]:exe\t { "echo", "a" .. "b" }\n
            expect vms[1]:exec
            expect ab
            send vm:close()\n
            expect fcvm>
            send vm:snap\t
            expect vm:snapshot
            send \x03\x04
            status 0
        ]], "repl")
    end)
    it("stops a call to a guest at Ctrl-C", function()
        cli.play([[
            within 60
            expect fcvm>
            send vm = assert(fcvm.vm { memory = "128M" }:start())\n
            expect fcvm>
            send print("be" .. "gun") vm:exec { "sleep", "1000" }\n
            expect begun
            send \x03
            expect interrupted
            expect fcvm>
            send vm:exec { "echo", "still" .. "-here" }\n
            expect still-here
            send \x04
            status 0
        ]], "repl")
    end)
    it("ends VMs by its own end, however that comes", function()
        cli.play([[
            within 60
            expect fcvm>
            send vm = assert(fcvm.vm { memory = "128M" }:start())\n
            expect fcvm>
            hangup
            status 129
        ]], "repl")
    end)
end)
