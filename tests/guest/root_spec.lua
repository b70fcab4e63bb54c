-- SPDX-License-Identifier: MIT
-- A folder of this host as the guest's root.
local here = debug.getinfo(1, "S").source:match "^@(.*)/[^/]*$" or "."
package.path = here .. "/../cli/?.lua;" .. here .. "/?.lua;" .. package.path
local cli = require "cli"
local fcvm = require "fcvm"
local T = require "support"

local check, host, guest = T.check, T.host, T.guest

teardown(function()
    cli.clean()
    T.clean()
end)

describe("a VM on this host's root", function()
    local vm

    setup(function() vm = T.vm { name = "on-root", memory = "256M", root = "/" } end)
    teardown(function() if vm then vm:close() end end)

    it("runs this host's programs", function()
        assert.equal(host "bash --version | head -n 1", (guest(vm, "bash --version | head -n 1")))
        assert.equal(host "cat /etc/os-release", (guest(vm, "cat /etc/os-release")))
        assert.equal("42\n", (guest(vm, "awk 'BEGIN { print 6 * 7 }'")))
        assert.equal("on-root\n", (guest(vm, "hostname")))
        assert.matches("^0\n", (guest(vm, "id -u; ls /proc/self/fd /sys/class /dev/null /dev/pts")))
    end)

    it("keeps what is written to itself", function()
        local name = "/var/tmp/fcvm-root-spec-" .. os.time()
        T.write(name, "host\n")
        local remove <close> = setmetatable({}, { __close = function() os.remove(name) end })
        assert.equal("host\n", (guest(vm, "cat " .. name)))
        assert.equal("guest\n", (guest(vm, ("echo guest >%s; cat %s"):format(name, name))))
        assert.equal("host\n", T.read(name))
        guest(vm, "echo x >/etc/fcvm-root-spec && rm /etc/hostname")
        assert.is_nil(io.open "/etc/fcvm-root-spec")
    end)

    it("shows its root among the volumes", function()
        local list = check(vm:volumes())
        assert.equal(1, #list)
        assert.is_true(list[1].root)
        assert.is_true(list[1].readonly)
        assert.equal("/", list[1].host)
    end)

    it("takes volumes as another does", function()
        local src = T.folder()
        check(vm:mount { host = src, guest = "/work/here" })
        guest(vm, "bash -c 'echo new >/work/here/new'")
        assert.equal("new\n", T.read(src .. "/new"))
        check(vm:unmount "/work/here")
        assert.is_nil(io.open "/work/here")
    end)

    it("has clones, which keep what it wrote and differ from then on", function()
        guest(vm, "echo base >/etc/of-base")
        local snap <close> = check(vm:snapshot())
        local clones <close> = check(snap:clone(2))
        fcvm.parallel(clones, function(clone)
            assert.equal("base\n", (guest(clone, "cat /etc/of-base")))
            guest(clone, "hostname >/etc/of-base")
            assert.equal(clone.name .. "\n", (guest(clone, "cat /etc/of-base")))
            assert.equal(host "bash --version | head -n 1", (guest(clone, "bash --version | head -n 1")))
        end)
        assert.equal("base\n", (guest(vm, "cat /etc/of-base")))
    end)
end)

describe("run --root", function()
    it("builds a C project of this host", function()
        local code, out, err = cli.sh [[
            rm -rf project; mkdir project; cd project
            printf 'int answer(void);\nint main(void) { return answer() != 42; }\n' >main.c
            printf 'int answer(void) { return 42; }\n' >answer.c
            printf 'program: main.o answer.o\n\t$(CC) -o $@ $^\nclean:\n\trm -f *.o program\n' >Makefile
            fcvm run --root / -v .:$PWD -w $PWD -- make && ./program && echo built]]
        assert.equal(0, code, err)
        assert.matches("built\n$", out)
    end)

    it("boots a tree of Debian packages", function()
        -- Of files of packages that are installed here: no mirror is asked, and it is not this host's root.
        local code, out, err = cli.sh [[
            mkdir -p tree/usr/bin tree/usr/sbin tree/usr/lib tree/usr/lib64
            for d in bin sbin lib lib64; do ln -s usr/$d tree/$d; done
            dpkg-query -L base-files base-passwd libc6 dash coreutils libacl1 libattr1 libselinux1 libpcre2-8-0 libgmp10 |
                while read -r f; do [ -e "$f" ] && echo "$f"; done |
                tar -C / -cf - --no-recursion -T - 2>tar-said | tar -C tree -xf - --keep-directory-symlink
            [ -e tree/bin/sh ] || ln -s dash tree/bin/sh
            cp /etc/passwd tree/etc/
            fcvm run --root tree -- sh -c 'echo "$(whoami) $(cat /etc/debian_version)"; ls /usr/bin | wc -l
                echo new >/etc/new && cat /etc/new; ls -d /work /home/* 2>/dev/null'
            [ ! -e tree/etc/new ] ]]
        assert.equal(0, code, err)
        local version, programs = out:match "^root ([^\n]+)\n(%d+)\nnew\n$"
        assert.equal(host "cat /etc/debian_version", (version or out) .. "\n")
        assert.is_true(tonumber(programs) > 50)
    end)

    it("says what is no root", function()
        local code, _, err = cli.sh "fcvm run --root /no/such -- true"
        assert.equal(1, code)
        assert.is_truthy(err:find("/no/such", 1, true), err)
        code, _, err = cli.sh "touch file; fcvm run --root file -- true"
        assert.equal(1, code)
        assert.is_truthy(err:find("Not a directory", 1, true), err)
    end)
end)
