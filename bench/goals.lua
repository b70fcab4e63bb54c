-- SPDX-License-Identifier: MIT
-- What is measured: each figure's name, what it is for people, unit, goal (not to be exceeded), and what a rough
-- prototype had on a machine of 2 cores without KVM. Of figures without a goal only the trend is of interest.
return {
    { "agents_s", "all clones: agents answered", "s", goal = 3 },
    { "ready_s", "all clones: have answered an exec", "s", goal = 6, prototype = 6.4 },
    { "clone_p50_ms", "all clones: each, p50", "ms" },
    { "first_exec_p50_ms", "all clones: first exec, p50", "ms" },
    { "exec_p50_ms", "all clones: exec while the others idle, p50", "ms" },
    { "pss_mb", "all clones: PSS with the template's", "MiB", goal = 1331, prototype = 1423 },
    { "pss_ram_mb", "all clones: of which guest RAM", "MiB" },
    { "available_fall_mb", "all clones: fall of MemAvailable", "MiB" },
    { "idle_percent", "all clones idle: of a core", "%", goal = 50, prototype = 47 },
    { "teardown_ms", "all clones: teardown", "ms", goal = 300, prototype = 100 },
    { "prepare_ms", "prepare the first clone", "ms" },
    { "ping_ms", "one clone, prepared: agent's ping answered", "ms", goal = 30, prototype = 23 },
    { "first_exec_ms", "one clone, prepared: first exec answered", "ms", goal = 200, prototype = 180 },
    { "save_ms", "snapshot with stop: pause to published", "ms", goal = 15, prototype = 5 },
    { "downtime_ms", "snapshot, source goes on: downtime", "ms", goal = 150 },
    { "booted_downtime_ms", "the same, first of a booted guest: downtime", "ms", goal = 150 },
    { "tiny_exec_p50_ms", "warm guest: exec of a tiny static program, p50", "ms", goal = 10, prototype = 7 },
    { "busybox_exec_p50_ms", "warm guest: exec of busybox hostname, p50", "ms" },
    { "boot_s", "cold boot: agent answered", "s", prototype = 3 },
    { "warm_start_ms", "start of what was booted before", "ms" },
    { "run_ms", "fcvm run -- true, not the first", "ms", goal = 600 },
    { "script_ms", "fcvm script of an empty file", "ms", goal = 10 },
}
