# SPDX-License-Identifier: MIT
"""readme.py README BUILD RESULTS: runs the examples of a Markdown file.

```lua blocks run in the built interpreter; ```sh and ```c blocks after a line `<!-- test -->` run in a shell, and
are built by pkg-config against an installed copy and run. A ```text block after `<!-- repl -->` is a session: what
follows `fcvm> ` is typed into `fcvm repl` at a terminal, the lines below must be what it prints, `...` being
anything. A name of ours, a time or an accelerator that may differ stands as `...`, too.
"""
import fcntl, os, pty, re, select, signal, struct, subprocess, sys, tempfile, termios, time

readme, build, results = sys.argv[1], os.path.abspath(sys.argv[2]), sys.argv[3]
PROMPT = "fcvm> "


def blocks(path):
    """(line, language, marker, text) of each fenced block."""
    marker, fence, out, start, language = "", False, [], 0, ""
    for number, line in enumerate(open(path), 1):
        if line.startswith("```"):
            if fence:
                yield start, language, marker, "".join(out)
                marker, out = "", []
            else:
                start, language = number, line[3:].strip()
            fence = not fence
        elif fence:
            out.append(line)
        elif line.strip():
            found = re.fullmatch(r"<!-- (\w+) -->", line.strip())
            marker = found.group(1) if found else ""


def run(argv, **more):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=150, text=True, **more)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise AssertionError("exit status %d: %s" % (done.returncode, (done.stdout.strip().splitlines() or [""])[-1]))
    return done.stdout


def run_lua(text, work):
    path = os.path.join(work, "example.lua")
    open(path, "w").write(text)
    run([build + "/fcvm", "script", path])


def run_shell(text, work):
    environment = dict(os.environ, PATH=build + ":" + os.environ["PATH"])
    run(["bash", "-euo", "pipefail", "-c", text], cwd=work, env=environment)


def run_c(text, work):
    prefix = work + "/prefix"
    run(["cmake", "--install", build, "--prefix", prefix])
    pc = subprocess.check_output(["find", prefix, "-name", "fcvm.pc"], text=True).strip()
    open(work + "/boot.c", "w").write(text)
    environment = dict(os.environ, PKG_CONFIG_PATH=os.path.dirname(pc),
                       LD_LIBRARY_PATH=os.path.dirname(os.path.dirname(pc)))
    run(["sh", "-c", "cc -Wall -Wextra -Werror boot.c $(pkg-config --cflags --libs fcvm) && ./a.out"], cwd=work,
        env=environment)


class Terminal:
    """A program at a terminal of 40 rows and 200 columns."""

    def __init__(self, argv, work):
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", XDG_STATE_HOME=work)
            os.execv(argv[0], argv)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))

    def read_until(self, pattern, seconds=60):
        """What was printed, without escape sequences, up to the pattern's match at its end."""
        end = time.monotonic() + seconds
        while True:
            text = self.plain()
            if re.search(pattern, text):
                self.seen = ""
                return text
            if time.monotonic() > end or not select.select([self.fd], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError("waited for %r, got %r" % (pattern, text[-300:]))
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            if not data:
                raise AssertionError("ended before %r: %r" % (pattern, text[-300:]))
            self.seen += data.decode(errors="replace")

    def plain(self):
        text = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>78])", "", self.seen)
        # What a carriage return has overwritten on its line is no longer seen.
        return "\n".join(re.sub(r".*\r(?=[^\n])", "", line.rstrip("\r")) for line in text.split("\n"))

    def type(self, text):
        os.write(self.fd, text.encode())

    def end(self):
        self.type("\x04")
        end = time.monotonic() + 20
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    os.read(self.fd, 65536)
                except OSError:
                    time.sleep(0.05)
        raise AssertionError("it does not end at ^D")

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


def run_session(text, work):
    steps = []
    for line in text.splitlines():
        if line.startswith(PROMPT):
            steps.append((line[len(PROMPT):], []))
        elif steps:
            steps[-1][1].append(line)
    terminal = Terminal([build + "/fcvm", "repl"], work)
    try:
        print(terminal.read_until(re.escape(PROMPT) + "$"), end="")
        for typed, expected in steps:
            terminal.type(typed + "\r")
            # The line as typed, what it prints, the next prompt.
            got = terminal.read_until(r"(?s)\n(.*\n)?" + re.escape(PROMPT) + "$")
            print(got, end="", flush=True)
            got = "\n".join(got.split("\n")[1:-1])
            want = "\n".join(expected)
            pattern = ".*".join(re.escape(part) for part in want.split("..."))
            # What is printed of the machine's own: with or without KVM.
            pattern = re.sub(r"qemu/(tcg|kvm)", "qemu/(tcg|kvm)", pattern)
            if not re.fullmatch("(?s)" + pattern, got):
                raise AssertionError("%s: printed %r, not %r" % (typed, got, want))
        status = terminal.end()
        if status:
            raise AssertionError("exit status %d at the end" % status)
    finally:
        terminal.close()


count = 0
with open(results, "a") as out:
    for line, language, marker, text in blocks(readme):
        if marker == "repl":
            name, test = "session", run_session
        elif language == "lua":
            name, test = "lua example", run_lua
        elif marker == "test" and language in ("sh", "c"):
            name, test = {"sh": "shell example", "c": "C example"}[language], {"sh": run_shell, "c": run_c}[language]
        else:
            continue
        count += 1
        name = "%s of line %d" % (name, line)
        print("==", name, flush=True)
        with tempfile.TemporaryDirectory() as work:
            try:
                test(text, work)
                out.write("passed\t%s\n" % name)
            except (AssertionError, subprocess.SubprocessError, OSError) as e:
                print("FAILED:", e)
                out.write("failed\t%s\t%s\n" % (name, str(e).replace("\t", " ").replace("\n", "\\n")[:300]))
        out.flush()
    if count < 6:
        out.write("failed\texamples\tonly %d found\n" % count)
