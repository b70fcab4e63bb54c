-- SPDX-License-Identifier: MIT
-- The program with volumes: run, volumes, trace.
local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."
package.path = here .. "/../cli/?.lua;" .. here .. "/?.lua;" .. package.path
local cli = require "cli"
local T = require "support"

teardown(function()
    cli.clean()
    T.clean()
end)

local function contains(want, text)
    assert.is_truthy(text:find(want, 1, true), ("%q is not in:\n%s"):format(want, text))
end

describe("run with volumes", function()
    it("mounts them, relative to where it stands", function()
        local code, out = cli.sh [[mkdir -p in data/b; echo text >in/file
            fcvm run -v in:/work:ro --volume=./data:/data -w /work -- sh -c 'cat file >/data/b/copy; pwd; touch x; echo $?']]
        assert.equal(0, code)
        assert.equal("/work\n1\n", out)
        assert.equal("text\n", cli.read(cli.dir .. "/data/b/copy"))
    end)

    it("says what cannot be mounted", function()
        local code, out, err = cli.sh "fcvm run -v no-such-folder:/work -- true"
        assert.equal(1, code)
        assert.equal("", out)
        contains(cli.path(cli.dir) .. "/no-such-folder", err)
        contains("No such file", err)
        code, out, err = cli.sh "touch file; fcvm run -v file:/work -- true"
        assert.equal(1, code)
        assert.equal("", out)
        contains("Not a directory", err)
    end)

    it("does not take what is no rate for one", function()
        for _, rate in ipairs { "1k", "abc", "-1" } do
            local code, _, err = cli.sh(("FCVM_FUSE_TRACE_RATE=%s fcvm run -v .:/work -- true"):format(rate))
            assert.equal(1, code)
            contains(("FCVM_FUSE_TRACE_RATE is '%s'"):format(rate), err)
        end
    end)

    it("has room for many clones where few files may be open, and does not change what programs in the guest may", function()
        local file = cli.program [[
            local fcvm = require "fcvm"
            local vm <close> = assert(fcvm.vm { memory = "128M", volumes = { { host = ".", guest = "/work" } } }:start())
            print((assert(vm:exec { "sh", "-c", "ulimit -Sn" }).stdout:gsub("\n", "")))
            local snap <close> = assert(vm:snapshot())
            local clones <close> = assert(snap:clone(10))
            print(#clones)]]
        local code, out, err = cli.sh("ulimit -Sn 200; fcvm script " .. file)
        assert.equal("", err:gsub("fcvm: [bk][^\n]*\n", ""))
        assert.equal(0, code)
        assert.equal("1024\n10\n", out)
    end)

    it("mounts them in a clone of a snapshot, too", function()
        local name = "volumes-cli-" .. os.time()
        local file = cli.program(([[
            local vm <close> = assert(require "fcvm".vm { memory = "128M" }:start())
            local snap <close> = assert(vm:snapshot { name = %q })]]):format(name))
        assert.equal(0, (cli.call("script", file)))
        local _, out = cli.sh(([[mkdir -p s; echo here >s/f
            fcvm run --snapshot %s -v s:/s -- cat /s/f; fcvm snapshot rm %s]]):format(name, name))
        assert.equal("here\n", out)
    end)
end)

describe("volumes and trace", function()
    -- Runs a VM with two volumes, one request of two traced, while the script runs.
    local function beside(script)
        return cli.sh(([[
            mkdir -p one two; head -c 300000 /dev/zero >one/large; rm -f two/*
            FCVM_FUSE_TRACE_RATE=2 fcvm run -n seen -v one:/one:ro,readers=2 -v two:/two -- sh -c '
                for i in 1 2 3 4 5 6 7 8; do cat /one/large >/dev/null; echo $i >/two/$i; cat /two/none; done 2>/dev/null
                touch /two/ready; until [ -e /two/done ]; do sleep 0.1; done' & run=$!
            for i in $(seq 600); do [ -e two/ready ] && break; sleep 0.1; done
            %s
            touch two/done; wait $run]]):format(script))
    end

    it("list them, and count", function()
        local code, out, err = beside "fcvm volumes; fcvm volumes -q seen; fcvm volumes --long seen; fcvm volumes --json"
        assert.equal(0, code, err)
        local one, two = cli.path(cli.dir) .. "/one", cli.path(cli.dir) .. "/two"
        assert.matches("^VM +GUEST +HOST +FLAGS +STATE +OPS +READ +WRITTEN\n", out)
        assert.matches("\nseen +/one +" .. one:gsub("%p", "%%%0") .. " +ro,readers=2 +running +%d+ +[%d.]+ [KM]iB +0 B\n", out)
        assert.matches("\nseen +/two +" .. two:gsub("%p", "%%%0") .. " +%- +running +%d+ ", out)
        contains("\n/one\n/two\n", out)
        assert.matches("\nVM +GUEST +OPERATION +COUNT +ERRORS +P50 +P99 +MAX\n", out)
        assert.matches("\nseen +/one +read +%d+ +0 +[%d.]+ .?.?s +[%d.]+ .?.?s +[%d.]+ .?.?s\n", out)
        assert.matches("\nseen +/two +lookup +%d+ +[1-9]%d* ", out)
        assert.matches('\n%[{.*"vm": ?"seen".*}%]\n$', out)
    end)

    it("show where the time of requests went", function()
        local code, out, err = beside [[fcvm trace seen; fcvm trace -n 3 --volume /one seen; fcvm trace -n 2 seen
            fcvm trace --json seen]]
        assert.equal(0, code, err)
        assert.matches("^VOLUME +OPERATION +COUNT +TOTAL P50 +P99 +TO_SRV P50 +P99 +FS P50 +P99 +TO_CLI P50 +P99\n", out)
        assert.matches("\n/one +read +%d+ ", out)
        local lines = {}
        for line in out:gmatch "%[TRACE[^\n]*" do
            assert.matches("^%[TRACE +%l+%] total=%d+µs srv=%d+µs | fs=%d+ | to_srv=[%d?]+ to_cli=[%d?]+$", line)
            lines[#lines + 1] = line
        end
        assert.equal(3 + 2 + 2, #lines)
        contains("\n==> /one <==\n", out)
        contains("\n\n==> /two <==\n", out)
        assert.matches('\n%[{"guest": ?"/one".*"total_p50".*}%]\n$', out)
        local _
        _, out, err = beside "fcvm trace --volume /three seen; echo $?"
        contains("1\n", out)
        contains("no volume is mounted at /three", err)
    end)

    it("say so when nothing was traced", function()
        local _, out = cli.sh [[
            mkdir -p two; rm -f two/*
            fcvm run -n quiet -v two:/two -- sh -c 'touch /two/ready; until [ -e /two/done ]; do sleep 0.1; done' & run=$!
            for i in $(seq 600); do [ -e two/ready ] && break; sleep 0.1; done
            fcvm trace quiet; fcvm trace -n 3 quiet; touch two/done; wait $run]]
        assert.matches("^nothing was traced; FCVM_FUSE_TRACE_RATE=N[^\n]*\nnothing was traced", out)
    end)
end)
