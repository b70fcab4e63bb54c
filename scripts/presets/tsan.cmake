# SPDX-License-Identifier: MIT
# cmake -C scripts/presets/tsan.cmake -S . -B build-tsan -G Ninja
set(CMAKE_BUILD_TYPE Debug CACHE STRING "")
set(FCVM_SANITIZE thread CACHE STRING "")
