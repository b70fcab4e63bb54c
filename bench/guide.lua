-- SPDX-License-Identifier: MIT
-- What the rival's guide says of itself (64 cores, bare metal): to stand beside ours, as ratios to its own host.
local M = {}

M.machine = "64 cores (c7g.metal)"

-- By readers: ms, and how many times the host's.
M.read = {
    host = 7.9, [1] = 393, [2] = 201, [4] = 109, [8] = 70, [16] = 61, [32] = 66, [64] = 65, [128] = 66, [256] = 66,
}
M.read_ratio = {
    [1] = 49.7, [2] = 25.5, [4] = 13.8, [8] = 8.9, [16] = 7.7, [32] = 8.4, [64] = 8.2, [128] = 8.4, [256] = 8.4,
}
M.write = { host = 161, [1] = 3010, [4] = 816, [16] = 293, [64] = 165, [256] = 162 }
M.write_ratio = { [1] = 18.7, [4] = 5.1, [16] = 1.8, [64] = 1.02, [256] = 1.01 }

-- us: host, volume with 256 readers.
M.operations = {
    getattr = { 0.791, 0.832 }, lookup = { 0.784, 0.832 }, read_4k = { 0.853, 0.796 }, write_4k = { 1.0, 119 },
    open_close = { 1.4, 98 }, readdir = { 6.0, 274 }, create_unlink = { 11.8, 300 },
}

-- ns.
M.protocol = {
    lookup_made = 31, lookup_taken = 100, attr = 35, read_4k = 3200, read_64k = 50600, read_128k = 101000,
    trip_request = 105, trip_4k = 8100,
}

-- ms: in a VM, in a VM within it.
M.nested = {
    local_write = { 5, 7 }, local_read = { 2, 5 }, write_sync = { 81, 568 }, write = { 56, 165 }, read = { 46, 160 },
    stat = { 1.1, 2.4 }, small_read = { 1.5, 7.4 },
}

-- Virtual memory of a volume's threads: MiB a reader.
M.reader_mb = 8

return M
